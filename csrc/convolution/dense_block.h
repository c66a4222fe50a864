// Chains of ESRGAN's residual dense blocks as launches of the convolution: forward, and backward to x.
//
//     forward    x --+------+------+------+------+        convolution k reads x and a prefix of the growth,
//                    v      v      v      v      v        writes the next G channels; the fifth writes the result
//                    x1 --> x2 --> x3 --> x4 --> out
//
//     backward  grad -+------+------+------+------+       the gradient to what activation k reads gathers from grad
//                     v      v      v      v      v       (through the fifth weights) and a suffix of the gradients
//                     g4 --> g3 --> g2 --> g1 --> gx      to the growth; the fifth writes the gradient to x
//
// Every third block of a trunk closes an RRDB, whose input is added to outer_scale times the block's result. Backward,
// its gradient comes in smaller by that factor, which is folded into weights and the scale of the residual.
#pragma once

#include <cstdint>
#include <vector>

#include "backend.h"
#include "problem.h"
#include "weights.h"

namespace andfast::convolution {

constexpr int kBlockConvolutions = 5;

struct DenseBlocks {
  Dtype dtype = Dtype::kBFloat16;
  int32_t images = 0;
  int32_t height = 0;
  int32_t width = 0;
  int32_t features = 0;  // F, a multiple of 8
  int32_t growth = 0;    // G, a multiple of 8
  int32_t blocks = 1;
  int32_t per_group = 0;  // blocks that an outer residual spans, 3 for RRDBs; 0: there is none
  float slope = 0.2f;
  float scale = 0.2f;        // of the fifth convolution
  float outer_scale = 0.2f;  // of a group's last block

  bool closes_group(int block) const { return per_group > 0 && (block + 1) % per_group == 0; }
  bool opens_group(int block) const { return per_group > 0 && block % per_group == 0; }
  float block_scale(int block) const { return closes_group(block) ? outer_scale : 1.0f; }

  int64_t pixels() const { return int64_t{images} * height * width; }
  int sign_bytes() const { return (growth + 31) / 32 * 4; }  // of a pixel, for one activation
  int64_t sign_plane() const { return pixels() * sign_bytes(); }
  int64_t block_signs() const { return (kBlockConvolutions - 1) * sign_plane(); }

