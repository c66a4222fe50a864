// How the mma.sync kernels cut the work: tiles, chunks of the reduction, packed weights. Plain arithmetic for host and device.
#pragma once

#include "pack.h"

namespace andfast::convolution::mma {

// The kernels that are compiled, each for both dtypes.
//
//                 taps   out   chunk  warps   CTAs per multiprocessor   for
//   kWide         3 x 3   64     32     8               1               33 and more outputs
//   kGrowth       3 x 3   32     32     4               2               8 to 32 outputs
//   kNarrow       3 x 3    8     32     4               2               fewer outputs: conv_last
//   kFewInputs    3 x 3   64     16     4               2               up to 16 inputs: conv_first
//   kResampled    2 x 2   64     32     4               2               upsampling and its adjoint, see below
enum class Kernel : int32_t { kWide, kGrowth, kNarrow, kFewInputs, kResampled };

template <Kernel kKernel>
struct Tile {
  static constexpr bool kNarrow = kKernel == Kernel::kNarrow;
  static constexpr int kTaps = kKernel == Kernel::kResampled ? 2 : 3;  // along each axis
  static constexpr int kOut = kKernel == Kernel::kGrowth ? 32 : kNarrow ? 16 : 64;  // rows of packed weights per tap
  static constexpr int kColumns = kNarrow ? 1 : kOut / 8;  // of accumulators, each 8 outputs wide
  static constexpr int kChunk = kKernel == Kernel::kFewInputs ? 16 : 32;  // input channels of a stage
  static constexpr int kWarps = kKernel == Kernel::kWide ? 8 : 4;
  static constexpr int kCtas = kWarps == 8 ? 1 : 2;  // per multiprocessor
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kStages = 2;

  static constexpr int kWarpRows = 4;  // of pixels, 16 wide: four m16 operands
  static constexpr int kWidth = 16;
  static constexpr int kHeight = kWarpRows * kWarps;
  static constexpr int kHaloWidth = kWidth + 2;
  static constexpr int kHaloHeight = kHeight + 2;

  static constexpr int kRowBytes = 2 * kChunk;  // of one pixel or one row of weights in shared memory
  static constexpr int kRowUnits = kRowBytes / 16;
  static constexpr int kHaloBytes = kHaloWidth * kHaloHeight * kRowBytes;
  static constexpr int kWeightBytes = kTaps * kTaps * kOut * kRowBytes;
  static constexpr int kStageBytes = kHaloBytes + kWeightBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
};

// Where the 16-byte unit of a row lies. Eight rows that follow each other fill all 32 banks, whichever unit they read.
template <int kRowBytes>
ANDFAST_HOST_DEVICE int swizzled_unit(int row, int unit) {
  static_assert(kRowBytes == 64 || kRowBytes == 32);
  return kRowBytes == 64 ? unit ^ (row >> 1 & 3) : unit ^ (row >> 2 & 1);
}

// Upsampling by 2 costs 4 taps instead of 9: outputs at the same place (py, px) of their 2 x 2 block, a phase, read a
// 2 x 2 window of the small grid, by sums of the original taps. Its adjoint likewise reads each phase of its source, so the
// phases are 4 times as many chunks. In units of the small grid, from the pixel's own place, the window begins at
//
//     upsampling, phase p:  p - 1        adjoint, phase p:  -p
//
// With q = p for upsampling and 1 - p for the adjoint it begins q - 1 away, and tap r sums the original taps
//
//     r = 0:  0 to q         r = 1:  q + 1 to 2
ANDFAST_HOST_DEVICE int window_start(Resampling resampling, int phase) {
  return resampling == Resampling::kUpsample ? phase : 1 - phase;
}

// Sizes of the reduction and of the packed weights, (images, groups, out phases, chunks, taps, kOut, kChunk).
struct Reduction {
  int chunks_of[2];  // of a source; the last is filled up with zeros
  int chunks;        // of all sources and, for the adjoint, phases
  int out_phases;    // 4 for upsampling
  int groups;        // of kOut outputs

