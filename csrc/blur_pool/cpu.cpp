// Anti-aliased pooling on the CPU.
//
// One code path serves both memory orders: images of (H, W) pixels of `inner` contiguous values. NCHW is N * C images
// with 1 value per pixel, NHWC is N images with C. Rows of the result are independent and spread over threads:
//
//     forward    vertical sum of n_taps input rows, mirrored margins, horizontal sums
//     backward   vertical sum of the gradient rows that read this row, horizontal sums, margins folded back
//
// With few values per pixel, horizontal sums become contiguous by splitting the row into `factor` phases first
// (backward: joining them last). From kWide values per pixel on, the values of a pixel are contiguous enough by
// themselves.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "index.h"
#include "simd.h"
#include "tensors.h"

namespace andfast {
namespace {

constexpr int64_t kWide = 16;           // values per pixel from which on phases are not worth their copies
constexpr int64_t kGrainBytes = 65536;  // min. input bytes per task

struct Geometry {
  int64_t images;   // N * C, or N
  int64_t height;   // large side: the input of forward
  int64_t width;
  int64_t inner;    // contiguous values per pixel: 1 or C
  int64_t factor;
  int64_t n_taps;

  int64_t pad() const { return padding_of(n_taps, factor); }
  int64_t out_height() const { return height / factor; }
  int64_t out_width() const { return width / factor; }
  int64_t taps_per_phase() const { return (n_taps + factor - 1) / factor; }
  // Pixels per phase; `factor` phases cover the row and its margins.
  int64_t phase_width() const { return out_width() - 1 + taps_per_phase(); }
};

// phases[r][q] = row[factor * q + r] (kJoin: the inverse), elements of `inner` values. kFactor and kInner are
// compile-time constants where that pays, else 0.
template <int kFactor, int kInner, bool kJoin, typename Acc>
ANDFAST_INLINE void regroup(Acc* __restrict row, Acc* __restrict phases, const Geometry& g) {
  const int64_t factor = kFactor ? kFactor : g.factor;
  const int64_t inner = kInner ? kInner : g.inner;
  const int64_t width = g.phase_width();
  for (int64_t q = 0; q < width; ++q) {
    for (int64_t r = 0; r < factor; ++r) {
      Acc* pixel = row + (factor * q + r) * inner;
      Acc* phase = phases + (r * width + q) * inner;
      for (int64_t c = 0; c < inner; ++c) {
        if (kJoin) {
          pixel[c] = phase[c];
        } else {
          phase[c] = pixel[c];
        }
      }
    }
  }
}

template <bool kJoin, typename Acc>
ANDFAST_INLINE void regroup(Acc* row, Acc* phases, const Geometry& g) {
  switch (g.inner == 1 || g.inner == 3 ? g.factor * 10 + g.inner : 0) {
    case 21: return regroup<2, 1, kJoin>(row, phases, g);
    case 31: return regroup<3, 1, kJoin>(row, phases, g);
    case 41: return regroup<4, 1, kJoin>(row, phases, g);
    case 23: return regroup<2, 3, kJoin>(row, phases, g);
    case 33: return regroup<3, 3, kJoin>(row, phases, g);
    case 43: return regroup<4, 3, kJoin>(row, phases, g);
    default: return regroup<0, 0, kJoin>(row, phases, g);
  }
}

ANDFAST_SIMD void split_phases(float* row, float* phases, const Geometry& g) { regroup<false>(row, phases, g); }
ANDFAST_SIMD void split_phases(double* row, double* phases, const Geometry& g) { regroup<false>(row, phases, g); }
ANDFAST_SIMD void join_phases(float* row, float* phases, const Geometry& g) { regroup<true>(row, phases, g); }
ANDFAST_SIMD void join_phases(double* row, double* phases, const Geometry& g) { regroup<true>(row, phases, g); }

// Per-thread scratch memory.
template <typename T>
struct Scratch {
  using Acc = acc_t<T>;
  std::vector<Acc> taps;
  std::vector<Acc> row;      // a row with its margins, rounded up to whole phases
  std::vector<Acc> phases;   // the same, split into phases
  std::vector<Acc> sums;     // backward: a row of vertical sums, zero-padded
  std::vector<Acc> weights;
  std::vector<const T*> sources;
  std::vector<const Acc*> pixels;

