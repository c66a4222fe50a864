// Weights before they are packed: the contract between the ops and a family's packing kernel.
#pragma once

#include <cstdint>

#include "problem.h"

namespace andfast::convolution {

// Part of a convolution's weights along the reduction: logical weight (image n, output o, input i, tap t = 3 * ky + kx) is
//
//     scale * data[n * image_stride + o * out_stride + i * in_stride + (flip ? 8 - t : t)]
//
// A (Cout, Cin, 3, 3) tensor forward: out_stride = 9 * Cin, in_stride = 9. For the gradient to its input the two change
// places and flip is set; a slice of channels is an offset of data.
struct WeightPart {
  enum class Type : int32_t { kBFloat16, kHalf, kFloat };
  const void* data = nullptr;
  Type type = Type::kFloat;
  bool flip = false;
  int32_t channels = 0;  // of the reduction
  int32_t out_stride = 0;
  int32_t in_stride = 0;
  float scale = 1.0f;
  int64_t image_stride = 0;
};

// One convolution's weights to pack. The parts stand for the sources' channels in order; channels that the sources have
// beyond them get weights of zero.
struct PackJob {
  static constexpr int kMaxParts = 5;
  Shape shape;
  int32_t images = 1;  // 1 for shared weights
  int32_t n_parts = 0;
  WeightPart parts[kMaxParts];
  void* packed = nullptr;  // images * packed_elements(shape) elements of shape.dtype, 16-byte aligned

  // The bias (out_channels,) becomes fp32, filled up with zeros to a multiple of 64; null packed_bias: there is none.
  const void* bias = nullptr;  // null: zeros
  WeightPart::Type bias_type = WeightPart::Type::kFloat;
  float* packed_bias = nullptr;
};

// Values of a packed bias.
constexpr int64_t padded_bias(const Shape& shape) { return (int64_t{shape.out_channels} + 63) / 64 * 64; }

}  // namespace andfast::convolution