  ANDFAST_HOST_DEVICE int blocks() const { return groups * out_phases * chunks; }
};

template <Kernel kKernel>
ANDFAST_HOST_DEVICE Reduction reduction_of(const Shape& shape) {
  using T = Tile<kKernel>;
  Reduction r;
  for (int s = 0; s < 2; ++s) {
    r.chunks_of[s] = (shape.source_channels[s] + T::kChunk - 1) / T::kChunk;
  }
  r.chunks = (r.chunks_of[0] + r.chunks_of[1]) * (shape.resampling == Resampling::kUpsampleAdjoint ? 4 : 1);
  r.out_phases = shape.resampling == Resampling::kUpsample ? 4 : 1;
  r.groups = (shape.out_channels + T::kOut - 1) / T::kOut;
  return r;
}

// The logical weights of an element of packed weights; `at` is its place within those of an image.
template <Kernel kKernel>
ANDFAST_HOST_DEVICE PackedElement packed_element(const Shape& shape, int at) {
  using T = Tile<kKernel>;
  const Reduction r = reduction_of<kKernel>(shape);
  const int place = at % T::kChunk;  // swizzled
  at /= T::kChunk;
  const int row = at % T::kOut;
  at /= T::kOut;
  const int ky = at / T::kTaps % T::kTaps;
  const int kx = at % T::kTaps;
  at /= T::kTaps * T::kTaps;
  int chunk = at % r.chunks;
  at /= r.chunks;
  int phase = at % r.out_phases;
  const int group = at / r.out_phases;

  PackedElement e;
  e.output = group * T::kOut + row;
  if (shape.resampling == Resampling::kUpsampleAdjoint) {
    phase = chunk / r.chunks_of[0];
    chunk %= r.chunks_of[0];
  }
  e.source = chunk >= r.chunks_of[0];
  chunk -= e.source * r.chunks_of[0];
  e.channel = chunk * T::kChunk + swizzled_unit<T::kRowBytes>(row, place / 8) * 8 + place % 8;
  if constexpr (T::kTaps == 3) {
    e.row_taps[0] = e.row_taps[1] = ky;
    e.column_taps[0] = e.column_taps[1] = kx;
  } else {
    const int qy = window_start(shape.resampling, phase >> 1);
    const int qx = window_start(shape.resampling, phase & 1);
    e.row_taps[0] = ky == 0 ? 0 : qy + 1;
    e.row_taps[1] = ky == 0 ? qy : 2;
    e.column_taps[0] = kx == 0 ? 0 : qx + 1;
    e.column_taps[1] = kx == 0 ? qx : 2;
  }
  return e;
}

template <Kernel kKernel>
ANDFAST_HOST_DEVICE int packed_elements(const Shape& shape) {
  return reduction_of<kKernel>(shape).blocks() * Tile<kKernel>::kWeightBytes / 2;
}

ANDFAST_HOST_DEVICE Kernel kernel_for(const Shape& shape) {
  if (shape.resampling != Resampling::kNone) {
    return Kernel::kResampled;
  }
  if (shape.out_channels < 8) {
    return Kernel::kNarrow;
  }
  if (shape.out_channels <= 32) {
    return Kernel::kGrowth;
  }
  return shape.source_channels[0] + shape.source_channels[1] <= 16 ? Kernel::kFewInputs : Kernel::kWide;
}

// A launch: the problem, and what the host derives from it.
struct Launch {
  Problem problem;
  Reduction reduction;
  int32_t tiles_x;  // tiles of a row of the smaller grid
  int32_t tiles_y;
  int32_t tiles;  // of all images, groups of outputs and phases
};

template <Kernel kKernel>
Launch plan(const Problem& problem) {
  using T = Tile<kKernel>;
  Launch l;
  l.problem = problem;
  l.reduction = reduction_of<kKernel>(shape_of(problem));
  l.tiles_x = (problem.width + T::kWidth - 1) / T::kWidth;
  l.tiles_y = (problem.height + T::kHeight - 1) / T::kHeight;
  l.tiles = problem.images * l.tiles_x * l.tiles_y * l.reduction.groups * l.reduction.out_phases;
  return l;
}

// CTAs that stay resident and share the tiles.
template <Kernel kKernel>
int ctas_of(const Launch& l, int multiprocessors) {
  const int resident = multiprocessors * Tile<kKernel>::kCtas;
  return l.tiles < resident ? l.tiles : resident;
}

}  // namespace andfast::convolution::mma
