// The mma.sync kernels of csrc/convolution on the CPU, for tests that load this as a shared library.
#include "mma_kernel.h"

#include "emulator/driver.h"

namespace {

using namespace andfast::convolution::mma;

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

int64_t packed_count(const Shape& shape) {
  int64_t elements = 0;
  with_kernel(shape, [&]<Dtype kDtype, Kernel kKernel>() { elements = mma::packed_elements<kKernel>(shape); });
  return elements;
}

PackedElement packed_element_at(const Shape& shape, int at) {
  PackedElement element;
  with_kernel(shape, [&]<Dtype kDtype, Kernel kKernel>() { element = packed_element<kKernel>(shape, at); });
  return element;
}

int64_t launch_problem(const Problem& problem, int multiprocessors) {
  int64_t tiles = 0;
  with_kernel(shape_of(problem), [&]<Dtype kDtype, Kernel kKernel>() {
    const Launch l = plan<kKernel>(problem);
    emulator::launch(ctas_of<kKernel>(l, multiprocessors), Tile<kKernel>::kThreads, Tile<kKernel>::kSharedBytes,
                     [&l] { convolve<kDtype, kKernel>(l); });
    tiles = l.tiles;
  });
  return tiles;
}

void reset_counts() { emulator::counts = {}; }

void fill_counts(Report& report) {
  report.copied_bytes = emulator::counts.copied_bytes;
  report.products = emulator::counts.products;
  report.loads = emulator::counts.loads;
}

}  // namespace

// Threads, CTAs per multiprocessor that are intended, and bytes of shared memory of the kernel that a shape gets.
extern "C" void tile_numbers(const Shape* shape, int64_t* numbers) {
  with_kernel(*shape, [&]<Dtype kDtype, Kernel kKernel>() {
    using T = Tile<kKernel>;
    const int64_t of_tile[] = {T::kThreads, T::kCtas, T::kSharedBytes};
    std::copy(std::begin(of_tile), std::end(of_tile), numbers);
  });
}
