// What the host derives from a problem for the sm_90a kernels: the launch, the tensors that TMA sees, the packed weights.
// Without CUDA, so that the emulator has the same.
#pragma once

#include <type_traits>

#include "pack.h"
#include "sm90_layout.h"

namespace andfast::convolution::sm90 {

// A tensor and a box of it, innermost dimension first; strides in bytes, that of the first is an element.
struct TensorView {
  const void* data = nullptr;
  int rank = 0;
  int64_t sizes[5] = {};
  int64_t strides[5] = {};
  int box[5] = {};

  void add(int64_t size, int64_t stride, int count) {
    sizes[rank] = size;
    strides[rank] = stride;
    box[rank++] = count;
  }
};

// Even and odd columns of a block lie apart where the width is even.
inline bool rows_in_pairs(const Problem& problem) { return problem.width % 2 == 0; }

inline TensorView rows_view(const Problem& problem, const Channels& source, bool pairs) {
  const int64_t pixel = 2 * source.pixel_stride;
  const int64_t row = pixel * problem.width;
  TensorView view{source.data};
  view.add(source.count, 2, kChunkChannels);
  if (pairs) {
    view.add(problem.width / 2, 2 * pixel, 8);
    view.add(2, pixel, 2);
  } else {
    view.add(problem.width, pixel, 16);
  }
  view.add(problem.height, row, Rows::kHaloHeight);
  view.add(problem.images, row * problem.height, 1);
  return view;
}

template <Resampling kResampling>
TensorView taps_view(const Problem& problem, const Channels& source) {
  using T = Taps<kResampling>;
  const int64_t pixel = 2 * source.pixel_stride;
  TensorView view{source.data};
  if (T::kDown) {  // the source is twice as large: (channel of two adjacent pixels, pair of columns, row of two, pair, image)
    const int64_t row = 2 * pixel * problem.width;
    view.add(source.pixel_stride + source.count, 2, kChunkChannels);
    view.add(problem.width, 2 * pixel, T::kPitch);
    view.add(2, row, 1);
    view.add(problem.height, 2 * row, T::kHaloHeight);
    view.add(problem.images, 2 * row * problem.height, 1);
  } else {
    const int64_t row = pixel * problem.width;
    view.add(source.count, 2, kChunkChannels);
    view.add(problem.width, pixel, T::kPitch);
    view.add(problem.height, row, T::kHaloHeight);
    view.add(problem.images, row * problem.height, 1);
  }
  return view;
}

inline bool supports(const Shape& shape) {
  if (shape.per_image_weights || shape.degradation) return false;
  // Fewer channels than a stage has would be multiplied as that many: the mma.sync kernels have smaller ones.
  if (shape.source_channels[0] < kChunkChannels) return false;
  switch (shape.resampling) {
    case Resampling::kNone:
      return shape.out_channels == Rows::kOutputs ? plan_rows(shape).fits
                                                  : shape.out_channels == 64 && plan_taps<Resampling::kNone>(shape).fits;
    case Resampling::kUpsample:
      return shape.out_channels == 64 && shape.source_channels[1] == 0 && plan_taps<Resampling::kUpsample>(shape).fits;
    default:  // a chunk may not reach beyond a pixel's channels, as the next pixel's lie in the same dimension
      return shape.out_channels == 64 && shape.source_channels[1] == 0 &&
             shape.source_channels[0] % kChunkChannels == 0 && plan_taps<Resampling::kUpsampleAdjoint>(shape).fits;
  }
}

// Calls call.template operator()<kRows, kResampling>() for the kernel of a shape that is supported.
template <class Call>
ANDFAST_HOST_DEVICE auto with_kernel(const Shape& shape, const Call& call) {
  if (shape.out_channels == Rows::kOutputs) return call.template operator()<true, Resampling::kNone>();
  if (shape.resampling == Resampling::kUpsample) return call.template operator()<false, Resampling::kUpsample>();
  if (shape.resampling == Resampling::kUpsampleAdjoint) {
    return call.template operator()<false, Resampling::kUpsampleAdjoint>();
  }
  return call.template operator()<false, Resampling::kNone>();
}

template <bool kRows, Resampling kResampling>
ANDFAST_HOST_DEVICE constexpr Plan plan(const Shape& shape) {
  if constexpr (kRows) return plan_rows(shape);
  return plan_taps<kResampling>(shape);
}

template <bool kRows, Resampling kResampling>
int tile_columns(const Problem& problem) {
  if constexpr (kRows) return Rows::tile_columns(problem.width);
  return ceil_div(problem.width, Taps<kResampling>::kWidth);
}

template <bool kRows, Resampling kResampling>
int tile_rows(const Problem& problem) {
  return ceil_div(problem.height, kRows ? Rows::kHeight : Taps<kResampling>::kHeight);
}

// What a launch has beside its maps.
template <bool kRows, Resampling kResampling, class Launch>
void fill_launch(Launch& launch, const Problem& problem) {
  launch.problem = problem;
  launch.plan = plan<kRows, kResampling>(shape_of(problem));
  launch.tile_columns = tile_columns<kRows, kResampling>(problem);
  launch.tile_rows = tile_rows<kRows, kResampling>(problem);
  launch.tiles = launch.tile_columns * launch.tile_rows * problem.images;
}

// ---- packed weights: (stage, tap, row of outputs, 32 channels), swizzled

template <bool kRows, Resampling kResampling>
using Tile = std::conditional_t<kRows, Rows, Taps<kResampling>>;

ANDFAST_HOST_DEVICE int packed_elements(const Shape& shape) {
  return with_kernel(shape, [&]<bool kRows, Resampling kResampling>() {
    using T = Tile<kRows, kResampling>;
    return (source_chunks(shape, 0, T::kChunkPhases) + source_chunks(shape, 1, T::kChunkPhases)) * T::kWeightBytes / 2;
  });
}

// The taps that pixel `which` of a window of two sums, see mma_tile.h.
ANDFAST_HOST_DEVICE void set_taps(int (&range)[2], int window_start, int which) {
  range[0] = which == 0 ? 0 : window_start + 1;
  range[1] = which == 0 ? window_start : 2;
}

template <bool kRows, Resampling kResampling>
ANDFAST_HOST_DEVICE PackedElement packed_element(const Shape& shape, int index) {
  using T = Tile<kRows, kResampling>;
  const int position = index % kChunkChannels;
  const int row = index / kChunkChannels % (T::kSlots * T::kOutputs);
  const int slot = row / T::kOutputs;
  int chunk = index / kChunkChannels / (T::kSlots * T::kOutputs);
  const int of_first = source_chunks(shape, 0, T::kChunkPhases);

  PackedElement e;
  e.output = T::output_of_row(row % T::kOutputs);
  e.source = chunk >= of_first ? 1 : 0;
  chunk -= e.source == 1 ? of_first : 0;
  const int unit = position / kUnitChannels ^ (row >> 1 & 3);
  e.channel = chunk / T::kChunkPhases * kChunkChannels + unit * kUnitChannels + position % kUnitChannels;
  if constexpr (kResampling == Resampling::kNone) {
    e.row_taps[0] = e.row_taps[1] = slot / 3;
    e.column_taps[0] = e.column_taps[1] = slot % 3;
  } else {
    const int phase = T::kDown ? chunk % T::kChunkPhases : slot / T::kTaps;
    set_taps(e.row_taps, mma::window_start(kResampling, phase / 2), slot % T::kTaps / 2);
    set_taps(e.column_taps, mma::window_start(kResampling, phase % 2), slot % 2);
  }
  return e;
}

}  // namespace andfast::convolution::sm90
