// shifted_operand.h on a GPU, as a shared library. Pointers are to device memory.
#include "shifted_operand.h"

#include <cuda_runtime.h>

using namespace andfast::convolution;

__global__ void __launch_bounds__(128) shifted_kernel(
    const uint16_t* pixels, const uint16_t* weights, float* out, bool with_base_offset) {
  sm90::multiply_shifted(pixels, weights, out, with_base_offset);
}

// Returns a cudaError_t.
extern "C" int multiply_shifted(const uint16_t* pixels, const uint16_t* weights, float* out, bool with_base_offset) {
  const cudaError_t error =
      cudaFuncSetAttribute(shifted_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sm90::kShiftedSharedBytes);
  if (error != cudaSuccess) return error;
  shifted_kernel<<<1, 128, sm90::kShiftedSharedBytes>>>(pixels, weights, out, with_base_offset);
  return cudaDeviceSynchronize();
}
