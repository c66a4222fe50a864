// The convolution to 32 channels on compute capability 9.0a, for the growth of a dense block.
//
// wgmma multiplies 64 pixels by 96 columns of weights, which are the three horizontal taps side by side, 32 outputs each. So a
// read of the pixels serves three taps, and no operand is shifted by pixels. The three sums meet at the end:
//
//     out[x] = sum0[x - 1] + sum1[x] + sum2[x + 1]
//
//     tile: 64 columns x 8 rows of results                  a consumer warpgroup: 4 rows, a warp has one of them
//     +------+------+------+------+                         for each of 3 kernel rows dy, for each 16 channels:
//     |      |      |      |      | 4 blocks of 16            operand A: rows dy .. dy + 3 of a block, 64 pixels
//     |      |      |      |      | columns x 10 rows          operand B: 96 rows of weights
//     +------+------+------+------+                           sums: 4 blocks x 48 registers a thread
//
// A tile has no columns beside it: where the image is wider than 64, tiles overlap by two columns and each writes one of them.
// With kPairs, for even widths, even and odd columns of a block lie apart, so that a thread has two adjacent columns and
// shuffles half as much.
#pragma once

#include "sm90_pipeline.cuh"

namespace andfast::convolution::sm90 {

template <bool kPairs>
ANDFAST_DEVICE void load_rows(
    uint32_t to, const TensorMap* map, uint32_t barrier, int chunk, const TileIndex& tile) {
  const int x = tile.column * Rows::kColumnStep;
  const int y = tile.row * Rows::kHeight - 1;
#pragma unroll
  for (int k = 0; k < Rows::kBlocks; ++k) {
    const uint32_t block = to + k * Rows::kBlockBytes;
    if constexpr (kPairs) {  // (channel, pair of columns, which of the pair, row, image)
      tma_load(block, map, barrier, chunk * kChunkChannels, x / 2 + 8 * k, 0, y, tile.image);
    } else {
      tma_load(block, map, barrier, chunk * kChunkChannels, x + 16 * k, y, tile.image);
    }
  }
}

// One chunk's products, issued and committed.
template <Dtype kDtype>
ANDFAST_DEVICE void multiply_rows(float (&sums)[Rows::kBlocks][48], uint32_t pixels, uint32_t weights, bool accumulate) {
  constexpr int kGroup = 8 * kRowBytes;
  wgmma_fence();
#pragma unroll
  for (int dy = 0; dy < 3; ++dy) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t b = operand(weights + dy * 3 * Rows::kOutputs * kRowBytes + 32 * half, kGroup);
#pragma unroll
      for (int k = 0; k < Rows::kBlocks; ++k) {
        const uint64_t a = operand(pixels + k * Rows::kBlockBytes + dy * 16 * kRowBytes + 32 * half, kGroup);
        wgmma<kDtype>(sums[k], a, b, accumulate || dy > 0 || half > 0);
      }
    }
  }
  wgmma_commit();
}

// Results of the thread's column `side` (0 or 1) of block k, eight channels; to be called by whole warps. Of block k the
// thread holds, in sums[k][16 * dx + 4 * j + 2 * side + e], horizontal tap dx and channel 8 * q + 2 * j + e at column
// 16 * k + 2 * g + side (kPairs) or 16 * k + 8 * side + g, with g = lane / 4 and q = lane % 4.
template <bool kPairs>
ANDFAST_DEVICE void gather_columns(
    float (&value)[8], const float (&sums)[Rows::kBlocks][48], const float (&bias)[8], int k, int side, int lane) {
  const int g = lane / 4;
#pragma unroll
  for (int v = 0; v < 8; ++v) {
    const int i = 4 * (v / 2) + v % 2;
    float left;   // sum0 of the column before
    float right;  // sum2 of the column after
    if (kPairs && side == 1) {
      left = sums[k][i];
    } else {  // from the lane with g - 1; the first column wants the last of the 8, or 16, before it
      const float own = sums[k][i + 2 * (kPairs ? 1 : side)];
      const float wrapped = kPairs || side == 0 ? (k > 0 ? sums[k > 0 ? k - 1 : 0][i + 2] : 0.0f) : sums[k][i];
      left = from_lane(g == 7 ? wrapped : own, (lane + 28) % 32);
    }
    if (kPairs && side == 0) {
      right = sums[k][32 + i + 2];
    } else {  // from the lane with g + 1
      const float own = sums[k][32 + i + 2 * (kPairs ? 0 : side)];
      const float wrapped = kPairs || side == 1 ? (k < 3 ? sums[k < 3 ? k + 1 : 3][32 + i] : 0.0f) : sums[k][32 + i + 2];
      right = from_lane(g == 0 ? wrapped : own, (lane + 4) % 32);
    }
    value[v] = left + sums[k][16 + i + 2 * side] + right + bias[v];
  }
}

