// Small kernels around the convolutions: layouts, and activations that no convolution's epilogue can take over.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "problem.h"

namespace andfast::convolution {

// A tensor (N, C, H, W) of 16-bit elements with any strides, in elements.
struct Strided {
  const void* data;
  int64_t size[4];
  int64_t stride[4];
};

// Copies to channels-last (N, H, W, channels), filling channels that `from` does not have with zeros.
cudaError_t copy_to_channels_last(const Strided& from, void* to, int channels, cudaStream_t stream);

// grad[p, c] * (bit c of signs[p] ? 1 : slope), all dense and channels-last; channels are a multiple of 8.
cudaError_t leaky_relu_backward(Dtype dtype, const void* grad, const uint8_t* signs, int sign_bytes, float slope,
                                int64_t pixels, int channels, void* out, cudaStream_t stream);

}  // namespace andfast::convolution
