// The convolution ops of namespace andfast, registered with torch's stable ABI: one build serves every torch from 2.11 on.
// Private: andfast.functional checks what users pass and differentiates; here are the checks that memory safety needs.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "dense_block.h"
#include "layout.h"
#include "tensors.h"

namespace andfast::convolution {
namespace {

WeightPart::Type weight_type(const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::BFloat16: return WeightPart::Type::kBFloat16;
    case ScalarType::Half: return WeightPart::Type::kHalf;
    case ScalarType::Float: return WeightPart::Type::kFloat;
    default: ANDFAST_CHECK(false, name, " must be bfloat16, float16 or float32"); return {};
  }
}

Dtype dtype_of(ScalarType dtype) {
  ANDFAST_CHECK(dtype == ScalarType::BFloat16 || dtype == ScalarType::Half, "dtype must be bfloat16 or float16");
  return dtype == ScalarType::Half ? Dtype::kHalf : Dtype::kBFloat16;
}

Resampling resampling_of(int64_t factor, bool backward) {
  ANDFAST_CHECK(factor == 1 || factor == 2, "factor must be 1 or 2, was ", factor);
  return factor == 1 ? Resampling::kNone : backward ? Resampling::kUpsampleAdjoint : Resampling::kUpsample;
}

// A single convolution's shape. Channels of a source are filled up to a multiple of 8; fewer than 8 outputs stay.
Shape single_shape(Dtype dtype, int64_t inputs, int64_t outputs, Resampling resampling, bool per_image) {
  ANDFAST_CHECK(inputs > 0 && inputs < 1 << 16 && outputs > 0 && outputs < 1 << 16,
                "channels must be between 1 and 65535, were ", inputs, " and ", outputs);
  ANDFAST_CHECK(outputs < 8 || outputs % 8 == 0, "output channels must be fewer than 8 or a multiple of 8, were ",
                outputs);
  ANDFAST_CHECK(resampling == Resampling::kNone || outputs >= 8,
                "output channels must be a multiple of 8 with factor 2, were ", outputs);
  return {dtype, {static_cast<int32_t>(round_up(inputs, 8)), 0}, static_cast<int32_t>(outputs), resampling, per_image};
}

Tensor convolution_pack(const Tensor& weight, const std::optional<Tensor>& bias, ScalarType dtype, int64_t factor,
                        bool backward) {
  ANDFAST_CHECK(weight.is_cuda(), "weight must be on a CUDA device");
  const bool per_image = weight.dim() == 5;
  const int64_t d = per_image ? 1 : 0;
  ANDFAST_CHECK((weight.dim() == 4 || per_image) && weight.size(d + 2) == 3 && weight.size(d + 3) == 3,
                "weight must have shape (Cout, Cin, 3, 3) or (N, Cout, Cin, 3, 3), was ", shape_text(weight));
  ANDFAST_CHECK(weight.is_contiguous(), "weight must be contiguous");
  const int64_t c_out = weight.size(d);
  const int64_t c_in = weight.size(d + 1);
  PackJob job;
  job.shape = single_shape(dtype_of(dtype), backward ? c_out : c_in, backward ? c_in : c_out,
                           resampling_of(factor, backward), per_image);
  job.images = per_image ? static_cast<int32_t>(weight.size(0)) : 1;
  job.n_parts = 1;
  WeightPart& part = job.parts[0];
  part.data = weight.data_ptr();
  part.type = weight_type("weight", weight);
  part.flip = backward;
  part.channels = static_cast<int32_t>(backward ? c_out : c_in);
  part.out_stride = static_cast<int32_t>(backward ? 9 : 9 * c_in);
  part.in_stride = static_cast<int32_t>(backward ? 9 * c_in : 9);
  part.image_stride = per_image ? 9 * c_in * c_out : 0;
  if (bias.has_value()) {
    check_size("bias", *bias, {c_out});
    ANDFAST_CHECK(!backward, "bias must be None for the gradient to the input");
    ANDFAST_CHECK(bias->is_cuda() && bias->is_contiguous(), "bias must be contiguous and on weight's device");
    job.bias = bias->data_ptr();
    job.bias_type = weight_type("bias", *bias);
  }
  Device device(weight);
  PackedBuffer count(device, nullptr);
  count.next(job.shape, job.images);
  const Tensor packed = empty_bytes(weight, {count.bytes()});
  if (job.images > 0) {
    const auto entry = PackedBuffer(device, packed.data_ptr()).next(job.shape, job.images);
    job.packed = entry.weights;
    job.packed_bias = entry.bias;
    device.pack({job});
  }
  return packed;
}

// Puts a packed convolution into the problem, whose shape it must be of.
void set_packed(Problem* p, const Shape& shape, int images, const Tensor& packed, const Device& device) {
  PackedBuffer count(device, nullptr);
  count.next(shape, images);
  ANDFAST_CHECK(packed.is_cuda() && packed.scalar_type() == ScalarType::Byte && packed.numel() == count.bytes(),
                "packed must be the result of convolution_pack for these channels, dtype, factor and direction, ",
                count.bytes(), " bytes, had ", packed.numel());
  const auto entry = PackedBuffer(device, packed.data_ptr()).next(shape, images);
  p->weights = entry.weights;
  p->bias = entry.bias;
  p->per_image_weights = shape.per_image_weights;
}

int sign_bytes_of(int64_t channels) { return static_cast<int>((channels + 31) / 32 * 4); }

// `signs` and the activation that they belong to, (N, H, W, 4 * ceil(C / 32)).
void check_signs(const char* name, const Tensor& signs, const Tensor& like, int64_t n, int64_t height, int64_t width,
                 int64_t channels) {
  ANDFAST_CHECK(signs.is_cuda() && signs.get_device_index() == like.get_device_index(), name,
                " must be on the gradient's device");
  ANDFAST_CHECK(signs.scalar_type() == ScalarType::Byte && signs.is_contiguous(), name,
                " must be contiguous and uint8");
  check_size(name, signs, {n, height, width, sign_bytes_of(channels)});
}

std::tuple<Tensor, Tensor> convolution_forward(
    const Tensor& x, const Tensor& packed, int64_t out_channels, int64_t factor, double slope,
    const std::optional<Tensor>& slopes, double scale, const std::optional<Tensor>& residual,
    const std::optional<Tensor>& noise, bool replicate, bool per_image, bool keep_signs) {
  Problem p;
  p.dtype = check_images("x", x);
  p.resampling = resampling_of(factor, false);
  const Shape shape = single_shape(p.dtype, x.size(1), out_channels, p.resampling, per_image);
  ANDFAST_CHECK(!replicate || factor == 1, "replicate must be False with factor 2");
  // Weights are packed for a family, which is chosen without knowing of these; no family but mma's has per-image weights.
  ANDFAST_CHECK(per_image || !(replicate || slopes.has_value() || noise.has_value()),
                "per_image must be True with slopes, noise or replicate");
  p.padding = replicate ? Padding::kReplicate : Padding::kZeros;
  p.images = static_cast<int32_t>(x.size(0));
  p.height = static_cast<int32_t>(x.size(2));
  p.width = static_cast<int32_t>(x.size(3));
  const int64_t height = factor * x.size(2);
  const int64_t width = factor * x.size(3);

  Device device(x);
  set_packed(&p, shape, per_image ? p.images : 1, packed, device);
  p.sources[0] = device.channels_last(x);
  const Tensor out = empty_channels_last(x, p.images, out_channels, height, width);
  p.out = whole(out);
  if (slope != 1 || slopes.has_value()) {
    p.activation = Activation::kLeakyReLU;
    p.slope = static_cast<float>(slope);
  }
  if (slopes.has_value()) {
    ANDFAST_CHECK(slopes->is_cuda() && slopes->scalar_type() == ScalarType::Float && slopes->is_contiguous(),
                  "slopes must be contiguous and float32 on x's device");
    ANDFAST_CHECK(slopes->size(0) == p.images && (slopes->dim() == 1 || (slopes->dim() == 2 && slopes->size(1) == out_channels)),
                  "slopes must have shape (N,) or (N, Cout), was ", shape_text(*slopes));
    p.slopes = static_cast<const float*>(slopes->data_ptr());
    p.slopes_image_stride = slopes->dim() == 1 ? 1 : static_cast<int32_t>(out_channels);
    p.slopes_channel_stride = slopes->dim() == 1 ? 0 : 1;
  }
  p.scale = static_cast<float>(scale);
  if (residual.has_value()) {
    check_like("residual", *residual, x);
    check_size("residual", *residual, {p.images, out_channels, height, width});
    ANDFAST_CHECK(out_channels >= 8, "residual must be None with fewer than 8 output channels");
    p.residual = device.channels_last(*residual);
  }
  if (noise.has_value()) {
    check_like("noise", *noise, x);
    check_size("noise", *noise, {p.images, 1, height, width});
    ANDFAST_CHECK(noise->is_contiguous(), "noise must be contiguous");
    p.noise = noise->data_ptr();
  }
  ANDFAST_CHECK(!keep_signs || out_channels >= 8, "keep_signs must be False with fewer than 8 output channels");
  const int sign_bytes = sign_bytes_of(out_channels);
  const Tensor signs = keep_signs ? empty_bytes(x, {p.images, height, width, sign_bytes}) : empty_bytes(x, {0});
  if (keep_signs) {
    p.signs = static_cast<uint8_t*>(signs.data_ptr());
    p.sign_bytes = sign_bytes;
  }
  device.launch(p);
  return {out, signs};
}

Tensor convolution_backward(const Tensor& grad, const Tensor& packed, int64_t in_channels, int64_t factor,
                            const std::optional<Tensor>& input_signs, double input_slope, bool per_image) {
  Problem p;
  p.dtype = check_images("grad", grad);
  p.resampling = resampling_of(factor, true);
  const Shape shape = single_shape(p.dtype, grad.size(1), in_channels, p.resampling, per_image);
  ANDFAST_CHECK(grad.size(2) % factor == 0 && grad.size(3) % factor == 0,
                "grad must have H and W divisible by the factor, ", factor, ", was ", shape_text(grad));
  p.images = static_cast<int32_t>(grad.size(0));
  p.height = static_cast<int32_t>(grad.size(2) / factor);
  p.width = static_cast<int32_t>(grad.size(3) / factor);
  Device device(grad);
  set_packed(&p, shape, per_image ? p.images : 1, packed, device);
  p.bias = nullptr;
  p.sources[0] = device.channels_last(grad);
  const Tensor out = empty_channels_last(grad, p.images, in_channels, p.height, p.width);
  p.out = whole(out);
  if (input_signs.has_value()) {
    check_signs("input_signs", *input_signs, grad, p.images, p.height, p.width, in_channels);
    p.activation = Activation::kGradientBySigns;
    p.kept_signs = static_cast<const uint8_t*>(input_signs->data_ptr());
    p.sign_bytes = sign_bytes_of(in_channels);
    p.slope = static_cast<float>(input_slope);
  }
  device.launch(p);
  return out;
}

Tensor convolution_activation_backward(const Tensor& grad, const Tensor& signs, double slope) {
  const Dtype dtype = check_images("grad", grad);
  ANDFAST_CHECK(grad.size(1) % 8 == 0, "grad must have a multiple of 8 channels, was ", shape_text(grad));
  check_signs("signs", signs, grad, grad.size(0), grad.size(2), grad.size(3), grad.size(1));
  Device device(grad);
  const Channels from = device.channels_last(grad);
  ANDFAST_CHECK(from.pixel_stride == from.count, "grad must not be a slice of channels");
  const Tensor out = empty_channels_last(grad, grad.size(0), grad.size(1), grad.size(2), grad.size(3));
  STD_CUDA_CHECK(leaky_relu_backward(dtype, from.data, static_cast<const uint8_t*>(signs.data_ptr()),
                                     sign_bytes_of(grad.size(1)), static_cast<float>(slope),
                                     grad.size(0) * grad.size(2) * grad.size(3), static_cast<int>(grad.size(1)),
                                     out.data_ptr(), device.stream()));
  return out;
}

// ---------------------------------------------------------------------------------------- Residual dense blocks

DenseBlocks blocks_of(Dtype dtype, int64_t features, int64_t growth, int64_t blocks, int64_t per_group) {
  ANDFAST_CHECK(features > 0 && features % 8 == 0 && growth > 0 && growth % 8 == 0 && features + 4 * growth < 1 << 16,
                "features and growth must be multiples of 8, were ", features, " and ", growth);
  ANDFAST_CHECK(blocks > 0 && per_group >= 0 && per_group != 1 && (per_group == 0 || blocks % per_group == 0),
                "blocks must be positive and a multiple of per_group, which is 0 or at least 2, were ", blocks, " and ",
                per_group);
  DenseBlocks d;
  d.dtype = dtype;
  d.features = static_cast<int32_t>(features);
  d.growth = static_cast<int32_t>(growth);
  d.blocks = static_cast<int32_t>(blocks);
  d.per_group = static_cast<int32_t>(per_group);
  return d;
}

Tensor dense_blocks_pack(std::vector<Tensor> weights, std::vector<Tensor> biases, ScalarType dtype, int64_t per_group,
                         double scale, double outer_scale, bool backward) {
  ANDFAST_CHECK(!weights.empty() && weights.size() % kBlockConvolutions == 0,
                "weights must hold five tensors for each block, held ", weights.size());
  ANDFAST_CHECK(backward || biases.size() == weights.size(), "biases must hold as many tensors as weights, held ",
                biases.size());
  ANDFAST_CHECK(weights[0].dim() == 4 && weights[0].is_cuda(),
                "weights must have shape (Cout, Cin, 3, 3) and be on a CUDA device, weights[0] was ",
                shape_text(weights[0]));
  const int64_t growth = weights[0].size(0);
  const int64_t features = weights[0].size(1);
  DenseBlocks d = blocks_of(dtype_of(dtype), features, growth,
                            static_cast<int64_t>(weights.size()) / kBlockConvolutions, per_group);
  d.scale = static_cast<float>(scale);
  d.outer_scale = static_cast<float>(outer_scale);
  std::vector<ConvolutionParameters> parameters;
  for (size_t n = 0; n < weights.size(); ++n) {
    const auto k = static_cast<int64_t>(n) % kBlockConvolutions;
    const int64_t c_out = k == kBlockConvolutions - 1 ? features : growth;
    const std::string name = "weights[" + std::to_string(n) + "]";
    check_size(name.c_str(), weights[n], {c_out, features + k * growth, 3, 3});
    ANDFAST_CHECK(weights[n].is_contiguous() && weights[n].is_cuda() &&
                      weights[n].scalar_type() == weights[0].scalar_type(),
                  name, " must be contiguous, on a CUDA device and of the dtype of weights[0]");
    ConvolutionParameters p{weights[n].data_ptr(), nullptr, weight_type(name.c_str(), weights[n])};
    if (!backward) {
      const std::string bias_name = "biases[" + std::to_string(n) + "]";
      check_size(bias_name.c_str(), biases[n], {c_out});
      ANDFAST_CHECK(biases[n].is_contiguous() && biases[n].is_cuda() &&
                        biases[n].scalar_type() == weights[0].scalar_type(),
                    bias_name, " must be contiguous, on a CUDA device and of the dtype of weights[0]");
      p.bias = biases[n].data_ptr();
    }
    parameters.push_back(p);
  }
  Device device(weights[0]);
  const Tensor packed = empty_bytes(weights[0], {packed_bytes(d, device, backward)});
  backward ? pack_backward(d, parameters, packed.data_ptr(), device)
           : pack_forward(d, parameters, packed.data_ptr(), device);
  return packed;
}

constexpr int64_t kKeepNothing = 0;
constexpr int64_t kKeepSigns = 1;
constexpr int64_t kKeepGrowth = 2;

// Numbers of a pass over x or its gradient, checked against the packed weights.
DenseBlocks pass_of(const char* name, const Tensor& x, const Tensor& packed, int64_t growth, int64_t blocks,
                    int64_t per_group, const Device& device, bool backward) {
  DenseBlocks d = blocks_of(check_images(name, x), x.size(1), growth, blocks, per_group);
  d.images = static_cast<int32_t>(x.size(0));
  d.height = static_cast<int32_t>(x.size(2));
  d.width = static_cast<int32_t>(x.size(3));
  const int64_t bytes = packed_bytes(d, device, backward);
  ANDFAST_CHECK(packed.is_cuda() && packed.scalar_type() == ScalarType::Byte && packed.numel() == bytes,
                "packed must be the result of dense_blocks_pack for these blocks and this direction, ", bytes,
                " bytes, had ", packed.numel());
  return d;
}

struct PassTensors {
  Tensor out;
  Tensor growth;
  std::vector<Tensor> scratch;
  Trunk trunk;

