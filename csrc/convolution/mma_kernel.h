// The convolution by mma.sync, for compute capability 8.0 and newer.
//
// A CTA brings the tile of one chunk of input channels into shared memory once, with its halo, by cp.async. The nine taps are
// nine views of it: ldmatrix takes any 16-byte aligned rows, so a shifted operand costs nothing. CTAs are persistent: the
// next tile's first chunk is in flight while a tile's last is multiplied and its results are stored.
//
//     shared memory, one of two stages                       a warp: 4 rows of 16 pixels, all outputs
//     +--------------------------------+                     for each of 3 columns dx, for each 16 channels:
//     | 18 x (4 * warps + 2) pixels    |                       rows y .. y + 5 of the halo, shifted by dx, become
//     |   of kChunk channels           |                       operands A one after the other (four live in registers);
//     +--------------------------------+                       tap (dy, dx) multiplies rows y + dy .. y + dy + 3
//     | 9 taps x kOut x kChunk weights |                       by its weights, operand B
//     +--------------------------------+                     18 loads of A serve 36 products of m16
#pragma once

#include "epilogue.h"
#include "intrinsics.h"
#include "mma_tile.h"

namespace andfast::convolution::mma {

struct TileIndex {
  int image;
  int group;  // of outputs
  int phase;  // of the output, 2 * py + px; 0 without upsampling
  int x;      // first pixel on the smaller grid
  int y;
};

template <Kernel kKernel>
ANDFAST_DEVICE TileIndex tile_at(const Launch& l, int index) {
  TileIndex t;
  t.group = index % l.reduction.groups;
  index /= l.reduction.groups;
  t.phase = index % l.reduction.out_phases;
  index /= l.reduction.out_phases;
  t.x = index % l.tiles_x * Tile<kKernel>::kWidth;
  index /= l.tiles_x;
  t.y = index % l.tiles_y * Tile<kKernel>::kHeight;
  t.image = index / l.tiles_y;
  return t;
}

// Brings chunks into shared memory, one after the other, tile after tile.
template <Kernel kKernel>
class Loader {
  using T = Tile<kKernel>;
  static constexpr int kNothing = -1;

 public:
  ANDFAST_DEVICE Loader(const Launch& launch, uint32_t shared) : l(launch), shared(shared) {
    tile_index = blockIdx.x;
    tile = tile_at<kKernel>(l, tile_index);
  }

  // Starts the copies of the next chunk, if there is one, into `stage`.
  ANDFAST_DEVICE void load_next(int stage) {
    if (tile_index >= l.tiles) {
      return;
    }
    const uint32_t to = shared + stage * T::kStageBytes;
    load_pixels(to);
    load_weights(to + T::kHaloBytes, stage);
    if (++chunk == l.reduction.chunks) {
      chunk = 0;
      tile_index += gridDim.x;
      tile = tile_at<kKernel>(l, tile_index);
    }
  }

 private:
  // What all copies of a thread have in common. A thread copies the same unit of 8 channels of every pixel it visits.
  struct Source {
    const uint8_t* data;  // the unit, in the image's first pixel
    int64_t pixel_bytes;
    int row_pixels;       // from a row of the smaller grid to the next
    int step;             // from a pixel of the smaller grid to the next
    bool exists;          // the channels; else they are zeros
  };

  ANDFAST_DEVICE Source source_of_chunk(int unit) const {
    const Problem& p = l.problem;
    const bool second = T::kTaps == 3 && chunk >= l.reduction.chunks_of[0];
    const Channels& channels = p.sources[second];
    const bool adjoint = p.resampling == Resampling::kUpsampleAdjoint;
    const int step = adjoint ? 2 : 1;
    int channel = chunk - (second ? l.reduction.chunks_of[0] : 0);
    int64_t pixel = int64_t{tile.image} * p.height * step * p.width * step;
    if (adjoint) {
      const int phase = channel / l.reduction.chunks_of[0];
      channel -= phase * l.reduction.chunks_of[0];
      pixel += (phase >> 1) * 2 * p.width + (phase & 1);
    }
    channel = channel * T::kChunk + 8 * unit;
    const int64_t pixel_bytes = 2 * channels.pixel_stride;
    return {static_cast<const uint8_t*>(channels.data) + pixel * pixel_bytes + 2 * channel, pixel_bytes,
            p.width * step * step, step, channel < channels.count};
  }

