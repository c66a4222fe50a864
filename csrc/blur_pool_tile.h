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

// --------------------------------------------------------------------------------------------------------- forward

// Input rows are summed vertically in registers, a chunk a thread, as they come; the finished row of sums is put into
// shared memory and summed horizontally, by as many threads as there are results.
template <typename T, typename F, Layout kLayout>
class Forward {
  static constexpr int N = kChunk<T>;
  static constexpr int kOut = power_of_two((N + F::kFactor - 1) / F::kFactor);  // results a thread and row
  static constexpr int kPart = kLayout == Layout::kPixels ? kOut : 1;  // of them that surely lie in one pixel
  static constexpr int kParts = kOut / kPart;

 public:
  // Blocks that a multiprocessor's registers must suffice for: loads in flight are what makes this fast.
  static constexpr int kResident = kLayout == Layout::kValues ? 1 : pool::kResident;

  ANDFAST_HOST_DEVICE Forward(const Plan& plan, const F& filter, const T* x, T* y, unsigned block, int thread)
      : p(plan), f(filter) {
    const int height = p.height / F::kFactor;
    const int width = p.width / F::kFactor;
    const Tile tile(p, block, width, height);
    first_row = tile.first_row;
    end_row = tile.end_row;
    const int first = tile.first_column * F::kFactor - F::kPad;
    const int end = tile.end_column * F::kFactor + F::kPad;
    const int shared_origin = origin_of<N>(p, tile, first);
    const Slot slot = Slot::of<N>(p, tile, thread, p.chunks, most(0, first), least(p.width, end), p.width, shared_origin);
    column = slot.column;
    inner = slot.row_at - column * p.inner;
    row_length = p.width * p.inner;
    from = x + slot.image * p.height * row_length + slot.row_at;
    count = slot.count;
    shared_at = slot.shared_at;
    left = tile.first_column == 0;
    right = tile.end_column == width;

    // This thread's results.
    const int values = (tile.end_column - tile.first_column) * p.tile_inner;
    const int units = (values + kOut - 1) / kOut;
    const int image = thread / units;
    const int unit = thread - image * units;
    const bool any = image < p.tile_images && tile.image + image < p.images;
    out_length = width * p.inner;
    to = y + (tile.image + image) * height * out_length;
    int sequel = 0;
    ANDFAST_UNROLL
    for (int v = 0; v < kParts; ++v) {
      const int value = unit * kOut + v * kPart;
      const int column = tile.first_column + value / p.tile_inner;
      const int inner = tile.first_value + value % p.tile_inner;
      const bool exists = any && value < values && inner < p.inner;
      out_at[v] = exists ? column * p.inner + inner : -1;
      sequel += exists && out_at[v] == out_at[0] + v * kPart;
      read_at[v] = image * p.shared_row + shared_origin + (column * F::kFactor - F::kPad) * p.tile_inner + inner;
    }
    vector_out = kLayout == Layout::kPixels || (p.vector_small && sequel == kParts && out_at[0] % kOut == 0);
    ANDFAST_UNROLL
    for (int m = 0; m < F::kReach; ++m) {
      ANDFAST_UNROLL
      for (int v = 0; v < N; ++v) {
        sums[m][v] = 0;
      }
    }
  }

  // Steps are blocks of `factor` rows of the padded input; the last ones of a strip end its last results.
  ANDFAST_HOST_DEVICE int begin() const { return first_row; }
  ANDFAST_HOST_DEVICE int end() const { return end_row + F::kReach - 1; }
  ANDFAST_HOST_DEVICE bool emits(int step) const { return step - first_row >= F::kReach - 1; }

  template <typename Memory>
  ANDFAST_HOST_DEVICE void prepare(Memory& memory) {
    load(memory, begin());
  }

