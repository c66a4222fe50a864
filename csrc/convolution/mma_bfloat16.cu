#include "mma_launch.cuh"

namespace andfast::convolution::mma {

template cudaError_t launch_dtype<Dtype::kBFloat16>(const Problem&, int, cudaStream_t);

}
