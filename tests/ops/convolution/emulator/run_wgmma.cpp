// The sm_90a kernels of csrc/convolution on the CPU, for tests that load this as a shared library.
#include "shifted_operand.h"
#include "sm90_launch.h"
#include "sm90_rows.cuh"
#include "sm90_taps.cuh"

namespace {

using namespace andfast::convolution;
using namespace andfast::convolution::sm90;

struct Report {
  int64_t phases;         // of wgmma's operands, eight rows of 16 bytes each
  int64_t wavefronts;     // as many without bank conflicts
  int64_t copied_bytes;   // to shared memory, without zeros
  int64_t products;       // wgmma
  int64_t loads;          // bytes of operands that wgmma reads
  int64_t tiles;
};

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
int64_t launch(const Problem& problem, int multiprocessors) {
  Launch l;
  for (int s = 0; s < 2; ++s) {
    const Channels& source = problem.sources[problem.sources[1].count > 0 ? s : 0];
    l.maps[s] = map_of(kRows ? rows_view(problem, source) : taps_view<kResampling>(problem, source));
  }
  fill_launch<kRows, kResampling>(l, problem);
  const int blocks = std::min(l.tiles, multiprocessors);
  const int threads = kRows ? Rows::kThreads : Taps<kResampling>::kThreads;
  emulator::launch_sm90(blocks, threads, l.plan.shared_bytes, 65536 / threads / 8 * 8, [&l] {
    if constexpr (!kRows) {
      convolve_taps<kDtype, kResampling>(l);
    } else if (rows_in_pairs(l.problem)) {
      convolve_rows<kDtype, true>(l);
    } else {
      convolve_rows<kDtype, false>(l);
    }
  });
  return l.tiles;
}

}  // namespace

extern "C" bool supports_shape(const Shape* shape) { return supports(*shape); }

// {resident, stages, chunks, bytes of shared memory}
extern "C" void plan_of(const Shape* shape, int64_t* numbers) {
  const Plan p = with_kernel(*shape, [&]<bool kRows, Resampling kResampling>() { return plan<kRows, kResampling>(*shape); });
  const int64_t all[4] = {p.resident, p.stages, p.chunks, p.shared_bytes};
  std::copy(std::begin(all), std::end(all), numbers);
}

extern "C" int64_t packed_elements(const Shape* shape) { return sm90::packed_elements(*shape); }

extern "C" void pack_weights(const PackJob* job) {
  emulator::regions = {{nullptr, INT64_MAX, nullptr}};  // packing reads anywhere
  with_kernel(job->shape, [&]<bool kRows, Resampling kResampling>() {
    const Plan p = plan<kRows, kResampling>(job->shape);
    const auto elements = static_cast<int>(sm90::packed_elements(job->shape));
    for (int i = 0; i < elements; ++i) {
      const float value = packed_weight(*job, 0, packed_element<kRows, kResampling>(p, i));
      const uint32_t rounded = job->shape.dtype == Dtype::kHalf ? pack<Dtype::kHalf>(value, 0)
                                                                : pack<Dtype::kBFloat16>(value, 0);
      static_cast<uint16_t*>(job->packed)[i] = static_cast<uint16_t>(rounded);
    }
  });
  for (int n = 0; job->packed_bias != nullptr && n < padded_bias(job->shape); ++n) {
    job->packed_bias[n] = packed_bias(*job, n);
  }
}

// How asynchronous work is scheduled from here on.
extern "C" void set_schedule(int completion, bool strict) {
  emulator::schedule = {static_cast<emulator::Completion>(completion), strict};
}

struct Setting {
  const emulator::Region* regions;  // that kernels may read and, where writes are counted, write
  int32_t n_regions;
  int32_t multiprocessors;
  int32_t order;
  uint64_t seed;
};

namespace {

void start(const Setting& setting) {
  using namespace emulator;
  machine.errors.clear();
  machine.first_error.clear();
  machine.aborted = false;
  machine.order = static_cast<Order>(setting.order);
  machine.random_state = 88172645463325252ull + 7919 * setting.seed;
  regions.assign(setting.regions, setting.regions + setting.n_regions);
  sm90_counts = {};
  shared.phases = shared.wavefronts = 0;
}

}  // namespace

// Runs one problem. Returns the first error's text, or null.
extern "C" const char* run(const Problem* problem, const Setting* setting, Report* report) {
  using namespace emulator;
  start(*setting);
  const Shape shape = shape_of(*problem);
  const int64_t tiles = with_kernel(shape, [&]<bool kRows, Resampling kResampling>() {
#ifndef ANDFAST_ONLY_BFLOAT16
    if (shape.dtype == Dtype::kHalf) return ::launch<Dtype::kHalf, kRows, kResampling>(*problem, setting->multiprocessors);
#endif
    return ::launch<Dtype::kBFloat16, kRows, kResampling>(*problem, setting->multiprocessors);
  });
  *report = {shared.phases, shared.wavefronts, sm90_counts.copied_bytes, sm90_counts.products, sm90_counts.operand_bytes,
             tiles};
  return machine.first_error.empty() ? nullptr : machine.first_error.c_str();
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
  return machine.first_error.empty() ? nullptr : machine.first_error.c_str();
}