  // The 16 columns of the tile first: as many rows at a time as there are threads for. Then the two columns beside them.
  ANDFAST_DEVICE void load_pixels(uint32_t to) const {
    constexpr int kUnits = T::kRowUnits;
    constexpr int kRows = T::kThreads / (T::kWidth * kUnits);
    constexpr int kEdgeRows = T::kThreads / (2 * kUnits);
    const int unit = threadIdx.x % kUnits;
    const Source source = source_of_chunk(unit);
    load_column<kRows>(to, source, unit, 1 + threadIdx.x / kUnits % T::kWidth, threadIdx.x / kUnits / T::kWidth);
    load_column<kEdgeRows>(to, source, unit, threadIdx.x / kUnits % 2 * (T::kHaloWidth - 1), threadIdx.x / kUnits / 2);
  }

  // The unit in every kRows-th pixel of a column of the halo, from `row` on.
  template <int kRows>
  ANDFAST_DEVICE void load_column(uint32_t to, const Source& source, int unit, int column, int row) const {
    const Problem& p = l.problem;
    const bool replicate = p.padding == Padding::kReplicate;
    const int x = tile.x - 1 + column;
    const bool exists = source.exists && (replicate || (x >= 0 && x < p.width));
    const uint8_t* from = source.data + clamped(x, p.width) * source.step * source.pixel_bytes;
    to += (row * T::kHaloWidth + column) * T::kRowBytes + swizzled_unit<T::kRowBytes>(column, unit) * 16;
    const int top = tile.y - 1 + row;
#pragma unroll
    for (int i = 0; i < T::kHaloHeight; i += kRows) {
      if (i + kRows <= T::kHaloHeight || row + i < T::kHaloHeight) {
        const int y = top + i;
        const bool read = exists && (replicate || (y >= 0 && y < p.height));
        copy_async(to + i * T::kHaloWidth * T::kRowBytes,
                   from + clamped(y, p.height) * source.row_pixels * source.pixel_bytes, read ? 16 : 0);
      }
    }
  }

  static ANDFAST_DEVICE int clamped(int at, int size) {
    at = at < 0 ? 0 : at;
    return at < size ? at : size - 1;
  }

  // Weights stay where they are if the stage holds the same ones already: with no more chunks than stages.
  ANDFAST_DEVICE void load_weights(uint32_t to, int stage) {
    const Problem& p = l.problem;
    const Reduction& r = l.reduction;
    const int image = p.per_image_weights ? tile.image : 0;
    const int block = ((image * r.groups + tile.group) * r.out_phases + tile.phase) * r.chunks + chunk;
    if (block == (stage == 0 ? held_by_0 : held_by_1)) {
      return;
    }
    (stage == 0 ? held_by_0 : held_by_1) = block;
    const uint8_t* from = static_cast<const uint8_t*>(p.weights) + int64_t{block} * T::kWeightBytes;
#pragma unroll
    for (int i = 0; i < T::kWeightBytes; i += 16 * T::kThreads) {
      const int at = i + 16 * threadIdx.x;
      if (i + 16 * T::kThreads <= T::kWeightBytes || at < T::kWeightBytes) {
        copy_async(to + at, from + at, 16);
      }
    }
  }

