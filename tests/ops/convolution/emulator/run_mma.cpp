// The mma.sync kernels of csrc/convolution on the CPU, for tests that load this as a shared library.
#include "mma_kernel.h"

namespace {

using namespace andfast::convolution;
using namespace andfast::convolution::mma;

struct Report {
  int64_t phases;       // of ldmatrix
  int64_t wavefronts;   // as many without bank conflicts
  int64_t copied_bytes;
  int64_t products;     // m16n8k16
  int64_t loads;        // ldmatrix.x4
  int64_t tiles;
};

template <typename Call>
void with_kernel(const Shape& shape, const Call& call) {
  const auto with = [&]<Dtype kDtype>() {
    switch (kernel_for(shape)) {
      case Kernel::kWide: return call.template operator()<kDtype, Kernel::kWide>();
#ifndef ANDFAST_ONLY_WIDE
      case Kernel::kGrowth: return call.template operator()<kDtype, Kernel::kGrowth>();
      case Kernel::kNarrow: return call.template operator()<kDtype, Kernel::kNarrow>();
      case Kernel::kFewInputs: return call.template operator()<kDtype, Kernel::kFewInputs>();
      case Kernel::kResampled: return call.template operator()<kDtype, Kernel::kResampled>();
#endif
      default: emulator::error("no such kernel");
    }
  };
#ifndef ANDFAST_ONLY_WIDE  // in bf16, which compiles in half of the time
  if (shape.dtype == Dtype::kHalf) {
    return with.template operator()<Dtype::kHalf>();
  }
#endif
  with.template operator()<Dtype::kBFloat16>();
}

}  // namespace

extern "C" void struct_sizes(int64_t* sizes) {
  sizes[0] = sizeof(Problem);
  sizes[1] = sizeof(PackJob);
  sizes[2] = sizeof(Shape);
}

extern "C" int64_t packed_elements(const Shape* shape) {
  int64_t elements = 0;
  with_kernel(*shape, [&]<Dtype kDtype, Kernel kKernel>() { elements = mma::packed_elements<kKernel>(*shape); });
  return elements;
}

extern "C" void pack_weights(const PackJob* job) {
  emulator::regions = {{nullptr, INT64_MAX, nullptr}};  // packing reads anywhere
  with_kernel(job->shape, [&]<Dtype kDtype, Kernel kKernel>() {
    const int elements = mma::packed_elements<kKernel>(job->shape);
    for (int64_t image = 0; image < job->images; ++image) {
      for (int i = 0; i < elements; ++i) {
        const float value = packed_weight(*job, image, packed_element<kKernel>(job->shape, i));
        static_cast<uint16_t*>(job->packed)[image * elements + i] = static_cast<uint16_t>(pack<kDtype>(value, 0));
      }
    }
  });
}

// Returns the first error's text, or null. Tensors that the kernel may read or write are `regions`.
extern "C" const char* run(const Problem* problem, const emulator::Region* regions, int n_regions, int multiprocessors,
                           int order, uint64_t seed, Report* report) {
  using namespace emulator;
  machine.errors.clear();
  machine.first_error.clear();
  machine.aborted = false;
  machine.order = static_cast<Order>(order);
  machine.random_state = 88172645463325252ull + 7919 * seed;
  emulator::regions.assign(regions, regions + n_regions);
  counts = {};
  shared.phases = shared.wavefronts = 0;
  with_kernel(shape_of(*problem), [&]<Dtype kDtype, Kernel kKernel>() {
    const Launch l = plan<kKernel>(*problem);
    launch(ctas_of<kKernel>(l, multiprocessors), Tile<kKernel>::kThreads, Tile<kKernel>::kSharedBytes,
           [&l] { convolve<kDtype, kKernel>(l); });
    report->tiles = l.tiles;
  });
  report->phases = shared.phases;
  report->wavefronts = shared.wavefronts;
  report->copied_bytes = counts.copied_bytes;
  report->products = counts.products;
  report->loads = counts.loads;
  return machine.first_error.empty() ? nullptr : machine.first_error.c_str();
}
