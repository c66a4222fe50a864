// Anti-aliased pooling: entry points for the bindings. User-facing argument checks are in Python.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace andfast {

// (N, C, H, W) -> (N, C, H / factor, W / factor). x is dense in NCHW order, or NHWC with channels_last; the result has
// the same order.
at::Tensor blur_pool_forward_cpu(
    const at::Tensor& x, const std::vector<double>& taps, int64_t factor, bool channels_last);

// The transposed map: (N, C, H, W) -> (N, C, H * factor, W * factor). Memory order as above.
at::Tensor blur_pool_backward_cpu(
    const at::Tensor& grad, const std::vector<double>& taps, int64_t factor, bool channels_last);

// The same on the current stream of x's CUDA device; only in builds with CUDA. At most 256 taps.
at::Tensor blur_pool_forward_cuda(
    const at::Tensor& x, const std::vector<double>& taps, int64_t factor, bool channels_last);
at::Tensor blur_pool_backward_cuda(
    const at::Tensor& grad, const std::vector<double>& taps, int64_t factor, bool channels_last);

}  // namespace andfast
