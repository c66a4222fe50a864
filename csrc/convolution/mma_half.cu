#include "mma_launch.cuh"

namespace andfast::convolution::mma {

template cudaError_t launch_dtype<Dtype::kHalf>(const Problem&, int, cudaStream_t);

}
