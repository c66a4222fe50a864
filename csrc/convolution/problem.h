// The contract between the ops and the kernels of the 3x3 convolution: what one launch computes.
//
//     sum[n, y, x, o]  = sum over taps (ky, kx) and channels i of  w[o, i, ky, kx] * in[n, y + ky - 1, x + kx - 1, i]
//     value            = activation(sum + bias[o])
//     out[n, y, x, o]  = scale * value + residual_scale * residual[n, y, x, o] + outer_scale * outer[n, y, x, o]
//                        + noise[n, y, x]
//
// `in` is the concatenation of up to two sources along the channels. Sums and everything that follows are fp32; out is
// rounded once. Tensors are channels-last. These are plain structs without torch, so that the CPU emulator can use them.
#pragma once

#include <cstdint>

namespace andfast::convolution {

enum class Dtype : int32_t { kBFloat16, kHalf };

enum class Padding : int32_t {
  kZeros,
  kReplicate,  // the border's pixels repeat outside of the image
};

enum class Resampling : int32_t {
  kNone,
  // The convolution reads its source enlarged twofold by nearest neighbor: source (H, W), out (2H, 2W).
  kUpsample,
  // The adjoint of kUpsample, for the gradient to its input: out (H, W) is the sum over each 2 x 2 block of the
  // convolution of the source (2H, 2W). Weights are given flipped and transposed, as for any gradient to an input.
  kUpsampleAdjoint,
};

enum class Activation : int32_t {
  kNone,
  kLeakyReLU,          // value > 0 ? value : slope * value
  kGradientByValues,   // kept > 0 ? value : slope * value, by the activations that forward stored
  kGradientBySigns,    // the same, by the bits that forward stored
};

// A run of adjacent channels of a channels-last tensor, dense but for channels beside the run: channel c of pixel
// p = (n * height + y) * width + x is data[p * pixel_stride + c].
struct Channels {
  void* data = nullptr;      // the run's first channel of the first pixel; 16-byte aligned
  int32_t pixel_stride = 0;  // in elements; a multiple of 8
  int32_t count = 0;         // channels of the run; a multiple of 8. 0: there is no such tensor
};

// What decides which kernel runs and how it wants its weights packed. Images may have any size.
struct Shape {
  Dtype dtype = Dtype::kBFloat16;
  int32_t source_channels[2] = {0, 0};
  int32_t out_channels = 0;  // may be anything from 1 where out has fewer than 8 channels (see Problem::out)
  Resampling resampling = Resampling::kNone;
  bool per_image_weights = false;
  // Any of what only the degradation block asks for: replicate padding, slopes of each image or channel, noise.
  bool degradation = false;
};

struct Problem {
  Dtype dtype = Dtype::kBFloat16;
  int32_t images = 0;
  int32_t height = 0;  // of the smaller grid: with kUpsample that of the sources, with kUpsampleAdjoint that of out
  int32_t width = 0;
  Resampling resampling = Resampling::kNone;
  Padding padding = Padding::kZeros;

  Channels sources[2];            // the reduction runs over the first's channels, then over the second's, if there is one
  const void* weights = nullptr;  // packed by the family that is launched, 16-byte aligned
  bool per_image_weights = false;  // each image has its own, one after the other
  const float* bias = nullptr;       // (out_channels rounded up to a multiple of 64), or null

  // A slice of the buffer that sources[1] reads is allowed, if the slices do not overlap. Fewer than 8 channels: any
  // count, pixel stride and alignment of an element, in which case residual, outer and signs are absent.
  Channels out;

  Activation activation = Activation::kNone;
  float slope = 1.0f;
  const float* slopes = nullptr;  // instead of slope: slopes[n * slopes_image_stride + o * slopes_channel_stride]
  int32_t slopes_image_stride = 0;
  int32_t slopes_channel_stride = 0;
  Channels kept;                       // of kGradientByValues, on out's grid
  const uint8_t* kept_signs = nullptr;  // of kGradientBySigns, on out's grid, see `signs`
  // Where to store signs for a backward pass, or null: bit o % 8 of byte p * sign_bytes + o / 8 is set where the
  // activation's input, rounded to dtype, is positive. 4-byte aligned; bits beyond the last channel are undefined.
  uint8_t* signs = nullptr;
  int32_t sign_bytes = 0;  // per pixel, of `signs` and `kept_signs`; a multiple of 4

  float scale = 1.0f;
  Channels residual;
  float residual_scale = 1.0f;
  Channels outer;
  float outer_scale = 1.0f;
  const void* noise = nullptr;  // one value per pixel of out, of this dtype, or null
};

inline Shape shape_of(const Problem& problem) {
  const bool degradation =
      problem.padding == Padding::kReplicate || problem.slopes != nullptr || problem.noise != nullptr;
  return {problem.dtype, {problem.sources[0].count, problem.sources[1].count}, problem.out.count, problem.resampling,
          problem.per_image_weights, degradation};
}

}  // namespace andfast::convolution
