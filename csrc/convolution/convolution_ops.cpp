// Single convolutions: packing, forward, gradient to the input.
#include "layout.h"
#include "ops.h"

namespace andfast::convolution {
namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

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

}  // namespace andfast::convolution
