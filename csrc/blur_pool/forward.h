// Anti-aliased pooling, forward: the work of one GPU thread. See tile.h for how threads are run.
#pragma once

#include <cstdint>

#include "index.h"
#include "plan.h"
#include "tile.h"

namespace andfast::pool {

// Each thread accumulates the vertical sums of its chunk in registers, row by row. A finished row of sums goes to
// shared memory, where one thread per group of kOut results applies the horizontal taps.
template <typename T, typename F, Layout kLayout>
class Forward {
  static constexpr int N = kChunk<T>;
  static constexpr int kOut = power_of_two((N + F::kFactor - 1) / F::kFactor);  // results per thread and row
  static constexpr int kPart = kLayout == Layout::kPixels ? kOut : 1;  // of these, guaranteed to lie in one pixel
  static constexpr int kParts = kOut / kPart;

 public:
  // Min. blocks per multiprocessor: loads in flight hide latency.
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
    const Slot slot = Slot::of<N>(p, tile, thread, p.chunks, max(0, first), min(p.width, end), p.width, shared_origin);
    column = slot.column;
    inner = slot.row_at - column * p.inner;
    row_length = p.width * p.inner;
    from = x + slot.image * p.height * row_length + slot.row_at;
    count = slot.count;
    shared_at = slot.shared_at;
    left = tile.first_column == 0;
    right = tile.end_column == width;

    // The results that this thread writes.
    const int values = (tile.end_column - tile.first_column) * p.tile_inner;
    const int units = (values + kOut - 1) / kOut;
    const int image = thread / units;
    const int unit = thread - image * units;
    const bool any = image < p.tile_images && tile.image + image < p.images;
    out_length = width * p.inner;
    to = y + (tile.image + image) * height * out_length;
    int consecutive = 0;
    ANDFAST_UNROLL
    for (int v = 0; v < kParts; ++v) {
      const int value = unit * kOut + v * kPart;
      const int column = tile.first_column + value / p.tile_inner;
      const int inner = tile.first_value + value % p.tile_inner;
      const bool exists = any && value < values && inner < p.inner;
      out_at[v] = exists ? column * p.inner + inner : -1;
      consecutive += exists && out_at[v] == out_at[0] + v * kPart;
      read_at[v] = image * p.shared_row + shared_origin + (column * F::kFactor - F::kPad) * p.tile_inner + inner;
    }
    vector_out = kLayout == Layout::kPixels || (p.vector_small && consecutive == kParts && out_at[0] % kOut == 0);
    ANDFAST_UNROLL
    for (int m = 0; m < F::kReach; ++m) {
      ANDFAST_UNROLL
      for (int v = 0; v < N; ++v) {
        sums[m][v] = 0;
      }
    }
  }

  // Steps are blocks of `factor` rows of the padded input; the last kReach - 1 complete the strip's last results.
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
      // Rows below the strip's last window lie outside of the margin too: do not load them.
      const bool read = F::kTaps % F::kFactor == 0 || padded < (end_row - 1) * F::kFactor + F::kTaps;
      const int row = reflect(padded - F::kPad, p.height);
      rows[r] = memory.load(from + int64_t{row} * row_length, read ? count : 0, kLayout != Layout::kValues);
    }
  }

  // Writes a chunk's sums and, in tiles at the image border, their mirror images in the margin.
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
  int inner;   // index of that value within its pixel

  const T* from;
  T* to;
  int count;
  int shared_at;
  int out_at[kParts];
  int read_at[kParts];  // start of the result's window in shared memory
  bool vector_out;
  bool left;  // the tile touches this border of the image
  bool right;
  Pack<T, N> rows[F::kFactor];
  float sums[F::kReach][N];
};

}  // namespace andfast::pool
