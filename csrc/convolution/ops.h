// The convolution ops that ops.cpp registers.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace andfast::convolution {

Tensor convolution_pack(const Tensor& weight, const std::optional<Tensor>& bias, ScalarType dtype, int64_t factor,
                        bool backward);
std::tuple<Tensor, Tensor> convolution_forward(
    const Tensor& x, const Tensor& packed, int64_t out_channels, int64_t factor, double slope,
    const std::optional<Tensor>& slopes, double scale, const std::optional<Tensor>& residual,
    const std::optional<Tensor>& noise, bool replicate, bool per_image, bool keep_signs);
Tensor convolution_backward(const Tensor& grad, const Tensor& packed, int64_t in_channels, int64_t factor,
                            const std::optional<Tensor>& input_signs, double input_slope, bool per_image);
Tensor convolution_activation_backward(const Tensor& grad, const Tensor& signs, double slope);

Tensor dense_blocks_pack(std::vector<Tensor> weights, std::vector<Tensor> biases, ScalarType dtype, int64_t per_group,
                         double scale, double outer_scale, bool backward);
std::tuple<Tensor, Tensor> run_dense_blocks_forward(const Tensor& x, const Tensor& packed, int64_t growth,
                                                    int64_t blocks, int64_t per_group, double slope, double scale,
                                                    double outer_scale, int64_t keep);
// Returns the gradient to x and, for a single block, the gradient to each activation's input.
std::tuple<Tensor, Tensor> run_dense_blocks_backward(const Tensor& grad, const Tensor& saved, const Tensor& packed,
                                                     int64_t growth, int64_t blocks, int64_t per_group, double slope,
                                                     double scale, double outer_scale);

}  // namespace andfast::convolution