  PassTensors(const DenseBlocks& d, const Tensor& like, Device& device, bool own_growth) {
    out = empty_channels_last(like, d.images, d.features, d.height, d.width);
    trunk.in = device.channels_last(like);
    trunk.out = whole(out);
    growth = empty_channels_last(like, own_growth ? d.images : 0, 4 * int64_t{d.growth}, d.height, d.width);
    trunk.growth = whole(growth);
    for (int n = 0; n < 2 && d.blocks > 1; ++n) {
      scratch.push_back(empty_channels_last(like, d.images, d.features, d.height, d.width));
      trunk.scratch[n] = whole(scratch.back());
    }
  }
};

std::tuple<Tensor, Tensor> run_dense_blocks_forward(const Tensor& x, const Tensor& packed, int64_t growth, int64_t blocks,
                                                int64_t per_group, double slope, double scale, double outer_scale,
                                                int64_t keep) {
  check_images("x", x);
  ANDFAST_CHECK(keep >= kKeepNothing && keep <= kKeepGrowth && (keep != kKeepGrowth || blocks == 1),
                "keep must be 0, 1 or, for one block, 2, was ", keep);
  Device device(x);
  DenseBlocks d = pass_of("x", x, packed, growth, blocks, per_group, device, false);
  d.slope = static_cast<float>(slope);
  d.scale = static_cast<float>(scale);
  d.outer_scale = static_cast<float>(outer_scale);
  PassTensors t(d, x, device, true);
  Kept kept;
  Tensor saved = t.growth;
  if (keep == kKeepGrowth) {
    kept.growth = t.trunk.growth;
  } else if (keep == kKeepSigns) {
    saved = empty_bytes(x, {blocks, kBlockConvolutions - 1, d.images, d.height, d.width, d.sign_bytes()});
    kept.signs = static_cast<uint8_t*>(saved.data_ptr());
  } else {
    saved = empty_bytes(x, {0});
  }
  if (d.images > 0) {
    dense_blocks_forward(d, t.trunk, kept, packed.data_ptr(), device);
  }
  return {t.out, saved};
}

// Returns the gradient to x and, of a single block, those to what its activations read.
std::tuple<Tensor, Tensor> run_dense_blocks_backward(const Tensor& grad, const Tensor& saved, const Tensor& packed,
                                                 int64_t growth, int64_t blocks, int64_t per_group, double slope,
                                                 double scale, double outer_scale) {
  check_images("grad", grad);
  Device device(grad);
  DenseBlocks d = pass_of("grad", grad, packed, growth, blocks, per_group, device, true);
  d.slope = static_cast<float>(slope);
  d.scale = static_cast<float>(scale);
  d.outer_scale = static_cast<float>(outer_scale);
  Kept kept;
  if (saved.scalar_type() == ScalarType::Byte) {
    check_size("saved", saved, {blocks, kBlockConvolutions - 1, d.images, d.height, d.width, d.sign_bytes()});
    ANDFAST_CHECK(saved.is_cuda() && saved.is_contiguous(), "saved must be contiguous and on grad's device");
    kept.signs = static_cast<uint8_t*>(saved.data_ptr());
  } else {
    check_like("saved", saved, grad);
    check_size("saved", saved, {d.images, 4 * growth, d.height, d.width});
    ANDFAST_CHECK(blocks == 1, "saved must be the signs of more than one block");
    kept.growth = device.channels_last(saved);
  }
  PassTensors t(d, grad, device, true);
  if (d.images > 0) {
    dense_blocks_backward(d, t.trunk, kept, packed.data_ptr(), device);
  }
  return {t.out, t.growth};
}

}  // namespace
}  // namespace andfast::convolution

