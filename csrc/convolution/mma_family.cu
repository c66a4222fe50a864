// The mma.sync kernels as a family, and their packing kernel.
#include "family.h"
#include "mma_tile.h"
#include "pack.cuh"

namespace andfast::convolution {
namespace mma {

template <Dtype kDtype>
cudaError_t launch_dtype(const Problem& problem, int multiprocessors, cudaStream_t stream);
extern template cudaError_t launch_dtype<Dtype::kBFloat16>(const Problem&, int, cudaStream_t);
extern template cudaError_t launch_dtype<Dtype::kHalf>(const Problem&, int, cudaStream_t);

namespace {

// What depends on the kernel that a shape gets: call.operator()<kKernel>().
template <typename Call>
ANDFAST_HOST_DEVICE auto for_kernel(const Shape& shape, const Call& call) {
  switch (kernel_for(shape)) {
    case Kernel::kGrowth: return call.template operator()<Kernel::kGrowth>();
    case Kernel::kNarrow: return call.template operator()<Kernel::kNarrow>();
    case Kernel::kFewInputs: return call.template operator()<Kernel::kFewInputs>();
    case Kernel::kResampled: return call.template operator()<Kernel::kResampled>();
    default: return call.template operator()<Kernel::kWide>();
  }
}

struct Layout {
  static ANDFAST_HOST_DEVICE int elements(const Shape& shape) {
    return for_kernel(shape, [&]<Kernel kKernel>() { return mma::packed_elements<kKernel>(shape); });
  }
  static ANDFAST_HOST_DEVICE PackedElement element(const Shape& shape, int at) {
    return for_kernel(shape, [&]<Kernel kKernel>() { return packed_element<kKernel>(shape, at); });
  }
};

bool runs_on(int capability) { return capability >= 80; }

bool supports(const Shape& shape) {
  const bool resampled = shape.resampling != Resampling::kNone;
  return !resampled || (shape.source_channels[1] == 0 && shape.out_channels >= 8);
}

int64_t elements_of(const Shape& shape) { return Layout::elements(shape); }

cudaError_t pack(const PackJob* jobs, int n_jobs, cudaStream_t stream) {
  return launch_pack<Layout>(jobs, n_jobs, stream);
}

cudaError_t launch(const Problem& problem, int multiprocessors, cudaStream_t stream) {
  return problem.dtype == Dtype::kHalf ? launch_dtype<Dtype::kHalf>(problem, multiprocessors, stream)
                                       : launch_dtype<Dtype::kBFloat16>(problem, multiprocessors, stream);
}

}  // namespace
}  // namespace mma

const Family kMmaFamily = {"mma", mma::runs_on, mma::supports, mma::elements_of, mma::pack, mma::launch};

}  // namespace andfast::convolution
