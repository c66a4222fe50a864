// Tiles of the sm_90a kernels in shared memory, and the order of their packed weights. Host and device.
//
// Everything in shared memory is rows of 32 channels, 64 bytes, with the 64-byte swizzle of TMA and wgmma: the 16-byte
// unit u of the row at address a lies at unit u ^ ((a >> 7) & 3). A chunk is 32 channels of the reduction.
#pragma once

#include <cstdint>

#include "mma_tile.h"
#include "problem.h"

namespace andfast::convolution::sm90 {

constexpr int kChunkChannels = 32;
constexpr int kRowBytes = kChunkChannels * 2;
constexpr int kUnitChannels = 8;              // of a swizzled 16-byte unit
constexpr int kSwizzlePeriod = 512;           // bytes after which the swizzle repeats; tiles begin on a multiple of it
constexpr int kMaxSharedBytes = 232448;       // of a CTA on compute capability 9.0
constexpr int kBarrierBytes = 128;            // room for the mbarriers
constexpr int kMaxStages = 6;

ANDFAST_HOST_DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// ---- 32 outputs: sm90_rows.cuh

struct Rows {
  static constexpr int kOutputs = 32;
  static constexpr int kColumns = 64;                    // of a tile, those of its neighbors included
  static constexpr int kColumnStep = 62;                 // from tile to tile where the image is wider than 64
  static constexpr int kHeight = 8;                      // rows of results
  static constexpr int kHaloHeight = kHeight + 2;
  static constexpr int kBlocks = 4;                      // blocks of 16 columns, each brought by a TMA copy of its own
  static constexpr int kBlockBytes = kHaloHeight * 16 * kRowBytes;
  static constexpr int kStageBytes = kBlocks * kBlockBytes;
  static constexpr int kChunkPhases = 1;
  static constexpr int kSlots = 9;                       // taps of a chunk of weights
  static constexpr int kWeightBytes = kSlots * kOutputs * kRowBytes;
  static constexpr int kConsumers = 2;                   // warpgroups
  static constexpr int kThreads = 128 * (kConsumers + 1);

  static constexpr ANDFAST_HOST_DEVICE int tile_columns(int width) {
    return width <= kColumns ? 1 : ceil_div(width - 2, kColumnStep);
  }
  // Row of an output channel in a tap's 32 rows of weights: a thread's accumulators are then eight adjacent channels.
  static constexpr ANDFAST_HOST_DEVICE int weight_row(int o) { return 8 * (o % 8 / 2) + 2 * (o / 8) + o % 2; }
  static constexpr ANDFAST_HOST_DEVICE int output_of_row(int r) { return 8 * (r % 8 / 2) + 2 * (r / 8) + r % 2; }
};

// ---- 64 outputs: sm90_taps.cuh

template <Resampling kResampling>
struct Taps {
  static constexpr bool kUp = kResampling == Resampling::kUpsample;
  static constexpr bool kDown = kResampling == Resampling::kUpsampleAdjoint;
  static constexpr int kOutputs = 64;
  static constexpr int kWidth = 16;                      // of a tile, on the smaller grid
  static constexpr int kHeight = kUp ? 16 : 32;
  static constexpr int kPitch = kWidth + 2;              // pixels from row to row of the tile with its halo
  static constexpr int kHaloHeight = kHeight + 2;
  static constexpr int kHaloBytes = kPitch * kHaloHeight * kRowBytes;
  static constexpr int kStageBytes = ceil_div(kHaloBytes, 1024) * 1024;
  static constexpr int kPhases = kUp || kDown ? 4 : 1;   // (row, column) parities on the larger grid
  static constexpr int kTaps = kUp || kDown ? 4 : 9;     // that a phase has
  static constexpr int kChunkPhases = kDown ? 4 : 1;     // stages that 32 channels take: of each phase its pixels
  static constexpr int kSlots = kUp ? 16 : kTaps;        // taps of a stage's weights
  static constexpr int kWeightBytes = kSlots * kOutputs * kRowBytes;
  static constexpr int kConsumers = 4;
  static constexpr int kThreads = 128 * (kConsumers + 1);

  // Row of an output channel in a tap's 64 rows: transposed pairs of 8 x 8 accumulators are then four adjacent channels.
  static constexpr ANDFAST_HOST_DEVICE int weight_row(int o) {
    return o / 16 * 16 + 8 * (o / 2 % 2) + 2 * (o % 16 / 4) + o % 2;
  }
  static constexpr ANDFAST_HOST_DEVICE int output_of_row(int r) {
    return r / 16 * 16 + 4 * (r % 8 / 2) + 2 * (r % 16 / 8) + r % 2;
  }
};

// How a shape is run: stages in the ring, and whether all weights stay in shared memory from tile to tile.
struct Plan {
  bool fits;
  bool resident;
  int stages;
  int source_chunks[2];  // stages that each source takes
  int chunks;            // both together
  int shared_bytes;
};

ANDFAST_HOST_DEVICE constexpr int shared_bytes(int stages, int stage_bytes, int chunks, int weight_bytes, bool resident) {
  // 1024: the tiles begin on a multiple of it, wherever dynamic shared memory begins.
  return 1024 + (resident ? chunks * weight_bytes : 0) + stages * (stage_bytes + (resident ? 0 : weight_bytes)) +
         kBarrierBytes;
}

// Stages that a source's channels take.
ANDFAST_HOST_DEVICE constexpr int source_chunks(const Shape& shape, int source, int chunk_phases) {
  return ceil_div(shape.source_channels[source], kChunkChannels) * chunk_phases;
}

// With resident weights, as many stages as fit, at least `min_stages`; else weights are streamed with the tiles, if they may.
ANDFAST_HOST_DEVICE constexpr Plan make_plan(
    const Shape& shape, int stage_bytes, int weight_bytes, int chunk_phases, int min_stages, bool may_stream) {
  Plan plan{};
  for (int s = 0; s < 2; ++s) plan.source_chunks[s] = source_chunks(shape, s, chunk_phases);
  plan.chunks = plan.source_chunks[0] + plan.source_chunks[1];
  for (int way = 0; way < (may_stream ? 2 : 1); ++way) {
    const bool resident = way == 0;
    for (int stages = kMaxStages; stages >= (resident ? min_stages : 2); --stages) {
      const int bytes = shared_bytes(stages, stage_bytes, plan.chunks, weight_bytes, resident);
      if (bytes > kMaxSharedBytes) continue;
      plan.fits = true;
      plan.resident = resident;
      plan.stages = stages;
      plan.shared_bytes = bytes;
      return plan;
    }
  }
  return plan;
}

ANDFAST_HOST_DEVICE constexpr Plan plan_rows(const Shape& shape) {
  return make_plan(shape, Rows::kStageBytes, Rows::kWeightBytes, 1, 2, false);
}

template <Resampling kResampling>
ANDFAST_HOST_DEVICE constexpr Plan plan_taps(const Shape& shape) {
  using T = Taps<kResampling>;
  // Three stages where weights could be streamed instead; upsampling keeps a tile's chunks for all four phases, so that it
  // needs them twice for the next tile to arrive meanwhile.
  const int chunks = source_chunks(shape, 0, 1) + source_chunks(shape, 1, 1);
  const int min_stages = T::kUp ? 2 * chunks : T::kDown ? 2 : 3;
  return make_plan(shape, T::kStageBytes, T::kWeightBytes, T::kChunkPhases, min_stages, !T::kUp && !T::kDown);
}

}  // namespace andfast::convolution::sm90
