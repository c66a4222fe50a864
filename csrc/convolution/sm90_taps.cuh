// The convolution to 64 channels on compute capability 9.0a, and the same behind an upsampling by two, and its adjoint.
//
// Weights are operand A of wgmma, 64 outputs as its rows; pixels are operand B, 128 of them as its columns, so a pixel is
// read once for all outputs. A TMA copy brings a tile with its halo (outside of the image it writes zeros), and a tap is the
// same 128 pixels begun at another address: rows of 8 adjacent pixels, kPitch pixels from row to row.
//
//     tile: 16 columns x 32 rows       a consumer warpgroup: a patch of 8 columns x 16 rows
//     +-------+-------+                for each tap, for each 16 channels:
//     |   0   |   1   |                  operand A: 64 rows of the tap's weights
//     +-------+-------+                  operand B: 16 rows of 8 pixels, shifted by the tap
//     |   2   |   3   |                  sums: 64 registers a thread
//     +-------+-------+
//
// Upsampling costs 4 taps instead of 9: a result at (2i + p, 2j + q) reads 2 x 2 pixels of the small grid through sums of
// taps (mma_tile.h, window_start). A tile has 16 rows then, warpgroups 0 and 1 take the even rows of results, 2 and 3 the
// odd ones, each both parities of the columns, one after the other. The adjoint sums over parities as if they were
// channels: a stage holds the tile's pixels of one parity, brought by a TMA copy with a stride.
#pragma once

#include "sm90_pipeline.cuh"

namespace andfast::convolution::sm90 {

template <Resampling kResampling>
ANDFAST_DEVICE void load_taps(
    uint32_t to, const TensorMap* map, uint32_t barrier, int chunk, const TileIndex& tile, int pixel_stride) {
  using T = Taps<kResampling>;
  const int x = tile.column * T::kWidth - 1;
  const int y = tile.row * T::kHeight - 1;
  if constexpr (T::kDown) {  // (channel of two adjacent pixels, pair of columns, which of a pair of rows, pair, image)
    const int phase = chunk % T::kChunkPhases;
    const int channel = chunk / T::kChunkPhases * kChunkChannels + phase % 2 * pixel_stride;
    tma_load(to, map, barrier, channel, x, phase / 2, y, tile.image);
  } else {
    tma_load(to, map, barrier, chunk * kChunkChannels, x, y, tile.image);
  }
}

// One chunk's products for one phase, issued. `pixels`: of the warpgroup's patch, where the first tap begins.
template <Dtype kDtype, Resampling kResampling>
ANDFAST_DEVICE void multiply_taps(float (&sums)[64], uint32_t pixels, uint32_t weights, bool accumulate) {
  using T = Taps<kResampling>;
  constexpr int kSide = T::kTaps == 9 ? 3 : 2;
#pragma unroll
  for (int tap = 0; tap < T::kTaps; ++tap) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t a = operand(weights + tap * T::kOutputs * kRowBytes + 32 * half, 8 * kRowBytes);
      const uint64_t b = operand(pixels + (tap / kSide * T::kPitch + tap % kSide) * kRowBytes + 32 * half,
                                 T::kPitch * kRowBytes);
      wgmma<kDtype>(sums, a, b, accumulate || tap > 0 || half > 0);
    }
  }
}

// Of two rows of 8 pixels, the thread's 8 adjacent channels of one pixel; to be called by whole warps. The thread holds, in
// sums[4 * i + 2 * h + e], row 8 * h + g of the warp's 16 rows of weights at pixel (2 * q + e, row i), with g = lane / 4 and
// q = lane % 4. It gets channels 8 * (q / 2) .. + 7 of the warp's 16, of pixel (g, row i + q % 2).
ANDFAST_DEVICE void gather_channels(float (&value)[8], const float (&sums)[64], const float (&bias)[2], int i, int lane) {
  float channels[2][4];  // of pixel (g, row i or i + 1), channels 4 * q .. 4 * q + 3 of the warp's 16
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // movmatrix takes 16-bit values, so the halves of the fp32 sums go separately.
      const uint32_t first = bits_of(sums[4 * (i + r) + 2 * h] + bias[h]);
      const uint32_t second = bits_of(sums[4 * (i + r) + 2 * h + 1] + bias[h]);
      const uint32_t high = transpose_8x8(first >> 16 | (second & 0xFFFF0000u));
      const uint32_t low = transpose_8x8((first & 0xFFFFu) | second << 16);
      channels[r][2 * h] = float_of(high << 16 | (low & 0xFFFFu));
      channels[r][2 * h + 1] = float_of((high & 0xFFFF0000u) | low >> 16);
    }
  }
  const bool odd = lane % 2;  // of a pair of lanes, the even one keeps row i and the odd one row i + 1
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    const float received = from_lane(odd ? channels[0][v] : channels[1][v], lane ^ 1);
    value[v] = odd ? received : channels[0][v];
    value[4 + v] = odd ? channels[1][v] : received;
  }
}