  Scratch(const Geometry& g, const std::vector<double>& filter)
      : taps(filter.begin(), filter.end()),
        row(g.factor * g.phase_width() * g.inner),
        phases(g.inner < kWide ? row.size() : 0),
        sums((g.out_width() + 2 * (g.taps_per_phase() - 1)) * g.inner),
        pixels(g.n_taps) {}
};

template <typename T>
void forward_row(const T* image, T* out, int64_t o, const Geometry& g, Scratch<T>& s) {
  const int64_t pad = g.pad();
  const int64_t length = g.width * g.inner;
  s.sources.clear();
  for (int64_t k = 0; k < g.n_taps; ++k) {
    s.sources.push_back(image + input_of(o, k, g.factor, pad, g.height) * length);
  }
  auto* row = s.row.data() + pad * g.inner;
  combine(s.sources.data(), s.taps.data(), g.n_taps, length, row);
  for (int64_t i = 1; i <= pad; ++i) {
    std::copy_n(row + i * g.inner, g.inner, row - i * g.inner);
    std::copy_n(row + (g.width - 1 - i) * g.inner, g.inner, row + (g.width - 1 + i) * g.inner);
  }
  if (g.inner < kWide) {
    split_phases(s.row.data(), s.phases.data(), g);
    for (int64_t k = 0; k < g.n_taps; ++k) {
      s.pixels[k] = s.phases.data() + (k % g.factor * g.phase_width() + k / g.factor) * g.inner;
    }
    combine(s.pixels.data(), s.taps.data(), g.n_taps, g.out_width() * g.inner, out);
    return;
  }
  for (int64_t k = 0; k < g.n_taps; ++k) {
    s.pixels[k] = s.row.data() + k * g.inner;
  }
  combine(s.pixels.data(), s.taps.data(), g.n_taps, g.inner, out, {g.out_width(), g.factor * g.inner, g.inner});
}

template <typename T>
void backward_row(const T* grad, T* out, int64_t i, const Geometry& g, Scratch<T>& s) {
  const int64_t pad = g.pad();
  const int64_t length = g.out_width() * g.inner;
  // Gradient rows that read this input row, directly or as a mirror image.
  s.sources.clear();
  s.weights.clear();
  const PaddedCoordinates padded = padded_of(i, pad, g.height);
  for (int64_t n = 0; n < padded.count; ++n) {
    const int64_t p = padded.at[n];
    const OutputRange range = outputs_of(p, g.factor, g.n_taps, g.out_height());
    for (int64_t o = range.first; o <= range.last; ++o) {
      s.sources.push_back(grad + o * length);
      s.weights.push_back(s.taps[p - g.factor * o]);
    }
  }
  // Zero padding spares the horizontal pass its special cases.
  auto* sums = s.sums.data() + (g.taps_per_phase() - 1) * g.inner;
  combine(s.sources.data(), s.weights.data(), static_cast<int64_t>(s.sources.size()), length, sums);
  // Padded coordinate factor * q + r gathers taps r, r + factor, ... of outputs q, q - 1, ...
  for (int64_t r = 0; r < g.factor; ++r) {
    s.weights.clear();
    for (int64_t k = r; k < g.n_taps; k += g.factor) {
      s.weights.push_back(s.taps[k]);
    }
    const int64_t n = static_cast<int64_t>(s.weights.size());
    for (int64_t m = 0; m < n; ++m) {
      s.pixels[m] = sums - m * g.inner;
    }
    if (g.inner < kWide) {
      auto* phase = s.phases.data() + r * g.phase_width() * g.inner;
      combine(s.pixels.data(), s.weights.data(), n, g.phase_width() * g.inner, phase);
    } else {
      auto* pixels = s.row.data() + r * g.inner;
      combine(s.pixels.data(), s.weights.data(), n, g.inner, pixels, {g.phase_width(), g.inner, g.factor * g.inner});
    }
  }
  if (g.inner < kWide) {
    join_phases(s.row.data(), s.phases.data(), g);
  }
  auto* row = s.row.data() + pad * g.inner;
  for (int64_t j = 1; j <= pad; ++j) {
    for (int64_t c = 0; c < g.inner; ++c) {
      row[j * g.inner + c] += row[-j * g.inner + c];
      row[(g.width - 1 - j) * g.inner + c] += row[(g.width - 1 + j) * g.inner + c];
    }
  }
  const acc_t<T> one = 1;
  const acc_t<T>* const result = row;
  combine(&result, &one, 1, g.width * g.inner, out);
}

// Calls fn(image, row, scratch) for all rows of the result, `rows` per image, on all threads.
template <typename T, typename Fn>
void for_rows(const Geometry& g, const std::vector<double>& taps, int64_t rows, int64_t bytes_per_row, const Fn& fn) {
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, bytes_per_row));
  torch::stable::parallel_for(0, g.images * rows, grain, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(g, taps);
    for (int64_t n = begin; n < end; ++n) {
      fn(n / rows, n % rows, scratch);
    }
  });
}

