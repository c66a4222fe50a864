// One element of packed weights, for any family: it says which logical weights the element is the sum of, this adds them.
#pragma once

#include "intrinsics.h"
#include "weights.h"

namespace andfast::convolution {

// The logical weights that an element of packed weights sums: taps (ky, kx) of two ranges, ends included.
struct PackedElement {
  int output = 0;      // beyond shape.out_channels: padding, which is zero
  int source = 0;      // 0 or 1
  int channel = 0;     // of the source; beyond its channels: padding
  int row_taps[2] = {0, 0};
  int column_taps[2] = {0, 0};
};

ANDFAST_DEVICE float load_as_float(const void* data, int64_t at, WeightPart::Type type) {
  switch (type) {
    case WeightPart::Type::kFloat: return load_float(static_cast<const float*>(data) + at);
    case WeightPart::Type::kHalf:
      return unpack<Dtype::kHalf>(load_2_bytes(static_cast<const uint16_t*>(data) + at), 0);
    default: return unpack<Dtype::kBFloat16>(load_2_bytes(static_cast<const uint16_t*>(data) + at), 0);
  }
}

ANDFAST_DEVICE float logical_weight(const WeightPart& part, int64_t image, int output, int input, int tap) {
  const int64_t at = image * part.image_stride + int64_t{output} * part.out_stride + int64_t{input} * part.in_stride +
                     (part.flip ? 8 - tap : tap);
  return load_as_float(part.data, at, part.type);
}

ANDFAST_DEVICE float packed_bias(const PackJob& job, int output) {
  return job.bias == nullptr || output >= job.shape.out_channels ? 0 : load_as_float(job.bias, output, job.bias_type);
}

ANDFAST_DEVICE float packed_weight(const PackJob& job, int64_t image, const PackedElement& e) {
  if (e.output >= job.shape.out_channels || e.channel >= job.shape.source_channels[e.source]) {
    return 0;
  }
  int input = e.channel + (e.source == 1 ? job.shape.source_channels[0] : 0);
  for (int n = 0; n < job.n_parts; ++n) {
    const WeightPart& part = job.parts[n];
    if (input < part.channels) {
      float sum = 0;
      for (int ky = e.row_taps[0]; ky <= e.row_taps[1]; ++ky) {
        for (int kx = e.column_taps[0]; kx <= e.column_taps[1]; ++kx) {
          sum += logical_weight(part, image, e.output, input, 3 * ky + kx);
        }
      }
      return part.scale * sum;
    }
    input -= part.channels;
  }
  return 0;  // channels that sources have beyond the parts: an image's, filled up to 8
}

}  // namespace andfast::convolution