template <Dtype kDtype, bool kPairs>
ANDFAST_DEVICE void consume_rows(const Launch& l, const SharedLayout& shared, Ring ring) {
  const Problem& p = l.problem;
  const int lane = threadIdx.x % 32;
  const int group = threadIdx.x / 128;  // warpgroup
  const int channel = 8 * (lane % 4);
  const TileRange range = tile_range(l);
  float sums[Rows::kBlocks][48];
  float bias[8];
#pragma unroll
  for (int v = 0; v < 8; ++v) bias[v] = p.bias == nullptr ? 0.0f : load_value(p.bias + channel + v);

  // The second warpgroup begins a chunk after the first, so that one multiplies while the other stores.
  if (group == 1 && range.first < range.last) mbarrier_wait(ring.order(), 0);
  for (int t = range.first; t < range.last; ++t) {
    const TileIndex tile = tile_at(l, t);
    int previous = -1;  // the stage that products in flight may still read, but for those of the latest chunk
    for (int c = 0; c < l.plan.chunks; ++c) {
      const uint32_t stage = shared.stages + ring.stage * shared.stage_bytes;
      mbarrier_wait(ring.full(ring.stage), ring.parity);
      multiply_rows<kDtype>(sums, stage + 4 * group * 16 * kRowBytes, shared.weights + c * Rows::kWeightBytes, c > 0);
      if (t == range.first && c == 0 && group == 0 && lane == 0) mbarrier_arrive(ring.order());
      if (previous >= 0) {
        wgmma_wait<1>();
        if (lane == 0) mbarrier_arrive(ring.empty(previous));
      }
      previous = ring.stage;
      ring.advance();
    }

    const int x0 = tile.column * Rows::kColumnStep;
    const int y = tile.row * Rows::kHeight + 4 * group + threadIdx.x / 32 % 4;
    const int64_t row = (static_cast<int64_t>(tile.image) * p.height + y) * p.width + x0;
    // Columns of the tile that it writes.
    const int first = tile.column > 0 ? 1 : 0;
    const int end = y >= p.height ? 0 : x0 + Rows::kColumns < p.width ? Rows::kColumns - 1 : p.width - x0;
    const auto column_of = [&](int i) { return 16 * (i / 2) + (kPairs ? 2 * (lane / 4) + i % 2 : 8 * (i % 2) + lane / 4); };
    const auto pixel_of = [&](int i) {
      const int column = column_of(i);
      return column >= first && column < end ? row + column : -1;
    };
    uint32_t positive[2];
    load_kept<kDtype, 8>(p, positive, channel, pixel_of);
    wgmma_wait<0>();
#pragma unroll
    for (int k = 0; k < Rows::kBlocks; ++k) keep_below_wait(sums[k]);
    if (lane == 0) mbarrier_arrive(ring.empty(previous));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float value[8];
      gather_columns<kPairs>(value, sums, bias, i / 2, i % 2, lane);
      const int64_t pixel = pixel_of(i);
      if (pixel >= 0) {
        finish<kDtype>(p, value, pixel, channel, positive[i / 4] >> (8 * (i % 4)),
                       load_residual(p, pixel, channel, true));
      }
    }
  }
}

template <Dtype kDtype, bool kPairs>
ANDFAST_DEVICE void convolve_rows(const Launch& l) {
  const SharedLayout shared = shared_layout(l.plan, Rows::kStageBytes, Rows::kWeightBytes);
  const Ring ring(shared.barriers, l.plan.stages);
  init_ring(ring, 4 * Rows::kConsumers);
  prefetch_maps(l);
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (threadIdx.x / 128 == Rows::kConsumers) {
    give_up_registers<24>();
    if (threadIdx.x % 128 == 0) {
      produce(l, shared, ring, Rows::kStageBytes, Rows::kStageBytes, Rows::kWeightBytes, load_rows<kPairs>);
    }
  } else {
    take_registers<240>();
    consume_rows<kDtype, kPairs>(l, shared, ring);
  }
}

}  // namespace andfast::convolution::sm90
