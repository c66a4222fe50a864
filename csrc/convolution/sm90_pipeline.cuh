// What the sm_90a kernels share: their argument, the walk over tiles, the ring of stages that a producer thread fills by TMA
// and the consumer warpgroups release, and the finish of a result.
#pragma once

#include "sm90_instructions.cuh"
#include "sm90_layout.h"

namespace andfast::convolution::sm90 {

struct Launch {
  TensorMap maps[2];  // of each source; the second repeats the first where there is only one
  Problem problem;
  Plan plan;
  int32_t tile_columns;
  int32_t tile_rows;
  int32_t tiles;  // of all images
};

// A CTA takes adjacent tiles, whose halos meet in L2.
struct TileRange {
  int first;
  int last;  // one past the last
};
ANDFAST_DEVICE TileRange tile_range(const Launch& l) {
  const int each = (l.tiles + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  const int first = static_cast<int>(blockIdx.x) * each;
  const int last = first + each;
  return {first < l.tiles ? first : l.tiles, last < l.tiles ? last : l.tiles};
}

struct TileIndex {
  int image;
  int row;
  int column;
};
ANDFAST_DEVICE TileIndex tile_at(const Launch& l, int index) {
  const int in_image = l.tile_columns * l.tile_rows;
  const int rest = index % in_image;
  return {index / in_image, rest / l.tile_columns, rest % l.tile_columns};
}

// Shared memory: resident weights, stages (each with its weights where they are streamed), barriers.
struct SharedLayout {
  uint32_t weights;
  uint32_t stages;
  uint32_t stage_bytes;
  uint32_t barriers;
};
ANDFAST_DEVICE SharedLayout shared_layout(const Plan& plan, int tile_bytes, int weight_bytes) {
  SharedLayout s;
  s.weights = (shared_base() + 1023) & ~1023u;
  s.stages = s.weights + (plan.resident ? plan.chunks * weight_bytes : 0);
  s.stage_bytes = tile_bytes + (plan.resident ? 0 : weight_bytes);
  s.barriers = s.stages + plan.stages * s.stage_bytes;
  return s;
}

// The position of the producer, or of a consumer, in the ring. A stage has two barriers: full, which the producer's copies
// complete, and empty, at which each consumer warp arrives once its products no longer read the stage.
struct Ring {
  uint32_t barriers;
  int stages;
  int stage = 0;
  int parity = 0;  // of the current round

  ANDFAST_DEVICE Ring(uint32_t barriers, int stages) : barriers(barriers), stages(stages) {}
  ANDFAST_DEVICE uint32_t full(int s) const { return barriers + 8 * s; }
  ANDFAST_DEVICE uint32_t empty(int s) const { return barriers + 8 * (kMaxStages + s); }
  // One more barrier: the second half of the consumers waits at it, once.
  ANDFAST_DEVICE uint32_t order() const { return barriers + 16 * kMaxStages; }
  ANDFAST_DEVICE void advance() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};
static_assert(16 * kMaxStages + 8 <= kBarrierBytes);

// To be called by the whole CTA.
ANDFAST_DEVICE void init_ring(const Ring& ring, int consumer_warps) {
  if (threadIdx.x == 0) {
    for (int s = 0; s < ring.stages; ++s) {
      mbarrier_init(ring.full(s), 1);
      mbarrier_init(ring.empty(s), consumer_warps);
    }
    mbarrier_init(ring.order(), consumer_warps / 2);
    mbarrier_init_fence();
  }
  synchronize();
}

ANDFAST_DEVICE void prefetch_maps(const Launch& l) {
  if (threadIdx.x == 0) {
    prefetch_map(&l.maps[0]);
    prefetch_map(&l.maps[1]);
  }
}

// The producer: one thread brings chunk after chunk, tile after tile. `load` copies one chunk's pixels:
// load(to, map, barrier, index of the chunk in its source, tile). Weights arrive with the pixels of the chunk that they
// belong to, where they stay only with a CTA's first tile: products begin before all weights are there.
template <class Load>
ANDFAST_DEVICE void produce(
    const Launch& l, const SharedLayout& shared, Ring ring, int tile_bytes, int pixel_bytes, int weight_bytes, Load load) {
  const Plan& plan = l.plan;
  const TileRange range = tile_range(l);
  const auto* weights = static_cast<const uint8_t*>(l.problem.weights);
  for (int t = range.first; t < range.last; ++t) {
    const TileIndex tile = tile_at(l, t);
    const bool bring_weights = !plan.resident || t == range.first;
    for (int c = 0; c < plan.chunks; ++c) {
      const uint32_t full = ring.full(ring.stage);
      const uint32_t to = shared.stages + ring.stage * shared.stage_bytes;
      mbarrier_wait(ring.empty(ring.stage), ring.parity ^ 1);
      mbarrier_arrive_expect(full, pixel_bytes + (bring_weights ? weight_bytes : 0));
      if (bring_weights) {
        bulk_load(plan.resident ? shared.weights + c * weight_bytes : to + tile_bytes,
                  weights + static_cast<int64_t>(c) * weight_bytes, weight_bytes, full);
      }
      const bool second = c >= plan.source_chunks[0];
      load(to, &l.maps[second], full, c - (second ? plan.source_chunks[0] : 0), tile);
      ring.advance();
    }
  }
}

// ---- results

// Signs of the activations that forward kept, of eight adjacent channels each, as bits; 0 where there are none to read. Read
// while the last products run, as the latency of these loads would show otherwise. at(i): the pixel, or -1 outside.
template <Dtype kDtype, int kCount, class At>
ANDFAST_DEVICE void load_kept(const Problem& p, uint32_t (&positive)[kCount / 4], int channel, At at) {
  static_assert(kCount % 4 == 0);
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) positive[i] = 0;
  if (p.activation == Activation::kGradientByValues) {
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      Words raw[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t pixel = at(4 * i + k);
        raw[k] = {{0, 0, 0, 0}};
        if (pixel >= 0) {
          raw[k] = load_16_bytes(static_cast<const uint16_t*>(p.kept.data) + pixel * p.kept.pixel_stride + channel);
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int v = 0; v < 8; ++v) {
          positive[i] |= static_cast<uint32_t>(unpack<kDtype>(raw[k].at[v / 2], v % 2) > 0) << (8 * k + v);
        }
      }
    }
  } else if (p.activation == Activation::kGradientBySigns) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t pixel = at(i);
      if (pixel >= 0) positive[i / 4] |= static_cast<uint32_t>(load_value(p.kept_signs + pixel * p.sign_bytes + channel / 8)) << (8 * (i % 4));
    }
  }
}

