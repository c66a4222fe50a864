// Inner loops of the CPU code: plain loops over contiguous memory that the compiler vectorises. Each is compiled for
// several instruction sets and selected at load time, so one build is fast on every x86-64.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>

// Clang and other architectures use the compiler's baseline.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define ANDFAST_SIMD __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define ANDFAST_SIMD
#endif
#define ANDFAST_INLINE inline __attribute__((always_inline))

namespace andfast {

// Half types are summed in fp32.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using acc_t = typename Accumulator<T>::type;

// Repetitions of a combination along a row of pixels.
struct Runs {
  int64_t count = 1;
  int64_t from_step = 0;
  int64_t to_step = 0;
};

namespace detail {

constexpr int64_t kBlock = 512;  // a block of sums fits in the L1 cache

// out = sum of N weighted rows; with kAccumulate, out += the same.
template <int N, bool kAccumulate, typename In, typename Out, typename Acc>
ANDFAST_INLINE void add_rows(const In* const* rows, const Acc* weights, int64_t start, int64_t n, Out* __restrict out) {
  const In* __restrict row[N];
  Acc weight[N];
  for (int k = 0; k < N; ++k) {
    row[k] = rows[k] + start;
    weight[k] = weights[k];
  }
  for (int64_t i = 0; i < n; ++i) {
    Acc sum = kAccumulate ? static_cast<Acc>(out[i]) : Acc(0);
    for (int k = 0; k < N; ++k) {
      sum += weight[k] * static_cast<Acc>(row[k][i]);
    }
    out[i] = static_cast<Out>(sum);
  }
}

// The same for any number of rows, block by block.
template <typename In, typename Out, typename Acc>
ANDFAST_INLINE void add_many_rows(
    const In* const* rows, const Acc* weights, int64_t n_rows, int64_t start, int64_t length, Out* __restrict out) {
  alignas(64) Acc sums[kBlock];
  for (int64_t done = 0; done < length; done += kBlock) {
    const int64_t n = std::min(kBlock, length - done);
    std::fill_n(sums, n, Acc(0));
    int64_t k = 0;
    for (; k + 4 <= n_rows; k += 4) {
      add_rows<4, true>(rows + k, weights + k, start + done, n, sums);
    }
    for (; k < n_rows; ++k) {
      add_rows<1, true>(rows + k, weights + k, start + done, n, sums);
    }
    for (int64_t i = 0; i < n; ++i) {
      out[done + i] = static_cast<Out>(sums[i]);
    }
  }
}

template <typename In, typename Out, typename Acc>
ANDFAST_INLINE void combine(
    const In* const* rows, const Acc* weights, int64_t n_rows, int64_t length, Out* out, const Runs& runs) {
  for (int64_t j = 0; j < runs.count; ++j) {
    const int64_t start = j * runs.from_step;
    Out* to = out + j * runs.to_step;
    switch (n_rows) {  // the common tap counts, forward and backward
      case 1: add_rows<1, false>(rows, weights, start, length, to); break;
      case 2: add_rows<2, false>(rows, weights, start, length, to); break;
      case 4: add_rows<4, false>(rows, weights, start, length, to); break;
      case 8: add_rows<8, false>(rows, weights, start, length, to); break;
      default: add_many_rows(rows, weights, n_rows, start, length, to);
    }
  }
}

}  // namespace detail

// out[j * to_step + i] = sum_k weights[k] * rows[k][j * from_step + i] for 0 <= i < length, 0 <= j < count.
// One overload per pair of types, because target_clones does not apply to templates.
#define ANDFAST_COMBINE(In, Out)                                                          \
  ANDFAST_SIMD static void combine(                                                       \
      const In* const* rows, const acc_t<In>* weights, int64_t n_rows, int64_t length,    \
      Out* out, const Runs& runs = {}) {                                                  \
    detail::combine(rows, weights, n_rows, length, out, runs);                            \
  }
ANDFAST_COMBINE(double, double)
ANDFAST_COMBINE(float, float)
ANDFAST_COMBINE(float, c10::BFloat16)
ANDFAST_COMBINE(float, c10::Half)
ANDFAST_COMBINE(c10::BFloat16, float)
ANDFAST_COMBINE(c10::Half, float)
#undef ANDFAST_COMBINE

}  // namespace andfast
