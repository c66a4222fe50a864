// Anti-aliased pooling for arbitrary filters and fp64: one thread per result, n_taps^2 reads straight from global
// memory. The binomial filters have tiled kernels instead, see forward.h and backward.h.
#pragma once

#include <cstdint>

#include "index.h"

namespace andfast::pool {

constexpr int kMaxTaps = 256;  // checked in andfast/functional/blur_pool.py

template <typename Acc>
struct AnyFilter {
  int64_t height;  // large side
  int64_t width;
  int64_t inner;
  int64_t factor;
  int64_t n_taps;
  Acc taps[kMaxTaps];
};

// Element `at` of the small side, (images, height / factor, width / factor, inner).
template <typename T, typename Acc>
ANDFAST_HOST_DEVICE T forward_at(const AnyFilter<Acc>& f, const T* x, int64_t at) {
  const int64_t pad = padding_of(f.n_taps, f.factor);
  const int64_t height = f.height / f.factor;
  const int64_t width = f.width / f.factor;
  const int64_t inner = at % f.inner;
  const int64_t column = at / f.inner % width;
  const int64_t row = at / f.inner / width % height;
  const T* const image = x + at / (height * width * f.inner) * f.height * f.width * f.inner;
  Acc sum = 0;
  for (int64_t k = 0; k < f.n_taps; ++k) {
    const T* const line = image + input_of(row, k, f.factor, pad, f.height) * f.width * f.inner + inner;
    Acc along = 0;
    for (int64_t l = 0; l < f.n_taps; ++l) {
      along += f.taps[l] * static_cast<Acc>(line[input_of(column, l, f.factor, pad, f.width) * f.inner]);
    }
    sum += f.taps[k] * along;
  }
  return static_cast<T>(sum);
}

// Element `at` of the large side, given the gradient (images, height / factor, width / factor, inner).
template <typename T, typename Acc>
ANDFAST_HOST_DEVICE T backward_at(const AnyFilter<Acc>& f, const T* grad, int64_t at) {
  const int64_t pad = padding_of(f.n_taps, f.factor);
  const int64_t height = f.height / f.factor;
  const int64_t width = f.width / f.factor;
  const int64_t inner = at % f.inner;
  const int64_t column = at / f.inner % f.width;
  const int64_t row = at / f.inner / f.width % f.height;
  const T* const image = grad + at / (f.height * f.width * f.inner) * height * width * f.inner;
  // Outputs that read a mirror image of an input are among those in reach of the input itself, see weight_of.
  const OutputRange rows = outputs_of(row + pad, f.factor, f.n_taps, height);
  const OutputRange columns = outputs_of(column + pad, f.factor, f.n_taps, width);
  Acc sum = 0;
  for (int64_t o = rows.first; o <= rows.last; ++o) {
    Acc along = 0;
    for (int64_t q = columns.first; q <= columns.last; ++q) {
      const Acc weight = weight_of(f.taps, column, q, f.factor, f.n_taps, pad, f.width);
      along += weight * static_cast<Acc>(image[(o * width + q) * f.inner + inner]);
    }
    sum += weight_of(f.taps, row, o, f.factor, f.n_taps, pad, f.height) * along;
  }
  return static_cast<T>(sum);
}

}  // namespace andfast::pool