// A fragment, because torch.library defines other ops of this namespace in Python.
STABLE_TORCH_LIBRARY_FRAGMENT(andfast, m) {
  m.def(
      "convolution_pack(Tensor weight, Tensor? bias, ScalarType dtype, int factor, bool backward) -> Tensor");
  m.def(
      "convolution_forward(Tensor x, Tensor packed, int out_channels, int factor, float slope, Tensor? slopes, "
      "float scale, Tensor? residual, Tensor? noise, bool replicate, bool per_image, bool keep_signs) "
      "-> (Tensor, Tensor)");
  m.def(
      "convolution_backward(Tensor grad, Tensor packed, int in_channels, int factor, Tensor? input_signs, "
      "float input_slope, bool per_image) -> Tensor");
  m.def("convolution_activation_backward(Tensor grad, Tensor signs, float slope) -> Tensor");
  m.def(
      "dense_blocks_pack(Tensor[] weights, Tensor[] biases, ScalarType dtype, int per_group, float scale, "
      "float outer_scale, bool backward) -> Tensor");
  m.def(
      "dense_blocks_forward(Tensor x, Tensor packed, int growth, int blocks, int per_group, float slope, float scale, "
      "float outer_scale, int keep) -> (Tensor, Tensor)");
  m.def(
      "dense_blocks_backward(Tensor grad, Tensor saved, Tensor packed, int growth, int blocks, int per_group, "
      "float slope, float scale, float outer_scale) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(andfast, CUDA, m) {
  using namespace andfast::convolution;
  m.impl("convolution_pack", TORCH_BOX(&convolution_pack));
  m.impl("convolution_forward", TORCH_BOX(&convolution_forward));
  m.impl("convolution_backward", TORCH_BOX(&convolution_backward));
  m.impl("convolution_activation_backward", TORCH_BOX(&convolution_activation_backward));
  m.impl("dense_blocks_pack", TORCH_BOX(&dense_blocks_pack));
  m.impl("dense_blocks_forward", TORCH_BOX(&run_dense_blocks_forward));
  m.impl("dense_blocks_backward", TORCH_BOX(&run_dense_blocks_backward));
}
