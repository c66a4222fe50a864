// The mma.sync kernels of csrc/convolution on the CPU, for tests that load this as a shared library.
#include "dense_block.h"
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
  for (int n = 0; job->packed_bias != nullptr && n < padded_bias(job->shape); ++n) {
    job->packed_bias[n] = packed_bias(*job, n);
  }
}

namespace {

struct Setting {
  const emulator::Region* regions;  // that kernels may read and, where writes are counted, write
  int32_t n_regions;
  int32_t multiprocessors;
  int32_t order;
  uint64_t seed;
};

void start(const Setting& setting) {
  using namespace emulator;
  machine.errors.clear();
  machine.first_error.clear();
  machine.aborted = false;
  machine.order = static_cast<Order>(setting.order);
  machine.random_state = 88172645463325252ull + 7919 * setting.seed;
  counts = {};
  shared.phases = shared.wavefronts = 0;
}

int64_t launch_problem(const Problem& problem, const Setting& setting) {
  emulator::regions.assign(setting.regions, setting.regions + setting.n_regions);
  int64_t tiles = 0;
  with_kernel(shape_of(problem), [&]<Dtype kDtype, Kernel kKernel>() {
    const Launch l = plan<kKernel>(problem);
    emulator::launch(ctas_of<kKernel>(l, setting.multiprocessors), Tile<kKernel>::kThreads,
                     Tile<kKernel>::kSharedBytes, [&l] { convolve<kDtype, kKernel>(l); });
    tiles = l.tiles;
  });
  return tiles;
}

const char* finish_run(int64_t tiles, Report* report) {
  using namespace emulator;
  *report = {shared.phases, shared.wavefronts, counts.copied_bytes, counts.products, counts.loads, tiles};
  return machine.first_error.empty() ? nullptr : machine.first_error.c_str();
}

class EmulatorBackend final : public Backend {
 public:
  explicit EmulatorBackend(const Setting& setting) : setting_(setting) {}
  int64_t packed_elements(const Shape& shape) const override { return ::packed_elements(&shape); }
  void pack(const std::vector<PackJob>& jobs) override {
    for (const PackJob& job : jobs) {
      pack_weights(&job);
    }
  }
  void launch(const Problem& problem) override { tiles += launch_problem(problem, setting_); }

  int64_t tiles = 0;

 private:
  const Setting& setting_;
};

}  // namespace

// Runs one problem. Returns the first error's text, or null.
extern "C" const char* run(const Problem* problem, const Setting* setting, Report* report) {
  start(*setting);
  return finish_run(launch_problem(*problem, *setting), report);
}

extern "C" int64_t dense_blocks_packed_bytes(const DenseBlocks* blocks, bool backward) {
  const Setting none{};
  return packed_bytes(*blocks, EmulatorBackend(none), backward);
}

extern "C" void pack_dense_blocks(const DenseBlocks* blocks, const ConvolutionParameters* parameters, void* packed,
                                  bool backward) {
  const Setting none{};
  EmulatorBackend backend(none);
  const std::vector<ConvolutionParameters> all(parameters, parameters + blocks->blocks * kBlockConvolutions);
  backward ? pack_backward(*blocks, all, packed, backend) : pack_forward(*blocks, all, packed, backend);
}

extern "C" const char* run_dense_blocks(const DenseBlocks* blocks, const Trunk* tensors, const Kept* kept, void* packed,
                                        bool backward, const Setting* setting, Report* report) {
  start(*setting);
  EmulatorBackend backend(*setting);
  backward ? dense_blocks_backward(*blocks, *tensors, *kept, packed, backend)
           : dense_blocks_forward(*blocks, *tensors, *kept, packed, backend);
  return finish_run(backend.tiles, report);
}
