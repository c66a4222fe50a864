// The sm_90a kernels of csrc/convolution on the CPU, for tests that load this as a shared library.
#include "sm90_launch.h"
#include "sm90_rows.cuh"
#include "sm90_taps.cuh"

#include "emulator/driver.h"
#include "emulator/shifted_operand.h"

namespace {

using namespace andfast::convolution::sm90;

// Whether even widths take the kernel for odd ones, as they do if the driver does not encode their maps.
bool without_pairs = false;

emulator::Map map_of(const TensorView& view) {
  emulator::Map map;
  map.data = static_cast<const uint8_t*>(view.data);
  map.rank = view.rank;
  std::copy(std::begin(view.sizes), std::end(view.sizes), map.sizes);
  std::copy(std::begin(view.strides), std::end(view.strides), map.strides);
  std::copy(std::begin(view.box), std::end(view.box), map.box);
  return map;
}

template <Dtype kDtype, bool kRows, Resampling kResampling>
int64_t launch_kernel(const Problem& problem, int multiprocessors) {
  Launch l;
  const bool pairs = kRows && rows_in_pairs(problem) && !without_pairs;
  for (int s = 0; s < 2; ++s) {
    const Channels& source = problem.sources[problem.sources[1].count > 0 ? s : 0];
    l.maps[s] = map_of(kRows ? rows_view(problem, source, pairs) : taps_view<kResampling>(problem, source));
  }
  fill_launch<kRows, kResampling>(l, problem);
  const int blocks = std::min(l.tiles, multiprocessors);
  const int threads = kRows ? Rows::kThreads : Taps<kResampling>::kThreads;
  emulator::launch_sm90(blocks, threads, l.plan.shared_bytes, 65536 / threads / 8 * 8, [&l, pairs] {
    if constexpr (!kRows) {
      convolve_taps<kDtype, kResampling>(l);
    } else if (pairs) {
      convolve_rows<kDtype, true>(l);
    } else {
      convolve_rows<kDtype, false>(l);
    }
  });
  return l.tiles;
}

int64_t packed_count(const Shape& shape) { return sm90::packed_elements(shape); }

PackedElement packed_element_at(const Shape& shape, int at) {
  return with_kernel(shape, [&]<bool kRows, Resampling kResampling>() {
    return packed_element<kRows, kResampling>(shape, at);
  });
}

int64_t launch_problem(const Problem& problem, int multiprocessors) {
  const Shape shape = shape_of(problem);
  if (!supports(shape)) {
    emulator::error("a shape that these kernels do not support");
    return 0;
  }
  return with_kernel(shape, [&]<bool kRows, Resampling kResampling>() -> int64_t {
#ifndef ANDFAST_ONLY_BFLOAT16  // which compiles in half of the time
    if (shape.dtype == Dtype::kHalf) return launch_kernel<Dtype::kHalf, kRows, kResampling>(problem, multiprocessors);
#endif
    return launch_kernel<Dtype::kBFloat16, kRows, kResampling>(problem, multiprocessors);
  });
}

void reset_counts() { emulator::sm90_counts = {}; }

void fill_counts(Report& report) {
  report.copied_bytes = emulator::sm90_counts.copied_bytes;
  report.products = emulator::sm90_counts.products;
  report.loads = emulator::sm90_counts.operand_bytes;
}

}  // namespace

extern "C" bool supports_shape(const Shape* shape) { return supports(*shape); }

// {resident, stages, chunks, bytes of shared memory}
extern "C" void plan_of(const Shape* shape, int64_t* numbers) {
  const Plan p = with_kernel(*shape, [&]<bool kRows, Resampling kResampling>() { return plan<kRows, kResampling>(*shape); });
  const int64_t all[4] = {p.resident, p.stages, p.chunks, p.shared_bytes};
  std::copy(std::begin(all), std::end(all), numbers);
}

extern "C" void set_without_pairs(bool value) { without_pairs = value; }

// How asynchronous work is scheduled from here on.
extern "C" void set_schedule(int completion, bool strict) {
  emulator::schedule = {static_cast<emulator::Completion>(completion), strict};
}

// shifted_operand.h; the sizes are {rows of pixels, shifts}.
extern "C" void shifted_sizes(int64_t* sizes) {
  sizes[0] = sm90::kShiftedRows;
  sizes[1] = sm90::kShifts;
}
extern "C" const char* multiply_shifted(const uint16_t* pixels, const uint16_t* weights, float* out, uint8_t* writes) {
  using namespace emulator;
  const Setting setting{nullptr, 0, 1, 0, 1};
  start(setting);
  regions = {{reinterpret_cast<uint8_t*>(const_cast<uint16_t*>(pixels)), sm90::kShiftedPixelBytes, nullptr},
             {reinterpret_cast<uint8_t*>(const_cast<uint16_t*>(weights)), sm90::kShiftedWeightBytes, nullptr},
             {reinterpret_cast<uint8_t*>(out), int64_t{sm90::kShifts} * 64 * 128 * 4, writes}};
  launch_sm90(1, 128, sm90::kShiftedSharedBytes, 128, [&] { sm90::multiply_shifted(pixels, weights, out, false); });
  return first_error();
}
