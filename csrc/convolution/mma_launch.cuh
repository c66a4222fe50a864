// The entry points of the mma.sync kernels and their launches. Each dtype's are compiled in a file of their own.
#pragma once

#include <cuda_runtime_api.h>

#include "mma_kernel.h"

namespace andfast::convolution::mma {

template <Dtype kDtype, Kernel kKernel>
__global__ void __launch_bounds__(Tile<kKernel>::kThreads, Tile<kKernel>::kCtas)
    mma_convolution(const __grid_constant__ Launch launch) {
  convolve<kDtype, kKernel>(launch);
}

template <Dtype kDtype, Kernel kKernel>
cudaError_t launch_kernel(const Problem& problem, int multiprocessors, cudaStream_t stream) {
  using T = Tile<kKernel>;
  const auto kernel = mma_convolution<kDtype, kKernel>;
  // Beyond 48 kB a kernel has to ask, once for each device; asking again costs less than remembering.
  const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes);
  if (error != cudaSuccess) {
    return error;
  }
  const Launch l = plan<kKernel>(problem);
  if (l.tiles > 0) {
    kernel<<<ctas_of<kKernel>(l, multiprocessors), T::kThreads, T::kSharedBytes, stream>>>(l);
  }
  return cudaGetLastError();
}

template <Dtype kDtype>
cudaError_t launch_dtype(const Problem& problem, int multiprocessors, cudaStream_t stream) {
  switch (kernel_for(shape_of(problem))) {
    case Kernel::kWide: return launch_kernel<kDtype, Kernel::kWide>(problem, multiprocessors, stream);
    case Kernel::kGrowth: return launch_kernel<kDtype, Kernel::kGrowth>(problem, multiprocessors, stream);
    case Kernel::kNarrow: return launch_kernel<kDtype, Kernel::kNarrow>(problem, multiprocessors, stream);
    case Kernel::kFewInputs: return launch_kernel<kDtype, Kernel::kFewInputs>(problem, multiprocessors, stream);
    case Kernel::kResampled: return launch_kernel<kDtype, Kernel::kResampled>(problem, multiprocessors, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace andfast::convolution::mma
