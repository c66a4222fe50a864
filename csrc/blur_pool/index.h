// Index arithmetic of anti-aliased pooling along one axis, shared by the CPU code, the CUDA kernels and, through the
// bindings, the tests.
//
// Forward, for output o of `size / factor`:
//     y[o] = sum_k taps[k] * x[reflect(factor * o + k - pad, size)],      0 <= k < n_taps
// Backward is the transpose. With the padded coordinate p = i + pad of an input i, the outputs that read p are
//     o = p / factor - m,  with tap k = p % factor + m * factor,          m = 0, 1, ... while k < n_taps and o >= 0,
// and an input near a border is also read at its mirrored padded coordinates.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define ANDFAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ANDFAST_HOST_DEVICE inline
#endif

namespace andfast {

// Samples added by reflection on each side: the window of `n_taps` is centered on the block of `factor` samples.
ANDFAST_HOST_DEVICE int64_t padding_of(int64_t n_taps, int64_t factor) { return (n_taps - factor) / 2; }

// Mirrors an index into [0, size) without repeating the border (numpy's "reflect"); needs -size < i < 2 * size - 1.
template <typename Int>
ANDFAST_HOST_DEVICE Int reflect(Int i, Int size) {
  i = i < 0 ? -i : i;
  return i >= size ? 2 * (size - 1) - i : i;
}

// The input sample that tap k of output o reads.
ANDFAST_HOST_DEVICE int64_t input_of(int64_t o, int64_t k, int64_t factor, int64_t pad, int64_t size) {
  return reflect(factor * o + k - pad, size);
}

// The outputs o in [first, last] and their taps k = p - factor * o that read the padded coordinate p.
struct OutputRange {
  int64_t first;
  int64_t last;  // inclusive; last < first when no output reads p
};

ANDFAST_HOST_DEVICE OutputRange outputs_of(int64_t p, int64_t factor, int64_t n_taps, int64_t n_outputs) {
  // factor * o <= p  and  factor * o >= p - n_taps + 1 (rounded up)
  const int64_t last = p / factor;
  const int64_t low = p - n_taps + 1;
  const int64_t first = low <= 0 ? 0 : (low + factor - 1) / factor;
  return {first, last < n_outputs ? last : n_outputs - 1};
}

// The padded coordinates that hold input i: i + pad, and its mirror images in the margins, if any.
struct PaddedCoordinates {
  int64_t count;
  int64_t at[3];
};

ANDFAST_HOST_DEVICE PaddedCoordinates padded_of(int64_t i, int64_t pad, int64_t size) {
  PaddedCoordinates padded{1, {i + pad, 0, 0}};
  if (i > 0 && i <= pad) {
    padded.at[padded.count++] = pad - i;
  }
  if (i < size - 1 && size - 1 - i <= pad) {
    padded.at[padded.count++] = 2 * (size - 1) - i + pad;
  }
  return padded;
}

// Tap k, or zero outside the filter.
template <typename Int, typename Tap>
ANDFAST_HOST_DEVICE Tap tap_at(const Tap* taps, Int k, Int n_taps) {
  return k >= 0 && k < n_taps ? taps[k] : Tap(0);
}

// Coefficient of input i in output o, mirrored margins included. Outputs that read a mirror image of i are among
// those in reach of i itself, o = p / factor - m with m * factor < n_taps, because a margin is narrower than half the
// window. (At the left border the padded coordinate p of a mirrored i is at most n_taps - factor, so every output
// from 0 to p / factor is in reach; the right border is symmetric.)
template <typename Int, typename Tap>
ANDFAST_HOST_DEVICE Tap weight_of(const Tap* taps, Int i, Int o, Int factor, Int n_taps, Int pad, Int size) {
  const Int start = factor * o;
  Tap sum = tap_at(taps, i + pad - start, n_taps);
  if (i > 0 && i <= pad) {
    sum += tap_at(taps, pad - i - start, n_taps);
  }
  if (i < size - 1 && size - 1 - i <= pad) {
    sum += tap_at(taps, 2 * (size - 1) - i + pad - start, n_taps);
  }
  return sum;
}

}  // namespace andfast