// Waits for the products, finishes and stores the warpgroup's patch. x, y: its first pixel on the smaller grid; phase: of the
// results; release(): called once the products have read their operands.
template <Dtype kDtype, Resampling kResampling, class Release>
ANDFAST_DEVICE void store_patch(
    const Problem& p, float (&sums)[64], const float (&bias)[2], int image, int x, int y, int phase, Release release) {
  constexpr int kStep = Taps<kResampling>::kUp ? 2 : 1;
  const int lane = threadIdx.x % 32;
  const int channel = threadIdx.x / 32 % 4 * 16 + 8 * (lane % 4 / 2);
  const int row = y + lane % 2;  // the thread's first row; it has every second
  const int column = x + lane / 4;
  const int rows = column < p.width ? p.height - row : 0;
  const int64_t first = (static_cast<int64_t>(image) * p.height * kStep + row * kStep + phase / 2) * p.width * kStep +
                        column * kStep + phase % 2;
  const int64_t step = static_cast<int64_t>(2 * kStep) * p.width * kStep;
  const auto pixel_of = [&](int i) { return 2 * i < rows ? first + i * step : -1; };

  uint32_t positive[2];
  load_kept<kDtype, 8>(p, positive, channel, pixel_of);
  Words residual = load_residual(p, first, channel, rows > 0);
  wgmma_wait<0>();
  keep_below_wait(sums);
  release();
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const Words current = residual;
    if (i < 7) residual = load_residual(p, first + (i + 1) * step, channel, 2 * i + 2 < rows);
    float value[8];
    gather_channels(value, sums, bias, 2 * i, lane);
    const int64_t pixel = pixel_of(i);
    if (pixel >= 0) finish<kDtype>(p, value, pixel, channel, positive[i / 4] >> (8 * (i % 4)), current);
  }
}

// Without upsampling: a tile's chunks pass through the ring one by one.
template <Dtype kDtype, Resampling kResampling>
ANDFAST_DEVICE void consume_taps(const Launch& l, const SharedLayout& shared, Ring ring) {
  using T = Taps<kResampling>;
  const Problem& p = l.problem;
  const int lane = threadIdx.x % 32;
  const int group = threadIdx.x / 128;
  const int patch_x = 8 * (group % 2);
  const int patch_y = 16 * (group / 2);
  const TileRange range = tile_range(l);
  float sums[64];
  float bias[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    bias[h] = p.bias == nullptr ? 0.0f : load_value(p.bias + T::output_of_row(threadIdx.x / 32 % 4 * 16 + 8 * h + lane / 4));
  }

  // The second half of the consumers begins a chunk after the first, so that some multiply while others store.
  if (group >= T::kConsumers / 2 && range.first < range.last) mbarrier_wait(ring.order(), 0);
  for (int t = range.first; t < range.last; ++t) {
    const TileIndex tile = tile_at(l, t);
    int previous = -1;
    for (int c = 0; c < l.plan.chunks; ++c) {
      const uint32_t stage = shared.stages + ring.stage * shared.stage_bytes;
      const uint32_t weights = l.plan.resident ? shared.weights + c * T::kWeightBytes : stage + T::kStageBytes;
      int start = patch_y * T::kPitch + patch_x;
      if constexpr (T::kDown) {
        const int phase = c % T::kChunkPhases;  // each source has a multiple of kChunkPhases chunks
        start += mma::window_start(kResampling, phase / 2) * T::kPitch + mma::window_start(kResampling, phase % 2);
      }
      mbarrier_wait(ring.full(ring.stage), ring.parity);
      wgmma_fence();
      multiply_taps<kDtype, kResampling>(sums, stage + start * kRowBytes, weights, c > 0);
      wgmma_commit();
      if (t == range.first && c == 0 && group < T::kConsumers / 2 && lane == 0) mbarrier_arrive(ring.order());
      if (previous >= 0) {
        wgmma_wait<1>();
        if (lane == 0) mbarrier_arrive(ring.empty(previous));
      }
      previous = ring.stage;
      ring.advance();
    }
    const auto release = [&] {
      if (lane == 0) mbarrier_arrive(ring.empty(previous));
    };
    store_patch<kDtype, kResampling>(
        p, sums, bias, tile.image, tile.column * T::kWidth + patch_x, tile.row * T::kHeight + patch_y, 0, release);
  }
}

