// What one GPU thread does in anti-aliased pooling, as code that a CPU can run too: csrc/blur_pool_cuda.cu runs it on a
// GPU, tests/blur_pool_emulator.cpp thread by thread with every access checked. Memory is reached through `Memory`:
//
//     load(const T* p, int count, bool vector)      up to 16 bytes; values from `count` on are zero
//     widen(pack, v)                                value v as fp32
//     store(T* p, const Pack<T, N>&, int count, bool vector)
//     write(int at, const float (&)[N])             shared memory, fp32; `at` is a multiple of N
//     read(int at, float (&)[N])                    the same
//
// A block walks down its strip in steps of one row of the small side. A step has two halves, with a barrier between
// them: gather() publishes a row in shared memory, emit() filters along it. Two buffers take turns, so that the next
// gather() needs no barrier of its own. Global loads are issued a step ahead of their use.
//
// Columns, rows and places in a row are 32-bit (a row has fewer than 2^30 values); addresses are 64-bit.
#pragma once

#include <cstdint>

#include "blur_pool_index.h"
#include "blur_pool_plan.h"

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

// What is known of memory when compiling.
enum class Layout {
  kPixels,  // chunks lie in one pixel each and all accesses are of 16 bytes: NHWC of 64 channels
  kRows,    // chunks lie anywhere in a row, and the large side's accesses are of 16 bytes: NCHW, NHWC of 3 channels
  kValues,  // one value at a time: rows of odd length, unaligned tensors
};

inline Layout layout_of(const Plan& p) {
  if (!p.vector_large) {
    return Layout::kValues;
  }
  return !p.by_pixel ? Layout::kRows : p.vector_small ? Layout::kPixels : Layout::kValues;
}

template <typename T>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));

// A filter whose length is known when compiling.
template <int kFactor_, int kTaps_>
struct Filter {
  static constexpr int kFactor = kFactor_;
  static constexpr int kTaps = kTaps_;
  static constexpr int kPad = (kTaps - kFactor) / 2;
  static constexpr int kReach = (kTaps + kFactor - 1) / kFactor;  // outputs in reach of an input, along an axis
  static_assert(kPad < kFactor, "margins must not be wider than a tile of one output");
  float taps[kTaps];
};

// The least power of two that is not below n.
constexpr int power_of_two(int n) { return n <= 1 ? 1 : 2 * power_of_two((n + 1) / 2); }

ANDFAST_HOST_DEVICE int least(int a, int b) { return a < b ? a : b; }
ANDFAST_HOST_DEVICE int most(int a, int b) { return a > b ? a : b; }
ANDFAST_HOST_DEVICE int floor_to(int a, int step) { return (a >= 0 ? a / step : -((step - 1 - a) / step)) * step; }

// Which tile a block has.
struct Tile {
  int first_value;   // of a pixel
  int first_column;  // of the small side
  int end_column;
  int first_row;     // of the strip, in steps
  int end_row;
  int64_t image;

  // Neighbours in a row come one after the other, so that what both read is in the L2 cache.
  ANDFAST_HOST_DEVICE Tile(const Plan& p, unsigned block, int small_width, int rows) {
    const auto split = [&block](unsigned n) {
      const unsigned part = block % n;
      block /= n;
      return static_cast<int>(part);
    };
    first_value = split(p.slabs) * p.tile_inner;
    first_column = split(p.column_tiles) * p.tile_columns;
    end_column = least(first_column + p.tile_columns, small_width);
    image = int64_t{split(p.image_groups)} * p.tile_images;
    first_row = static_cast<int>(block) * p.strip_rows;
    end_row = least(first_row + p.strip_rows, rows);
  }
};

// A thread's chunk among those that cover columns [first, end) of rows of `width` pixels.
struct Slot {
  int64_t image;
  int row_at;     // the chunk's place in its row
  int shared_at;  // and in shared memory
  int column;     // that its first value belongs to
  int count;      // values of it that exist: 0 where there is nothing to read
  bool exists;    // the chunk is part of the tile

  template <int N>
  ANDFAST_HOST_DEVICE static Slot of(
      const Plan& p, const Tile& tile, int thread, int chunks, int first, int end, int width, int origin) {
    Slot s;
    const int image = thread / chunks;
    const int n = thread - image * chunks;
    s.image = tile.image + image;
    int last_value;  // values of the row, or of the pixel, end here
    int value;
    if (p.by_pixel) {
      const int a_pixel = p.tile_inner / N;
      s.column = first + n / a_pixel;
      value = tile.first_value + n % a_pixel * N;
      last_value = s.column >= 0 && s.column < width ? p.inner : 0;
      s.row_at = s.column * p.inner + value;
      s.exists = s.column < end && value < p.inner;
    } else {
      value = s.row_at = floor_to(first * p.inner, N) + n * N;
      s.column = floor_to(value, p.inner) / p.inner;
      last_value = value < 0 ? value : width * p.inner;
      s.exists = value < end * p.inner;
    }
    s.exists = s.exists && image < p.tile_images && s.image < p.images;
    s.count = s.exists ? most(0, least(N, last_value - value)) : 0;
    s.shared_at = image * p.shared_row + origin + (p.by_pixel ? s.column * p.tile_inner + value : value);
    return s;
  }
};

// Where shared memory would have column 0 and value 0 of an image's row, when it begins with the chunk of column
// `first` and the tile's first value. From there a pixel is `tile_inner` values.
template <int N>
ANDFAST_HOST_DEVICE int origin_of(const Plan& p, const Tile& tile, int first) {
  return p.by_pixel ? -first * p.tile_inner - tile.first_value : -floor_to(first * p.inner, N);
}

}  // namespace andfast::pool