  template <typename Memory>
  ANDFAST_HOST_DEVICE void gather(Memory& memory, int step) {
    ANDFAST_UNROLL
    for (int r = 0; r < F::kFactor; ++r) {
      ANDFAST_UNROLL
      for (int v = 0; v < N; ++v) {
        const auto value = memory.widen(rows[r], v);
        ANDFAST_UNROLL
        for (int m = 0; m < F::kReach; ++m) {
          if (r + m * F::kFactor < F::kTaps) {
            sums[m][v] += f.taps[r + m * F::kFactor] * value;
          }
        }
      }
    }
    if (step + 1 < end()) {
      load(memory, step + 1);
    }
    if (emits(step) && count > 0) {
      publish(memory, buffer(step) + shared_at, sums[F::kReach - 1]);
    }
    ANDFAST_UNROLL
    for (int v = 0; v < N; ++v) {
      ANDFAST_UNROLL
      for (int m = F::kReach - 1; m > 0; --m) {
        sums[m][v] = sums[m - 1][v];
      }
      sums[0][v] = 0;
    }
  }

  template <typename Memory>
  ANDFAST_HOST_DEVICE void emit(Memory& memory, int step) const {
    Pack<T, kOut> out;
    ANDFAST_UNROLL
    for (int v = 0; v < kParts; ++v) {
      if (out_at[v] < 0) {
        continue;
      }
      const int at = buffer(step) + read_at[v];
      float sum[kPart] = {};
      ANDFAST_UNROLL
      for (int k = 0; k < F::kTaps; ++k) {
        float value[kPart];
        memory.read(at + k * p.tile_inner, value);
        ANDFAST_UNROLL
        for (int i = 0; i < kPart; ++i) {
          sum[i] += f.taps[k] * value[i];
        }
      }
      ANDFAST_UNROLL
      for (int i = 0; i < kPart; ++i) {
        out.at[v * kPart + i] = static_cast<T>(sum[i]);
      }
    }
    T* const row = to + int64_t{step - (F::kReach - 1)} * out_length;
    if (vector_out) {
      if (out_at[0] >= 0) {
        memory.store(row + out_at[0], out, kOut, true);
      }
      return;
    }
    ANDFAST_UNROLL
    for (int v = 0; v < kParts; ++v) {
      if (out_at[v] >= 0) {
        memory.store(row + out_at[v], Pack<T, 1>{{out.at[v * kPart]}}, 1, true);
      }
    }
  }

 private:
  ANDFAST_HOST_DEVICE int buffer(int step) const { return (step & 1) * p.tile_images * p.shared_row; }

  template <typename Memory>
  ANDFAST_HOST_DEVICE void load(Memory& memory, int step) {
    ANDFAST_UNROLL
    for (int r = 0; r < F::kFactor; ++r) {
      const int padded = step * F::kFactor + r;
      // Rows below the strip's last window are in no margin either.
      const bool read = F::kTaps % F::kFactor == 0 || padded < (end_row - 1) * F::kFactor + F::kTaps;
      const int row = reflect(padded - F::kPad, p.height);
      rows[r] = memory.load(from + int64_t{row} * row_length, read ? count : 0, kLayout != Layout::kValues);
    }
  }

  // A chunk's sums, and their mirror images in the image's margins. Tiles that only see a margin's originals have none.
  template <typename Memory>
  ANDFAST_HOST_DEVICE void publish(Memory& memory, int at, const float (&values)[N]) const {
    if constexpr (kLayout == Layout::kPixels) {
      memory.write(at, values);
      mirror(memory, at, column, values);
      return;
    }
    const bool whole = kLayout == Layout::kRows || count == N;
    if (whole) {
      memory.write(at, values);
    }
    const bool near = (left && column <= F::kPad) || (right && column + (N - 1) / p.inner + 1 + F::kPad >= p.width - 1);
    if (whole && !near) {
      return;
    }
    ANDFAST_UNROLL
    for (int v = 0; v < N; ++v) {
      if (v < count) {
        const float value[1] = {values[v]};
        if (!whole) {
          memory.write(at + v, value);
        }
        mirror(memory, at + v, column + (inner + v) / p.inner, value);
      }
    }
  }

  template <typename Memory, int kValues>
  ANDFAST_HOST_DEVICE void mirror(Memory& memory, int at, int x, const float (&values)[kValues]) const {
    if (left && x > 0 && x <= F::kPad) {
      memory.write(at - 2 * x * p.tile_inner, values);
    }
    x = p.width - 1 - x;
    if (right && x > 0 && x <= F::kPad) {
      memory.write(at + 2 * x * p.tile_inner, values);
    }
  }

