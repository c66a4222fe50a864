#include "layout.h"

#include <algorithm>

#include "intrinsics.h"

namespace andfast::convolution {
namespace {

constexpr int kThreads = 256;
constexpr int kUnit = 8;  // channels of a thread, 16 bytes

int blocks_for(int64_t threads) {
  return static_cast<int>(std::min<int64_t>((threads + kThreads - 1) / kThreads, 1 << 20));
}

__global__ void __launch_bounds__(kThreads)
    copy_kernel(const __grid_constant__ Strided from, uint8_t* to, int units, int64_t total) {
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < total; at += int64_t{gridDim.x} * kThreads) {
    const int first = static_cast<int>(at % units) * kUnit;
    int64_t pixel = at / units;
    const int64_t x = pixel % from.size[3];
    pixel /= from.size[3];
    const int64_t y = pixel % from.size[2];
    const int64_t n = pixel / from.size[2];
    const auto* source = static_cast<const uint16_t*>(from.data) + n * from.stride[0] + y * from.stride[2] +
                         x * from.stride[3];
    Words words;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      words.at[w] = 0;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int channel = first + 2 * w + e;
        if (channel < from.size[1]) {
          words.at[w] |= load_2_bytes(source + channel * from.stride[1]) << (16 * e);
        }
      }
    }
    store_16_bytes(to + 16 * at, words);
  }
}

template <Dtype kDtype>
__global__ void __launch_bounds__(kThreads)
    leaky_relu_backward_kernel(const uint8_t* grad, const uint8_t* signs, int sign_bytes, float slope, int units,
                               int64_t total, uint8_t* out) {
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < total; at += int64_t{gridDim.x} * kThreads) {
    const uint32_t bits = signs[at / units * sign_bytes + at % units];
    Words words = load_16_bytes(grad + 16 * at);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float low = unpack<kDtype>(words.at[w], 0);
      const float high = unpack<kDtype>(words.at[w], 1);
      words.at[w] = pack<kDtype>(bits >> (2 * w) & 1 ? low : slope * low, bits >> (2 * w + 1) & 1 ? high : slope * high);
    }
    store_16_bytes(out + 16 * at, words);
  }
}

}  // namespace

cudaError_t copy_to_channels_last(const Strided& from, void* to, int channels, cudaStream_t stream) {
  const int units = channels / kUnit;
  const int64_t total = from.size[0] * from.size[2] * from.size[3] * units;
  if (total > 0) {
    copy_kernel<<<blocks_for(total), kThreads, 0, stream>>>(from, static_cast<uint8_t*>(to), units, total);
  }
  return cudaGetLastError();
}

cudaError_t leaky_relu_backward(Dtype dtype, const void* grad, const uint8_t* signs, int sign_bytes, float slope,
                                int64_t pixels, int channels, void* out, cudaStream_t stream) {
  const int units = channels / kUnit;
  const int64_t total = pixels * units;
  if (total > 0) {
    const auto kernel = dtype == Dtype::kHalf ? leaky_relu_backward_kernel<Dtype::kHalf>
                                              : leaky_relu_backward_kernel<Dtype::kBFloat16>;
    kernel<<<blocks_for(total), kThreads, 0, stream>>>(static_cast<const uint8_t*>(grad), signs, sign_bytes, slope,
                                                       units, total, static_cast<uint8_t*>(out));
  }
  return cudaGetLastError();
}

}  // namespace andfast::convolution