template <Dtype kDtype>
ANDFAST_DEVICE void add_scaled(float (&value)[8], const Words& term, float scale) {
#pragma unroll
  for (int v = 0; v < 8; ++v) value[v] += scale * unpack<kDtype>(term.at[v / 2], v % 2);
}

// What follows the sum (Problem), for eight adjacent channels of one pixel. The bias is in `value`, `positive` holds what
// load_kept has read, and `residual` what the caller has.
template <Dtype kDtype>
ANDFAST_DEVICE void finish(const Problem& p, float (&value)[8], int64_t pixel, int channel, uint32_t positive,
                           const Words& residual) {
  if (p.signs != nullptr) {
    uint32_t bits = 0;
#pragma unroll
    for (int v = 0; v < 8; ++v) {  // a value counts as what it is rounded to, which is what a reader of values sees
      bits |= static_cast<uint32_t>(unpack<kDtype>(pack<kDtype>(value[v], 0), 0) > 0) << v;
    }
    store_byte(p.signs + pixel * p.sign_bytes + channel / 8, bits);
  }
  if (p.activation == Activation::kLeakyReLU) {
#pragma unroll
    for (int v = 0; v < 8; ++v) value[v] = value[v] > 0 ? value[v] : p.slope * value[v];
  } else if (p.activation != Activation::kNone) {
#pragma unroll
    for (int v = 0; v < 8; ++v) value[v] = positive >> v & 1 ? value[v] : p.slope * value[v];
  }
#pragma unroll
  for (int v = 0; v < 8; ++v) value[v] *= p.scale;
  if (p.residual.count > 0) add_scaled<kDtype>(value, residual, p.residual_scale);
  if (p.outer.count > 0) {
    const auto* outer = static_cast<const uint16_t*>(p.outer.data);
    add_scaled<kDtype>(value, load_16_bytes(outer + pixel * p.outer.pixel_stride + channel), p.outer_scale);
  }
  Words rounded;
#pragma unroll
  for (int j = 0; j < 4; ++j) rounded.at[j] = pack<kDtype>(value[2 * j], value[2 * j + 1]);
  store_16_bytes(static_cast<uint16_t*>(p.out.data) + pixel * p.out.pixel_stride + channel, rounded);
}

// Eight adjacent channels of the residual; zeros if there is none or `exists` is not set.
ANDFAST_DEVICE Words load_residual(const Problem& p, int64_t pixel, int channel, bool exists) {
  if (p.residual.count == 0 || !exists) return {{0, 0, 0, 0}};
  return load_16_bytes(static_cast<const uint16_t*>(p.residual.data) + pixel * p.residual.pixel_stride + channel);
}

}  // namespace andfast::convolution::sm90
