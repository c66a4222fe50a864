// Tensors of torch's stable ABI as blur pooling sees them: checks, memory order, results.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace andfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Checks shape, factor and filter of a call. large: x is the large side (forward), else the small side (backward).
void check_call(const Tensor& x, bool large, const std::vector<double>& taps, int64_t factor);

// The rule of andfast/functional/layout.py for memory formats.
bool is_channels_last(const Tensor& x);

// x itself if it is dense in its memory order, else a copy that is.
Tensor dense(const Tensor& x);

// A tensor (N, C, height, width) with x's dtype, device and memory order.
Tensor empty_in_order_of(const Tensor& x, int64_t height, int64_t width);

}  // namespace andfast
