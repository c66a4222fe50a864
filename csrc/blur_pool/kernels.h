// Interface between kernels.cu and cuda_host.cpp. Free of torch headers, so that nvcc compiles it quickly.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "plan.h"

namespace andfast::pool {

enum class Dtype { kFloat, kDouble, kHalf, kBFloat16 };

// Whether tiled kernels exist for this filter and dtype; otherwise any_filter.h serves.
bool has_tiles(Dtype dtype, int64_t factor, int64_t n_taps);

// Launches on the current device. large: (images, height, width, inner); small: (images, height / factor, width /
// factor, inner). Forward reads large and writes small, backward the other way round. Tensors must not be empty.
// tiles: use the tiled kernels, which need has_tiles() and sizes below 2^30 per row.
void launch(bool forward, bool tiles, Dtype dtype, const Sizes& sizes, const std::vector<double>& taps, void* large,
            void* small, int multiprocessors, cudaStream_t stream);

}  // namespace andfast::pool