  // Shape of the forward convolution k.
  Shape shape(int k) const {
    const bool last = k == kBlockConvolutions - 1;
    return {dtype, {features, k * growth}, last ? features : growth, Resampling::kNone, false};
  }
  // Shape of the gradient to what activation k reads; to x for k = -1.
  Shape backward_shape(int k) const {
    return {dtype, {features, (kBlockConvolutions - 2 - k) * growth}, k < 0 ? features : growth, Resampling::kNone,
            false};
  }
  Problem problem() const {
    Problem p;
    p.dtype = dtype;
    p.images = images;
    p.height = height;
    p.width = width;
    p.slope = slope;
    return p;
  }
};

inline Channels slice(const Channels& of, int first, int count) {
  if (count == 0) {
    return {};
  }
  return {static_cast<uint8_t*>(of.data) + 2 * first, of.pixel_stride, count};
}

// Weights (Cout, Cin, 3, 3) and bias (Cout,) of a convolution, contiguous.
struct ConvolutionParameters {
  const void* weight = nullptr;
  const void* bias = nullptr;
  WeightPart::Type type = WeightPart::Type::kFloat;
};

inline int64_t packed_bytes(const DenseBlocks& d, const Backend& backend, bool backward) {
  PackedBuffer packed(backend, nullptr);
  for (int k = 0; k < kBlockConvolutions; ++k) {
    packed.next(backward ? d.backward_shape(kBlockConvolutions - 2 - k) : d.shape(k));
  }
  return d.blocks * packed.bytes();
}

// `parameters`: five convolutions for each block.
inline void pack_forward(const DenseBlocks& d, const std::vector<ConvolutionParameters>& parameters, void* memory,
                         Backend& backend) {
  PackedBuffer packed(backend, memory);
  std::vector<PackJob> jobs;
  for (int n = 0; n < d.blocks * kBlockConvolutions; ++n) {
    const int inputs = d.features + n % kBlockConvolutions * d.growth;
    PackJob job;
    job.shape = d.shape(n % kBlockConvolutions);
    job.n_parts = 1;
    job.parts[0] = {parameters[n].weight, parameters[n].type, false, inputs, 9 * inputs, 9, 1.0f, 0};
    job.bias = parameters[n].bias;
    job.bias_type = parameters[n].type;
    const auto entry = packed.next(job.shape);
    job.packed = entry.weights;
    job.packed_bias = entry.bias;
    jobs.push_back(job);
  }
  backend.pack(jobs);
}

// In the order of backward: k = 3, 2, 1, 0, then x. Each job gathers the weights of all convolutions that read the slice.
inline void pack_backward(const DenseBlocks& d, const std::vector<ConvolutionParameters>& parameters, void* memory,
                          Backend& backend) {
  PackedBuffer packed(backend, memory);
  std::vector<PackJob> jobs;
  for (int block = 0; block < d.blocks; ++block) {
    for (int k = kBlockConvolutions - 2; k >= -1; --k) {
      PackJob job;
      job.shape = d.backward_shape(k);
      const int first = k < 0 ? 0 : d.features + k * d.growth;  // of the slice, among the inputs
      const auto add = [&](int reader, float scale) {
        const ConvolutionParameters& from = parameters[block * kBlockConvolutions + reader];
        const int inputs = d.features + reader * d.growth;
        const int outputs = reader == kBlockConvolutions - 1 ? d.features : d.growth;
        const int64_t bytes = from.type == WeightPart::Type::kFloat ? 4 : 2;
        job.parts[job.n_parts++] = {static_cast<const uint8_t*>(from.weight) + 9 * first * bytes, from.type, true,
                                    outputs, 9, 9 * inputs, scale, 0};
      };
      add(kBlockConvolutions - 1, d.scale * d.block_scale(block));
      for (int reader = k + 1; reader < kBlockConvolutions - 1; ++reader) {
        add(reader, 1.0f);
      }
      job.packed = packed.next(job.shape).weights;
      jobs.push_back(job);
    }
  }
  backend.pack(jobs);
}

// What a pass leaves for the backward pass, one of them or neither.
struct Kept {
  uint8_t* signs = nullptr;  // (blocks, 4, images, height, width, sign_bytes): signs of x1 to x4
  Channels growth;           // x1 to x4 side by side, of a single block
};

// Tensors of a pass, channels-last. `scratch` are dense tensors of F channels: none for one block, else 2.
struct Trunk {
  Channels in;      // F channels: x, or the gradient that comes in
  Channels out;     // F channels: the result, or the gradient to x; not the tensor of `in`
  Channels growth;  // 4G channels: x1 to x4 of the block at work, or the gradients to them
  Channels scratch[2];
};

// The tensors that block n reads and writes. A group's input must live until its last block has added it, so groups
// hand over in `out` (which may be read and written by one launch: each element by the thread that writes it), and the
// blocks between them take turns in scratch.
inline void trunk_tensors(const DenseBlocks& d, const Trunk& t, int n, Channels* in, Channels* out, Channels* outer) {
  const bool last = n == d.blocks - 1;
  if (d.per_group == 0) {
    *in = n == 0 ? t.in : t.scratch[(n - 1) % 2];
    *out = last ? t.out : t.scratch[n % 2];
    return;
  }
  const int at = n % d.per_group;
  const Channels group_in = n < d.per_group ? t.in : t.out;
  *in = at == 0 ? group_in : t.scratch[(at - 1) % 2];
  *out = at == d.per_group - 1 ? t.out : t.scratch[at % 2];
  *outer = at == d.per_group - 1 ? group_in : Channels{};
}

inline void dense_blocks_forward(const DenseBlocks& d, const Trunk& t, const Kept& keep, void* memory,
                                 Backend& backend) {
  PackedBuffer packed(backend, memory);
  const Channels& growth = keep.growth.count > 0 ? keep.growth : t.growth;
  for (int n = 0; n < d.blocks; ++n) {
    Channels in;
    Channels out;
    Channels outer;
    trunk_tensors(d, t, n, &in, &out, &outer);
    for (int k = 0; k < kBlockConvolutions; ++k) {
      Problem p = d.problem();
      p.sources[0] = in;
      p.sources[1] = slice(growth, 0, k * d.growth);
      const auto entry = packed.next(d.shape(k));
      p.weights = entry.weights;
      p.bias = entry.bias;
      if (k < kBlockConvolutions - 1) {
        p.out = slice(growth, k * d.growth, d.growth);
        p.activation = Activation::kLeakyReLU;
        if (keep.signs != nullptr) {
          p.signs = keep.signs + n * d.block_signs() + k * d.sign_plane();
          p.sign_bytes = d.sign_bytes();
        }
      } else {
        p.out = out;
        p.scale = d.scale * d.block_scale(n);
        p.residual = in;
        p.residual_scale = d.block_scale(n);
        p.outer = outer;
      }
      backend.launch(p);
    }
  }
}

// `t.growth` receives the gradients to what the activations read, of the block at work.
inline void dense_blocks_backward(const DenseBlocks& d, const Trunk& t, const Kept& kept, void* memory,
                                  Backend& backend) {
  const int64_t block_bytes = packed_bytes(d, backend, true) / d.blocks;
  // Seen from its end the trunk is one of the same form: group by group, the first block of a group adds what came in.
  for (int step = 0; step < d.blocks; ++step) {
    const int n = d.blocks - 1 - step;
    Channels in;
    Channels out;
    Channels outer;
    trunk_tensors(d, t, step, &in, &out, &outer);
    PackedBuffer packed(backend, static_cast<uint8_t*>(memory) + n * block_bytes);
    for (int k = kBlockConvolutions - 2; k >= -1; --k) {
      Problem p = d.problem();
      p.sources[0] = in;
      p.sources[1] = slice(t.growth, (k + 1) * d.growth, (kBlockConvolutions - 2 - k) * d.growth);
      p.weights = packed.next(d.backward_shape(k)).weights;
      if (k >= 0) {
        p.out = slice(t.growth, k * d.growth, d.growth);
        if (kept.signs != nullptr) {
          p.activation = Activation::kGradientBySigns;
          p.kept_signs = kept.signs + n * d.block_signs() + k * d.sign_plane();
          p.sign_bytes = d.sign_bytes();
        } else {
          p.activation = Activation::kGradientByValues;
          p.kept = slice(kept.growth, k * d.growth, d.growth);
        }
      } else {
        p.out = out;
        p.residual = in;
        p.residual_scale = d.block_scale(n);
        p.outer = outer;
      }
      backend.launch(p);
    }
  }
}

}  // namespace andfast::convolution
