// What a driver offers to the tests, for the kernels that the file which includes this has:
//
//     packed_count(shape)             elements of one image's packed weights
//     packed_element_at(shape, i)     which weights element i sums
//     launch_problem(problem, n)      runs a problem on n CTAs, returns its tiles
//     reset_counts(), fill_counts(r)  counts of what ran, for a Report
#pragma once

#include "dense_block.h"

namespace {

using namespace andfast::convolution;

struct Report {
  int64_t phases;       // of operands' eight 16-byte rows
  int64_t wavefronts;   // as many without bank conflicts
  int64_t copied_bytes; // to shared memory, without zeros
  int64_t products;     // mma.sync m16n8k16, or wgmma
  int64_t loads;        // ldmatrix.x4, or bytes of operands that wgmma reads
  int64_t tiles;
};

struct Setting {
  const emulator::Region* regions;  // that kernels may read and, where writes are counted, write
  int32_t n_regions;
  int32_t multiprocessors;
  int32_t order;
  uint64_t seed;
};

int64_t packed_count(const Shape& shape);
PackedElement packed_element_at(const Shape& shape, int at);
int64_t launch_problem(const Problem& problem, int multiprocessors);
void reset_counts();
void fill_counts(Report& report);

void start(const Setting& setting) {
  using namespace emulator;
  machine.errors.clear();
  machine.first_error.clear();
  machine.aborted = false;
  machine.order = static_cast<Order>(setting.order);
  machine.random_state = 88172645463325252ull + 7919 * setting.seed;
  shared.phases = shared.wavefronts = 0;
  reset_counts();
}

int64_t launch_setting(const Problem& problem, const Setting& setting) {
  emulator::regions.assign(setting.regions, setting.regions + setting.n_regions);
  return launch_problem(problem, setting.multiprocessors);
}

const char* first_error() {
  const std::string& error = emulator::machine.first_error;
  return error.empty() ? nullptr : error.c_str();
}

const char* finish_run(int64_t tiles, Report* report) {
  report->phases = emulator::shared.phases;
  report->wavefronts = emulator::shared.wavefronts;
  report->tiles = tiles;
  fill_counts(*report);
  return first_error();
}

}  // namespace

extern "C" void struct_sizes(int64_t* sizes) {
  sizes[0] = sizeof(Problem);
  sizes[1] = sizeof(PackJob);
  sizes[2] = sizeof(Shape);
}

extern "C" int64_t packed_elements(const Shape* shape) { return packed_count(*shape); }

extern "C" void pack_weights(const PackJob* job) {
  emulator::regions = {{nullptr, INT64_MAX, nullptr}};  // packing reads anywhere
  const auto elements = static_cast<int>(packed_count(job->shape));
  for (int64_t image = 0; image < job->images; ++image) {
    for (int i = 0; i < elements; ++i) {
      const float value = packed_weight(*job, image, packed_element_at(job->shape, i));
      const uint32_t bits = job->shape.dtype == Dtype::kHalf ? pack<Dtype::kHalf>(value, 0)
                                                             : pack<Dtype::kBFloat16>(value, 0);
      static_cast<uint16_t*>(job->packed)[image * elements + i] = static_cast<uint16_t>(bits);
    }
  }
  for (int n = 0; job->packed_bias != nullptr && n < padded_bias(job->shape); ++n) {
    job->packed_bias[n] = packed_bias(*job, n);
  }
}

namespace {

class EmulatorBackend final : public Backend {
 public:
  explicit EmulatorBackend(const Setting& setting) : setting_(setting) {}
  int64_t packed_elements(const Shape& shape) const override { return packed_count(shape); }
  void pack(const std::vector<PackJob>& jobs) override {
    for (const PackJob& job : jobs) {
      pack_weights(&job);
    }
  }
  void launch(const Problem& problem) override { tiles += launch_setting(problem, setting_); }

  int64_t tiles = 0;

 private:
  const Setting& setting_;
};

}  // namespace

// Runs one problem. Returns the first error's text, or null.
extern "C" const char* run(const Problem* problem, const Setting* setting, Report* report) {
  start(*setting);
  return finish_run(launch_setting(*problem, *setting), report);
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