  const Plan& p;
  const F& f;
  int first_row;
  int end_row;
  int row_length;
  int out_length;
  int column;  // of the chunk's first value
  int inner;   // the value's place in its pixel

  const T* from;
  T* to;
  int count;
  int shared_at;
  int out_at[kParts];
  int read_at[kParts];  // where the result's window begins in shared memory
  bool vector_out;
  bool left;  // the tile has this border of the image
  bool right;
  Pack<T, N> rows[F::kFactor];
  float sums[F::kReach][N];
};

// -------------------------------------------------------------------------------------------------------- backward

// A gradient row is put into shared memory; every thread spreads it along its own chunk of the large side, keeps the
// last few rows so spread in registers, and writes `factor` rows, each a vertical sum of them.
template <typename T, typename F, Layout kLayout>
class Backward {
  static constexpr int N = kChunk<T>;
  static constexpr int kPart = kLayout == Layout::kPixels ? 4 : 1;  // values that are read together
  static constexpr int kPixels = kLayout == Layout::kPixels ? 1 : N;  // that a chunk may lie in

 public:
  // Nobody waits for stores, so that coefficients of its own for every value may take registers.
  static constexpr int kResident = kLayout == Layout::kPixels ? pool::kResident : 2;

  ANDFAST_HOST_DEVICE Backward(const Plan& plan, const F& filter, const T* grad, T* out, unsigned block, int thread)
      : p(plan), f(filter) {
    height = p.height / F::kFactor;
    const int width = p.width / F::kFactor;
    const Tile tile(p, block, width, height + (F::kPad > 0));
    first_row = tile.first_row;
    end_row = tile.end_row;

    // The gradient's chunk that this thread reads: of the columns that read the tile, and zeros around the image.
    const int first = tile.first_column - (F::kReach - 1);
    const int end = tile.end_column + (F::kPad > 0);
    const int shared_origin = origin_of<N>(p, tile, first);
    const Slot small = Slot::of<N>(p, tile, thread, p.small_chunks, first, end, width, shared_origin);
    small_length = width * p.inner;
    from = grad + small.image * height * small_length + small.row_at;
    from_count = small.count;
    shared_at = small.exists ? small.shared_at : -1;

    // And the chunk that it writes.
    const Slot large = Slot::of<N>(
        p, tile, thread, p.chunks, tile.first_column * F::kFactor, tile.end_column * F::kFactor, p.width, 0);
    row_length = p.width * p.inner;
    to = out + large.image * p.height * row_length + large.row_at;
    count = large.count;
    const int image = static_cast<int>(large.image - tile.image);
    int column = large.column;
    int inner = large.row_at - column * p.inner;
    ANDFAST_UNROLL
    for (int v = 0; v < kPixels; ++v) {
      const int output = (column + F::kPad) / F::kFactor;
      read_at[v] = image * p.shared_row + shared_origin + output * p.tile_inner + inner;
      ANDFAST_UNROLL
      for (int m = 0; m < F::kReach; ++m) {
        weights[v][m] = weight_of(f.taps, column, output - m, F::kFactor, F::kTaps, F::kPad, p.width);
      }
      if (++inner == p.inner) {
        inner = 0;
        ++column;
      }
    }
    ANDFAST_UNROLL
    for (int m = 0; m < F::kReach; ++m) {
      ANDFAST_UNROLL
      for (int v = 0; v < N; ++v) {
        spread[m][v] = 0;
      }
    }
  }

  // Steps are gradient rows, from the first that the strip's rows depend on; beyond the image they are zero.
  ANDFAST_HOST_DEVICE int begin() const { return first_row - (F::kReach - 1); }
  ANDFAST_HOST_DEVICE int end() const { return end_row; }
  ANDFAST_HOST_DEVICE bool emits(int) const { return true; }

  template <typename Memory>
  ANDFAST_HOST_DEVICE void prepare(Memory& memory) {
    load(memory, begin());
  }