// With upsampling: a tile's chunks stay until the last phase has read them.
template <Dtype kDtype>
ANDFAST_DEVICE void consume_upsampled(const Launch& l, const SharedLayout& shared, Ring ring) {
  using T = Taps<Resampling::kUpsample>;
  const Problem& p = l.problem;
  const int lane = threadIdx.x % 32;
  const int group = threadIdx.x / 128;
  const int patch_x = 8 * (group % 2);
  const int row_parity = group / 2;
  const TileRange range = tile_range(l);
  float sums[64];
  float bias[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    bias[h] = p.bias == nullptr ? 0.0f : load_value(p.bias + T::output_of_row(threadIdx.x / 32 % 4 * 16 + 8 * h + lane / 4));
  }

  if (group >= T::kConsumers / 2 && range.first < range.last) mbarrier_wait(ring.order(), 0);
  for (int t = range.first; t < range.last; ++t) {
    const TileIndex tile = tile_at(l, t);
#pragma unroll 1
    for (int column_parity = 0; column_parity < 2; ++column_parity) {
      const int phase = 2 * row_parity + column_parity;
      const int start = row_parity * T::kPitch + patch_x + column_parity;
      Ring at = ring;
      for (int c = 0; c < l.plan.chunks; ++c) {
        const uint32_t stage = shared.stages + at.stage * shared.stage_bytes;
        const uint32_t weights = shared.weights + c * T::kWeightBytes + phase * T::kTaps * T::kOutputs * kRowBytes;
        mbarrier_wait(at.full(at.stage), at.parity);
        wgmma_fence();
        multiply_taps<kDtype, Resampling::kUpsample>(sums, stage + start * kRowBytes, weights, c > 0);
        wgmma_commit();
        if (t == range.first && column_parity == 0 && c == 0 && row_parity == 0 && lane == 0) mbarrier_arrive(ring.order());
        at.advance();
      }
      const auto release = [&] {
        if (column_parity == 0) return;
        for (int c = 0; c < l.plan.chunks; ++c, ring.advance()) {
          if (lane == 0) mbarrier_arrive(ring.empty(ring.stage));
        }
      };
      store_patch<kDtype, Resampling::kUpsample>(
          p, sums, bias, tile.image, tile.column * T::kWidth + patch_x, tile.row * T::kHeight, phase, release);
    }
  }
}

template <Dtype kDtype, Resampling kResampling>
ANDFAST_DEVICE void convolve_taps(const Launch& l) {
  using T = Taps<kResampling>;
  const SharedLayout shared = shared_layout(l.plan, T::kStageBytes, T::kWeightBytes);
  const Ring ring(shared.barriers, l.plan.stages);
  init_ring(ring, 4 * T::kConsumers);
  prefetch_maps(l);
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (threadIdx.x / 128 == T::kConsumers) {
    give_up_registers<32>();
    if (threadIdx.x % 128 == 0) {
      produce(l, shared, ring, T::kStageBytes, T::kHaloBytes, T::kWeightBytes,
              [&](uint32_t to, const TensorMap* map, uint32_t barrier, int chunk, const TileIndex& tile) {
                load_taps<kResampling>(to, map, barrier, chunk, tile, l.problem.sources[0].pixel_stride);
              });
    }
  } else {
    take_registers<112>();
    if constexpr (T::kUp) {
      consume_upsampled<kDtype>(l, shared, ring);
    } else {
      consume_taps<kDtype, kResampling>(l, shared, ring);
    }
  }
}

}  // namespace andfast::convolution::sm90
