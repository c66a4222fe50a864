// Anti-aliased pooling on a GPU: argument checks, output allocation, device and stream for kernels.cu.
#include "kernels.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

#include <stdexcept>
#include <string>

#include "../check.h"
#include "any_filter.h"
#include "tensors.h"

namespace andfast {
namespace {

pool::Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return pool::Dtype::kFloat;
    case ScalarType::Double: return pool::Dtype::kDouble;
    case ScalarType::Half: return pool::Dtype::kHalf;
    case ScalarType::BFloat16: return pool::Dtype::kBFloat16;
    default: break;
  }
  throw std::runtime_error(
      std::string("andfast: blur pooling on a GPU takes float32, float64, float16 and bfloat16, not ") +
      torch::headeronly::toString(x.scalar_type()));
}

int multiprocessors(int device) {
  int count = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// The stable ABI has streams of any accelerator, but CUDA's own handle only through this call.
cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor run(bool forward, const Tensor& x, const std::vector<double>& taps, int64_t factor) {
  ANDFAST_CHECK(x.is_cuda(), "andfast: expected a tensor on a CUDA device");
  check_call(x, forward, taps, factor);
  const auto n_taps = static_cast<int64_t>(taps.size());
  ANDFAST_CHECK(
      n_taps <= pool::kMaxTaps, "filter must have at most ", pool::kMaxTaps, " taps on a GPU, had ", n_taps,
      "; impl='reference' takes any number");
  const pool::Dtype dtype = dtype_of(x);
  const int64_t height = x.size(2) * (forward ? 1 : factor);
  const int64_t width = x.size(3) * (forward ? 1 : factor);

  const int device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor in = dense(x);
  Tensor out = empty_in_order_of(x, forward ? height / factor : height, forward ? width / factor : width);
  if (out.numel() == 0) {
    return out;
  }
  const bool nhwc = is_channels_last(x);
  const int64_t images = nhwc ? x.size(0) : x.size(0) * x.size(1);
  const int64_t inner = nhwc ? x.size(1) : 1;
  constexpr int64_t kMaxExtent = int64_t{1} << 30;  // the kernels' offsets within a row are 32-bit
  ANDFAST_CHECK(
      height < kMaxExtent && width * inner < kMaxExtent,
      "x must have fewer than 2^30 rows, and values in a row, on a GPU; had ", height, " and ", width * inner);
  const pool::Sizes sizes{
      images, static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(inner),
      static_cast<int32_t>(factor), static_cast<int32_t>(n_taps)};
  void* const from = const_cast<void*>(in.const_data_ptr());
  void* const to = out.mutable_data_ptr();
  pool::launch(
      forward, pool::has_tiles(dtype, factor, n_taps), dtype, sizes, taps, forward ? from : to, forward ? to : from,
      multiprocessors(device), current_stream(device));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

Tensor forward_cuda(const Tensor& x, std::vector<double> taps, int64_t factor) { return run(true, x, taps, factor); }

Tensor backward_cuda(const Tensor& grad, std::vector<double> taps, int64_t factor) {
  return run(false, grad, taps, factor);
}

}  // namespace
}  // namespace andfast

STABLE_TORCH_LIBRARY_IMPL(andfast, CUDA, m) {
  m.impl("blur_pool", TORCH_BOX(&andfast::forward_cuda));
  m.impl("blur_pool_backward", TORCH_BOX(&andfast::backward_cuda));
}