  template <typename Memory>
  ANDFAST_HOST_DEVICE void gather(Memory& memory, int step) {
    if (shared_at >= 0) {
      float values[N];
      ANDFAST_UNROLL
      for (int v = 0; v < N; ++v) {
        values[v] = memory.widen(next, v);
      }
      memory.write(buffer(step) + shared_at, values);
    }
    if (step + 1 < end()) {
      load(memory, step + 1);
    }
  }

  template <typename Memory>
  ANDFAST_HOST_DEVICE void emit(Memory& memory, int step) {
    if (count == 0) {
      return;
    }
    ANDFAST_UNROLL
    for (int v = 0; v < N; v += kPart) {
      const int pixel = kPixels == 1 ? 0 : v;
      const bool exists = kLayout != Layout::kValues || v < count;
      float sum[kPart] = {};
      ANDFAST_UNROLL
      for (int m = 0; m < F::kReach && exists; ++m) {
        float value[kPart];
        memory.read(buffer(step) + read_at[pixel] + (v - pixel) - m * p.tile_inner, value);
        ANDFAST_UNROLL
        for (int i = 0; i < kPart; ++i) {
          // No tap is not a tap of zero, which would turn infinity into NaN.
          const float more = weights[pixel][m] * value[i];
          sum[i] = F::kTaps % F::kFactor == 0 || weights[pixel][m] != 0 ? sum[i] + more : sum[i];
        }
      }
      ANDFAST_UNROLL
      for (int i = 0; i < kPart; ++i) {
        ANDFAST_UNROLL
        for (int m = F::kReach - 1; m > 0; --m) {
          spread[m][v + i] = spread[m - 1][v + i];
        }
        spread[0][v + i] = sum[i];
      }
    }
    if (step < first_row) {
      return;
    }
    ANDFAST_UNROLL
    for (int r = 0; r < F::kFactor; ++r) {
      const int row = step * F::kFactor + r - F::kPad;
      if (row >= 0 && row < p.height) {
        write_row(memory, step, r, row);
      }
    }
  }

 private:
  ANDFAST_HOST_DEVICE int buffer(int step) const { return (step & 1) * p.tile_images * p.shared_row; }

  template <typename Memory>
  ANDFAST_HOST_DEVICE void load(Memory& memory, int step) {
    const bool inside = step >= 0 && step < height;
    next = memory.load(from + int64_t{inside ? step : 0} * small_length, inside ? from_count : 0,
        kLayout == Layout::kPixels || (kLayout == Layout::kRows && p.vector_small));
  }

  template <typename Memory>
  ANDFAST_HOST_DEVICE void write_row(Memory& memory, int step, int r, int row) const {
    float vertical[F::kReach];
    const bool mirrored = row <= F::kPad || row >= p.height - 1 - F::kPad;
    ANDFAST_UNROLL
    for (int m = 0; m < F::kReach; ++m) {
      vertical[m] = r + m * F::kFactor < F::kTaps ? f.taps[r + m * F::kFactor < F::kTaps ? r + m * F::kFactor : 0] : 0;
      if (mirrored) {
        vertical[m] = weight_of(f.taps, row, step - m, F::kFactor, F::kTaps, F::kPad, p.height);
      }
    }
    Pack<T, N> packed;
    ANDFAST_UNROLL
    for (int v = 0; v < N; ++v) {
      float sum = 0;
      ANDFAST_UNROLL
      for (int m = 0; m < F::kReach; ++m) {
        sum = F::kTaps % F::kFactor == 0 || vertical[m] != 0 ? sum + vertical[m] * spread[m][v] : sum;
      }
      packed.at[v] = static_cast<T>(sum);
    }
    memory.store(to + int64_t{row} * row_length, packed, count, kLayout != Layout::kValues);
  }

  const Plan& p;
  const F& f;
  int height;  // of the gradient
  int first_row;
  int end_row;
  int row_length;
  int small_length;
  const T* from;
  T* to;
  int from_count;
  int count;
  int shared_at;
  int read_at[kPixels];
  float weights[kPixels][F::kReach];
  Pack<T, N> next;
  float spread[F::kReach][N];
};

}  // namespace andfast::pool
