// Anti-aliased pooling: schemas, and tensors for both devices. User-facing argument checks are in Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <string>

#include "../check.h"
#include "index.h"
#include "tensors.h"

namespace andfast {

void check_call(const Tensor& x, bool large, const std::vector<double>& taps, int64_t factor) {
  ANDFAST_CHECK(x.dim() == 4, "andfast: x must have shape (N, C, H, W), had ", x.dim(), " dimensions");
  const auto n_taps = static_cast<int64_t>(taps.size());
  ANDFAST_CHECK(factor > 0 && n_taps >= factor && (n_taps - factor) % 2 == 0,
                "andfast: impossible filter of ", n_taps, " taps for factor ", factor);
  const int64_t height = x.size(2) * (large ? 1 : factor);
  const int64_t width = x.size(3) * (large ? 1 : factor);
  const int64_t pad = padding_of(n_taps, factor);
  ANDFAST_CHECK(height % factor == 0 && width % factor == 0 && height > pad && width > pad,
                "andfast: impossible sizes for blur pooling by ", factor, " with ", n_taps, " taps: ", x.size(2), " x ",
                x.size(3));
}

bool is_channels_last(const Tensor& x) { return x.size(1) != 1 && x.stride(1) == 1 && x.stride(3) != 1; }

Tensor empty_in_order_of(const Tensor& x, int64_t height, int64_t width) {
  using torch::headeronly::MemoryFormat;
  const std::array<int64_t, 4> size = {x.size(0), x.size(1), height, width};
  const auto format = is_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty(
      {size.data(), size.size()}, x.scalar_type(), std::nullopt, x.device(), std::nullopt, format);
}

Tensor dense(const Tensor& x) {
  const bool nhwc = is_channels_last(x);
  const std::array<int64_t, 4> inner_first = nhwc ? std::array<int64_t, 4>{1, 3, 2, 0} : std::array<int64_t, 4>{3, 2, 1, 0};
  bool is_dense = true;
  int64_t stride = 1;
  for (const int64_t d : inner_first) {
    is_dense = is_dense && (x.size(d) == 1 || x.stride(d) == stride);
    stride *= x.size(d);
  }
  if (is_dense || stride == 0) {
    return x;
  }
  Tensor copy = empty_in_order_of(x, x.size(2), x.size(3));
  torch::stable::copy_(copy, x);
  return copy;
}

}  // namespace andfast

// A fragment, because torch.library defines other ops of this namespace in Python.
STABLE_TORCH_LIBRARY_FRAGMENT(andfast, m) {
  m.def("blur_pool(Tensor x, float[] taps, int factor) -> Tensor");
  // The transposed map: (N, C, H, W) -> (N, C, H * factor, W * factor).
  m.def("blur_pool_backward(Tensor grad, float[] taps, int factor) -> Tensor");
}
