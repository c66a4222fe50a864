// Anti-aliased pooling on a GPU: what the kernels' file offers to blur_pool_cuda_host.cpp. No torch in it, so that nvcc has
// little to read.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "blur_pool_plan.h"

namespace andfast::pool {

enum class Dtype { kFloat, kDouble, kHalf, kBFloat16 };

// Whether kernels of their own exist for this filter and type; else those for any filter are used.
bool has_tiles(Dtype dtype, int64_t factor, int64_t n_taps);

// Launches on the current device. large: (images, height, width, inner); small: (images, height / factor, ...). The
// forward pass reads large and writes small, the backward pass the other way round. Sizes must not be empty.
// `tiles`: has_tiles says so, and the sizes fit 32-bit places in a row.
void launch(bool forward, bool tiles, Dtype dtype, const Sizes& sizes, const std::vector<double>& taps, void* large,
            void* small, int multiprocessors, cudaStream_t stream);

}  // namespace andfast::pool