  const Launch& l;
  uint32_t shared;
  int tile_index;
  TileIndex tile;
  int chunk = 0;             // the next to load
  int held_by_0 = kNothing;  // block of weights in a stage
  int held_by_1 = kNothing;
};

// Where a tap's window begins in the halo, 2 * row + column, for 2 x 2 taps.
ANDFAST_DEVICE int window_of(const Launch& l, int phase, int chunk) {
  switch (l.problem.resampling) {
    case Resampling::kUpsample: return phase;
    case Resampling::kUpsampleAdjoint: return 3 - chunk / l.reduction.chunks_of[0];
    default: return 0;
  }
}

template <Dtype kDtype, Kernel kKernel>
ANDFAST_DEVICE void multiply_chunk(float (&sum)[4][Tile<kKernel>::kColumns][4], uint32_t stage, int window, int lane,
                                   int warp) {
  using T = Tile<kKernel>;
  constexpr int kRow = T::kHaloWidth * T::kRowBytes;
  const uint32_t halo = stage + T::kWarpRows * warp * kRow + (window >> 1) * kRow;
  const int column = lane % 16 + (window & 1);
  // Operand B: lanes 0 to 7 and 16 to 23 have the first eight channels of 16 outputs, the others the next eight.
  const int output = lane % 8 + lane / 16 * 8;
  const int half = lane / 8 % 2;
#pragma unroll
  for (int dx = 0; dx < T::kTaps; ++dx) {
#pragma unroll
    for (int k = 0; k < T::kRowUnits; k += 2) {
      const int x = column + dx;
      const uint32_t row = halo + x * T::kRowBytes + swizzled_unit<T::kRowBytes>(x, k + lane / 16) * 16;
      const uint32_t weights = stage + T::kHaloBytes + output * T::kRowBytes +
                               swizzled_unit<T::kRowBytes>(output, k + half) * 16;
      uint32_t a[4][4];  // row r of the halo, from the warp's first, is in a[r % 4]
#pragma unroll
      for (int r = 0; r < 3; ++r) {
        load_matrices(a[r], row + r * kRow);
      }
#pragma unroll
      for (int dy = 0; dy < T::kTaps; ++dy) {
        load_matrices(a[(dy + 3) % 4], row + (dy + 3) * kRow);
        uint32_t b[T::kOut / 16][4];
#pragma unroll
        for (int j = 0; j < T::kOut / 16; ++j) {
          load_matrices(b[j], weights + ((dy * T::kTaps + dx) * T::kOut + 16 * j) * T::kRowBytes);
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int j = 0; j < T::kColumns; ++j) {
            multiply<kDtype>(sum[r][j], a[(r + dy) % 4], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
          }
        }
      }
    }
  }
}

template <Dtype kDtype, Kernel kKernel>
ANDFAST_DEVICE void store_tile(const Launch& l, float (&sum)[4][Tile<kKernel>::kColumns][4], const TileIndex& t, int lane,
                               int warp) {
  using T = Tile<kKernel>;
  const Problem& p = l.problem;
  const int step = p.resampling == Resampling::kUpsample ? 2 : 1;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = t.y + T::kWarpRows * warp + r;
      const int x = t.x + lane / 4 + 8 * half;
      const bool inside = y < p.height && x < p.width;
      const int64_t row = int64_t{t.image} * p.height * step + y * step + (t.phase >> 1);
      const int64_t pixel = row * p.width * step + x * step + (t.phase & 1);
      if constexpr (T::kNarrow) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int channel = lane % 4 * 2 + e;
          if (inside && channel < p.out.count) {
            finish_narrow<kDtype>(p, sum[r][0][2 * half + e], pixel, t.image, channel);
          }
        }
      } else {
#pragma unroll
        for (int g = 0; g < T::kColumns / 4; ++g) {
          float value[8];
#pragma unroll
          for (int v = 0; v < 8; ++v) {
            value[v] = sum[r][4 * g + v / 2][2 * half + v % 2];
          }
          finish<kDtype>(p, value, {pixel, t.image, t.group * T::kOut + 32 * g, lane % 4, inside});
        }
      }
    }
  }
}

template <Dtype kDtype, Kernel kKernel>
ANDFAST_DEVICE void convolve(const Launch& l) {
  using T = Tile<kKernel>;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const uint32_t shared = shared_base();
  Loader<kKernel> loader(l, shared);
#pragma unroll
  for (int stage = 0; stage < T::kStages - 1; ++stage) {
    loader.load_next(stage);
    commit_copies();
  }
  int stage = 0;
  for (int index = blockIdx.x; index < l.tiles; index += gridDim.x) {
    const TileIndex tile = tile_at<kKernel>(l, index);
    float sum[4][T::kColumns][4] = {};
    for (int chunk = 0; chunk < l.reduction.chunks; ++chunk) {
      wait_copies<T::kStages - 2>();
      synchronize();  // the chunk has arrived for all, and all are done with the stage before it
      const int next = stage == 0 ? T::kStages - 1 : stage - 1;
      loader.load_next(next);
      commit_copies();
      multiply_chunk<kDtype, kKernel>(sum, shared + stage * T::kStageBytes, window_of(l, tile.phase, chunk), lane, warp);
      stage = stage + 1 == T::kStages ? 0 : stage + 1;
    }
    store_tile<kDtype, kKernel>(l, sum, tile, lane, warp);
  }
}

}  // namespace andfast::convolution::mma
