// Anti-aliased pooling, backward: the work of one GPU thread. See tile.h for how threads are run.
#pragma once

#include <cstdint>

#include "index.h"
#include "plan.h"
#include "tile.h"

namespace andfast::pool {

// A block loads a gradient row into shared memory. Each thread applies the horizontal taps for its own chunk of the
// large side, keeps the last kReach such rows in registers, and writes `factor` rows, each a vertical sum of them.
template <typename T, typename F, Layout kLayout>
class Backward {
  static constexpr int N = kChunk<T>;
  static constexpr int kPart = kLayout == Layout::kPixels ? 4 : 1;  // values per shared-memory read
  static constexpr int kPixels = kLayout == Layout::kPixels ? 1 : N;  // max pixels that a chunk spans

 public:
  // Stores do not stall, so registers may go to per-value coefficients instead of occupancy.
  static constexpr int kResident = kLayout == Layout::kPixels ? pool::kResident : 2;

  ANDFAST_HOST_DEVICE Backward(const Plan& plan, const F& filter, const T* grad, T* out, unsigned block, int thread)
      : p(plan), f(filter) {
    height = p.height / F::kFactor;
    const int width = p.width / F::kFactor;
    const Tile tile(p, block, width, height + (F::kPad > 0));
    first_row = tile.first_row;
    end_row = tile.end_row;

    // The gradient chunk that this thread loads: columns that read the tile, zeros outside the image.
    const int first = tile.first_column - (F::kReach - 1);
    const int end = tile.end_column + (F::kPad > 0);
    const int shared_origin = origin_of<N>(p, tile, first);
    const Slot small = Slot::of<N>(p, tile, thread, p.small_chunks, first, end, width, shared_origin);
    small_length = width * p.inner;
    from = grad + small.image * height * small_length + small.row_at;
    from_count = small.count;
    shared_at = small.exists ? small.shared_at : -1;

    // The chunk of the large side that this thread writes.
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

  // Steps are gradient rows, from the first that the strip depends on; zero outside the image.
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
          // Skip absent taps: a zero weight would turn infinity into NaN.
          const float product = weights[pixel][m] * value[i];
          sum[i] = F::kTaps % F::kFactor == 0 || weights[pixel][m] != 0 ? sum[i] + product : sum[i];
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
