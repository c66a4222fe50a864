// The entry point of the mma.sync kernels; each .cu that includes it instantiates a part of them, to compile side by side.
#pragma once

#include "mma_kernel.h"

namespace andfast::convolution::mma {

template <Dtype kDtype, Kernel kKernel>
__global__ void __launch_bounds__(Tile<kKernel>::kThreads, Tile<kKernel>::kCtas)
    mma_convolution(const __grid_constant__ Launch launch) {
  convolve<kDtype, kKernel>(launch);
}

}
