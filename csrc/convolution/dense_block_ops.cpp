// Chains of residual dense blocks: packing, forward, gradient to x.
#include <string>

#include "dense_block.h"
#include "ops.h"

namespace andfast::convolution {
namespace {

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

}  // namespace

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

namespace {

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

}  // namespace

std::tuple<Tensor, Tensor> run_dense_blocks_forward(const Tensor& x, const Tensor& packed, int64_t growth,
                                                    int64_t blocks, int64_t per_group, double slope, double scale,
                                                    double outer_scale, int64_t keep) {
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

}  // namespace andfast::convolution