// large: x is the large side (forward), else the small side (backward).
Geometry geometry(const Tensor& x, bool large, const std::vector<double>& taps, int64_t factor) {
  check_call(x, large, taps, factor);
  const bool nhwc = is_channels_last(x);
  const int64_t grow = large ? 1 : factor;
  return {nhwc ? x.size(0) : x.size(0) * x.size(1), x.size(2) * grow, x.size(3) * grow,
          nhwc ? x.size(1) : 1,                     factor,           static_cast<int64_t>(taps.size())};
}

Tensor forward_cpu(const Tensor& x, std::vector<double> taps, int64_t factor) {
  const Geometry g = geometry(x, true, taps, factor);
  const Tensor from = dense(x);
  Tensor out = empty_in_order_of(x, g.out_height(), g.out_width());
  THO_DISPATCH_V2(x.scalar_type(), "blur_pool", AT_WRAP([&] {
    const auto* in = static_cast<const scalar_t*>(from.const_data_ptr());
    auto* to = static_cast<scalar_t*>(out.mutable_data_ptr());
    const int64_t in_image = g.height * g.width * g.inner;
    const int64_t out_row = g.out_width() * g.inner;
    const int64_t bytes = g.factor * g.width * g.inner * static_cast<int64_t>(sizeof(scalar_t));
    for_rows<scalar_t>(g, taps, g.out_height(), bytes, [&](int64_t image, int64_t row, Scratch<scalar_t>& scratch) {
      forward_row(in + image * in_image, to + (image * g.out_height() + row) * out_row, row, g, scratch);
    });
  }), AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return out;
}

Tensor backward_cpu(const Tensor& grad, std::vector<double> taps, int64_t factor) {
  const Geometry g = geometry(grad, false, taps, factor);
  const Tensor from = dense(grad);
  Tensor out = empty_in_order_of(grad, g.height, g.width);
  THO_DISPATCH_V2(grad.scalar_type(), "blur_pool_backward", AT_WRAP([&] {
    const auto* in = static_cast<const scalar_t*>(from.const_data_ptr());
    auto* to = static_cast<scalar_t*>(out.mutable_data_ptr());
    const int64_t in_image = g.out_height() * g.out_width() * g.inner;
    const int64_t out_row = g.width * g.inner;
    const int64_t bytes = out_row * static_cast<int64_t>(sizeof(scalar_t));
    for_rows<scalar_t>(g, taps, g.height, bytes, [&](int64_t image, int64_t row, Scratch<scalar_t>& scratch) {
      backward_row(in + image * in_image, to + (image * g.height + row) * out_row, row, g, scratch);
    });
  }), AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return out;
}

}  // namespace
}  // namespace andfast

STABLE_TORCH_LIBRARY_IMPL(andfast, CPU, m) {
  m.impl("blur_pool", TORCH_BOX(&andfast::forward_cpu));
  m.impl("blur_pool_backward", TORCH_BOX(&andfast::backward_cpu));
}
