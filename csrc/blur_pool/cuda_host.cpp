// Anti-aliased pooling on a GPU: argument checks, output allocation, device and stream for kernels.cu.
#include "kernels.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include "blur_pool.h"
#include "any_filter.h"
#include "index.h"

namespace andfast {
namespace {

pool::Dtype dtype_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return pool::Dtype::kFloat;
    case at::kDouble: return pool::Dtype::kDouble;
    case at::kHalf: return pool::Dtype::kHalf;
    case at::kBFloat16: return pool::Dtype::kBFloat16;
    default:
      TORCH_CHECK(
          false, "andfast: blur pooling on a GPU takes float32, float64, float16 and bfloat16, not ", x.scalar_type());
  }
}

int multiprocessors(c10::DeviceIndex device) {
  int count = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

at::Tensor run(
    bool forward, const at::Tensor& x, const std::vector<double>& taps, int64_t factor, bool channels_last) {
  TORCH_CHECK(x.dim() == 4 && x.device().is_cuda(), "andfast: expected a (N, C, H, W) tensor on a CUDA device");
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  TORCH_CHECK(x.is_contiguous(format), "andfast: expected a tensor that is dense in the stated memory order");
  const auto n_taps = static_cast<int64_t>(taps.size());
  TORCH_CHECK(
      n_taps <= pool::kMaxTaps, "filter must have at most ", pool::kMaxTaps, " taps on a GPU, had ", n_taps,
      "; impl='reference' takes any number");
  TORCH_CHECK(factor > 0 && n_taps >= factor && (n_taps - factor) % 2 == 0, "andfast: impossible filter");
  const int64_t height = x.size(2) * (forward ? 1 : factor);
  const int64_t width = x.size(3) * (forward ? 1 : factor);
  const int64_t pad = padding_of(n_taps, factor);
  TORCH_CHECK(
      height % factor == 0 && width % factor == 0 && height > pad && width > pad,
      "andfast: impossible sizes for blur pooling by ", factor, " with ", n_taps, " taps: ", x.sizes());

  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor out = at::empty(
      {x.size(0), x.size(1), forward ? height / factor : height, forward ? width / factor : width},
      x.options().memory_format(format));
  if (out.numel() == 0) {
    return out;
  }
  const int64_t images = channels_last ? x.size(0) : x.size(0) * x.size(1);
  const int64_t inner = channels_last ? x.size(1) : 1;
  constexpr int64_t kMaxExtent = int64_t{1} << 30;  // the kernels' offsets within a row are 32-bit
  TORCH_CHECK(
      height < kMaxExtent && width * inner < kMaxExtent,
      "x must have fewer than 2^30 rows, and values in a row, on a GPU; had ", x.sizes());
  const pool::Sizes sizes{
      images, static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(inner),
      static_cast<int32_t>(factor), static_cast<int32_t>(n_taps)};
  const pool::Dtype dtype = dtype_of(x);
  void* const from = const_cast<void*>(x.const_data_ptr());
  void* const to = out.mutable_data_ptr();
  pool::launch(
      forward, pool::has_tiles(dtype, factor, n_taps), dtype, sizes, taps, forward ? from : to, forward ? to : from,
      multiprocessors(x.device().index()), c10::cuda::getCurrentCUDAStream(x.device().index()));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

at::Tensor blur_pool_forward_cuda(
    const at::Tensor& x, const std::vector<double>& taps, int64_t factor, bool channels_last) {
  return run(true, x, taps, factor, channels_last);
}

at::Tensor blur_pool_backward_cuda(
    const at::Tensor& grad, const std::vector<double>& taps, int64_t factor, bool channels_last) {
  return run(false, grad, taps, factor, channels_last);
}

}  // namespace andfast
