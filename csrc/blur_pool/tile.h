// Common parts of the tiled forward and backward passes. A thread's work is plain C++ that a CPU can run too:
// kernels.cu runs it on a GPU, tests/ops/blur_pool/blur_pool_emulator.cpp thread by thread with every access checked.
// All memory accesses go through a `Memory` argument:
//
//     load(const T* p, int count, bool vector)      up to 16 bytes; zero from value `count` on
//     widen(pack, v)                                value v as fp32
//     store(T* p, const Pack<T, N>&, int count, bool vector)
//     write(int at, const float (&)[N])             shared memory, fp32; `at` is a multiple of N
//     read(int at, float (&)[N])                    likewise
//
// A block walks down its strip one small-side row per step. Each step has two halves with a barrier between them:
// gather() writes a row to shared memory, emit() filters along it. Shared memory is double-buffered, so the next
// gather() needs no barrier of its own. Global loads are issued one step ahead of their use.
//
// Columns, rows and offsets within a row are 32-bit (a row has fewer than 2^30 values); addresses are 64-bit.
#pragma once

#include <cstdint>

#include "index.h"
#include "plan.h"

#if defined(__CUDACC__)
#define ANDFAST_UNROLL _Pragma("unroll")
#else
#define ANDFAST_UNROLL
#endif

namespace andfast::pool {

template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

// Memory layout known at compile time.
enum class Layout {
  kPixels,  // each chunk lies in one pixel, all accesses are 16 bytes: NHWC with 64 channels
  kRows,    // chunks lie anywhere in a row, the large side is accessed in 16 bytes: NCHW, NHWC with 3 channels
  kValues,  // value by value: rows of odd length, unaligned tensors
};

inline Layout layout_of(const Plan& p) {
  if (!p.vector_large) {
    return Layout::kValues;
  }
  return !p.by_pixel ? Layout::kRows : p.vector_small ? Layout::kPixels : Layout::kValues;
}

template <typename T>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));

// A filter whose length is known at compile time.
template <int kFactor_, int kTaps_>
struct Filter {
  static constexpr int kFactor = kFactor_;
  static constexpr int kTaps = kTaps_;
  static constexpr int kPad = (kTaps - kFactor) / 2;
  static constexpr int kReach = (kTaps + kFactor - 1) / kFactor;  // outputs in reach of an input, along an axis
  static_assert(kPad < kFactor, "margins must not be wider than a tile of one output");
  float taps[kTaps];
};

// The smallest power of two >= n.
constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

ANDFAST_HOST_DEVICE int min(int a, int b) { return a < b ? a : b; }
ANDFAST_HOST_DEVICE int max(int a, int b) { return a > b ? a : b; }
ANDFAST_HOST_DEVICE int floor_to(int a, int step) { return (a >= 0 ? a / step : -((step - 1 - a) / step)) * step; }

// The tile of a block.
struct Tile {
  int first_value;   // within a pixel
  int first_column;  // small side
  int end_column;
  int first_row;     // of the strip, in steps
  int end_row;
  int64_t image;

  // Neighbours in a row have consecutive block indices, so the columns that both read are in the L2 cache.
  ANDFAST_HOST_DEVICE Tile(const Plan& p, unsigned block, int small_width, int rows) {
    const auto split = [&block](unsigned n) {
      const unsigned part = block % n;
      block /= n;
      return static_cast<int>(part);
    };
    first_value = split(p.slabs) * p.tile_inner;
    first_column = split(p.column_tiles) * p.tile_columns;
    end_column = min(first_column + p.tile_columns, small_width);
    image = int64_t{split(p.image_groups)} * p.tile_images;
    first_row = static_cast<int>(block) * p.strip_rows;
    end_row = min(first_row + p.strip_rows, rows);
  }
};

// A thread's chunk, of those that cover columns [first, end) of rows of `width` pixels.
struct Slot {
  int64_t image;
  int row_at;     // offset of the chunk in its row
  int shared_at;  // and in shared memory
  int column;     // of its first value
  int count;      // values inside the image; 0 if there is nothing to read
  bool exists;    // the chunk is part of the tile

  template <int N>
  ANDFAST_HOST_DEVICE static Slot of(
      const Plan& p, const Tile& tile, int thread, int chunks, int first, int end, int width, int origin) {
    Slot s;
    const int image = thread / chunks;
    const int n = thread - image * chunks;
    s.image = tile.image + image;
    int end_value;  // of the row, or of the pixel
    int value;
    if (p.by_pixel) {
      const int per_pixel = p.tile_inner / N;
      s.column = first + n / per_pixel;
      value = tile.first_value + n % per_pixel * N;
      end_value = s.column >= 0 && s.column < width ? p.inner : 0;
      s.row_at = s.column * p.inner + value;
      s.exists = s.column < end && value < p.inner;
    } else {
      value = s.row_at = floor_to(first * p.inner, N) + n * N;
      s.column = floor_to(value, p.inner) / p.inner;
      end_value = value < 0 ? value : width * p.inner;
      s.exists = value < end * p.inner;
    }
    s.exists = s.exists && image < p.tile_images && s.image < p.images;
    s.count = s.exists ? max(0, min(N, end_value - value)) : 0;
    s.shared_at = image * p.shared_row + origin + (p.by_pixel ? s.column * p.tile_inner + value : value);
    return s;
  }
};

// Shared-memory offset of column 0, value 0 of an image's row, given that shared memory begins with the chunk of column
// `first` and the tile's first value. Pixels are `tile_inner` values apart.
template <int N>
ANDFAST_HOST_DEVICE int origin_of(const Plan& p, const Tile& tile, int first) {
  return p.by_pixel ? -first * p.tile_inner - tile.first_value : -floor_to(first * p.inner, N);
}

}  // namespace andfast::pool
