// Anti-aliased pooling: what the bindings see. Argument checks that a user can trip over are Python's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace andfast {

// (N, C, H, W) -> (N, C, H / factor, W / factor). x is dense in NCHW order or, with channels_last, in NHWC order;
// so is the result.
at::Tensor blur_pool_forward_cpu(
    const at::Tensor& x, const std::vector<double>& taps, int64_t factor, bool channels_last);

// The transposed map: (N, C, H, W) -> (N, C, H * factor, W * factor), memory order as above.
at::Tensor blur_pool_backward_cpu(
    const at::Tensor& grad, const std::vector<double>& taps, int64_t factor, bool channels_last);

// The same on a CUDA device, on its current stream; in builds with CUDA. At most 256 taps.
at::Tensor blur_pool_forward_cuda(
    const at::Tensor& x, const std::vector<double>& taps, int64_t factor, bool channels_last);
at::Tensor blur_pool_backward_cuda(
    const at::Tensor& grad, const std::vector<double>& taps, int64_t factor, bool channels_last);

}  // namespace andfast
