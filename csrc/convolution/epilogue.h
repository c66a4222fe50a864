// What follows a sum (Problem's bias, activation, scales, additions), on accumulators as mma.sync and wgmma leave them.
#pragma once

#include "intrinsics.h"

namespace andfast::convolution {

// In 32 adjacent channels of a pixel, a quad of lanes holds the accumulators so that lane q has channels 8j + 2q and
// 8j + 2q + 1 for j = 0 to 3. Memory wants 16 bytes a lane: channels 8q to 8q + 7. In words of two channels each is
// the other's transpose.
ANDFAST_DEVICE void transpose_quad(uint32_t (&word)[4], int q) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t received = shuffle_xor(q & 1 ? word[i] : word[i + 1], 1);
    word[i] = q & 1 ? received : word[i];
    word[i + 1] = q & 1 ? word[i + 1] : received;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t received = shuffle_xor(q & 2 ? word[i] : word[i + 2], 2);
    word[i] = q & 2 ? received : word[i];
    word[i + 2] = q & 2 ? word[i + 2] : received;
  }
}

// Where the accumulators of a call belong.
struct Place {
  int64_t pixel;  // (n * height + y) * width + x on out's grid
  int image;      // n
  int channel;    // the first of the 32
  int quad_lane;  // q
  bool inside;    // of the image; lanes outside take part in shuffles and touch no memory
};

// A quad's 32 channels of `from`, as accumulators are held; zeros where there are none.
template <Dtype kDtype>
ANDFAST_DEVICE void load_quad(const Channels& from, const Place& place, uint32_t (&word)[4]) {
  const int channel = place.channel + 8 * place.quad_lane;
  Words loaded = {{0, 0, 0, 0}};
  if (place.inside && channel < from.count) {
    const int64_t at = place.pixel * from.pixel_stride + channel;
    loaded = load_16_bytes(static_cast<const uint8_t*>(from.data) + 2 * at);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    word[j] = loaded.at[j];
  }
  transpose_quad(word, place.quad_lane);
}

template <Dtype kDtype>
ANDFAST_DEVICE void add_quad(float (&value)[8], const Channels& term, float scale, const Place& place) {
  uint32_t word[4];
  load_quad<kDtype>(term, place, word);
#pragma unroll
  for (int v = 0; v < 8; ++v) {
    value[v] += scale * unpack<kDtype>(word[v / 2], v % 2);
  }
}

// A value at the edge of zero counts as what it is rounded to, which is what a backward pass that reads values sees.
template <Dtype kDtype>
ANDFAST_DEVICE uint32_t sign_bits(const float (&value)[8], int q) {
  uint32_t bits = 0;
#pragma unroll
  for (int v = 0; v < 8; v += 2) {
    const uint32_t rounded = pack<kDtype>(value[v], value[v + 1]);
    bits |= static_cast<uint32_t>(unpack<kDtype>(rounded, 0) > 0) << (4 * v + 2 * q);
    bits |= static_cast<uint32_t>(unpack<kDtype>(rounded, 1) > 0) << (4 * v + 2 * q + 1);
  }
  return bits;
}

// Finishes and stores 32 channels of one pixel in each quad; value[2 * j + e] is channel 8j + 2q + e. To be called by
// whole warps.
template <Dtype kDtype>
ANDFAST_DEVICE void finish(const Problem& p, float (&value)[8], const Place& place) {
  const int q = place.quad_lane;
  if (place.channel >= p.out.count) {
    return;  // padding, for the whole warp
  }
  if (p.bias != nullptr) {
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      value[v] += load_float(p.bias + place.channel + 4 * (v & ~1) + 2 * q + v % 2);
    }
  }
  if (p.signs != nullptr) {
    uint32_t bits = sign_bits<kDtype>(value, q);
    bits |= shuffle_xor(bits, 1);
    bits |= shuffle_xor(bits, 2);
    if (q == 0 && place.inside) {
      store_4_bytes(p.signs + place.pixel * p.sign_bytes + place.channel / 8, bits);
    }
  }
  if (p.activation == Activation::kLeakyReLU) {
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      float slope = p.slope;
      const int channel = place.channel + 4 * (v & ~1) + 2 * q + v % 2;
      if (p.slopes != nullptr && place.inside && channel < p.out.count) {
        slope = load_float(p.slopes + int64_t{place.image} * p.slopes_image_stride + channel * p.slopes_channel_stride);
      }
      value[v] = value[v] > 0 ? value[v] : slope * value[v];
    }
  } else if (p.activation == Activation::kGradientByValues) {
    uint32_t kept[4];
    load_quad<kDtype>(p.kept, place, kept);
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      value[v] = unpack<kDtype>(kept[v / 2], v % 2) > 0 ? value[v] : p.slope * value[v];
    }
  } else if (p.activation == Activation::kGradientBySigns) {
    uint32_t bits = 0;
    if (place.inside) {
      bits = load_4_bytes(p.kept_signs + place.pixel * p.sign_bytes + place.channel / 8);
    }
    bits >>= 2 * q;
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      value[v] = bits >> (4 * (v & ~1) + v % 2) & 1 ? value[v] : p.slope * value[v];
    }
  }
#pragma unroll
  for (int v = 0; v < 8; ++v) {
    value[v] *= p.scale;
  }
  if (p.residual.count > 0) {
    add_quad<kDtype>(value, p.residual, p.residual_scale, place);
  }
  if (p.outer.count > 0) {
    add_quad<kDtype>(value, p.outer, p.outer_scale, place);
  }
  if (p.noise != nullptr && place.inside) {
    const float noise = unpack<kDtype>(load_2_bytes(static_cast<const uint16_t*>(p.noise) + place.pixel), 0);
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      value[v] += noise;
    }
  }
  uint32_t word[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    word[j] = pack<kDtype>(value[2 * j], value[2 * j + 1]);
  }
  transpose_quad(word, q);
  const int channel = place.channel + 8 * q;
  if (place.inside && channel < p.out.count) {
    const int64_t at = place.pixel * p.out.pixel_stride + channel;
    store_16_bytes(static_cast<uint8_t*>(p.out.data) + 2 * at, {{word[0], word[1], word[2], word[3]}});
  }
}

// The same for one channel of a pixel, of an out with fewer than 8 (see Problem::out).
template <Dtype kDtype>
ANDFAST_DEVICE void finish_narrow(const Problem& p, float value, int64_t pixel, int image, int channel) {
  if (p.bias != nullptr) {
    value += load_float(p.bias + channel);
  }
  const auto bits_at = [&](const Channels& from) {
    return load_2_bytes(static_cast<const uint16_t*>(from.data) + pixel * from.pixel_stride + channel);
  };
  if (p.activation == Activation::kLeakyReLU) {
    float slope = p.slope;
    if (p.slopes != nullptr) {
      slope = load_float(p.slopes + int64_t{image} * p.slopes_image_stride + channel * p.slopes_channel_stride);
    }
    value = value > 0 ? value : slope * value;
  } else if (p.activation == Activation::kGradientByValues) {
    value = unpack<kDtype>(bits_at(p.kept), 0) > 0 ? value : p.slope * value;
  } else if (p.activation == Activation::kGradientBySigns) {
    const uint32_t bits = load_4_bytes(p.kept_signs + pixel * p.sign_bytes);
    value = bits >> channel & 1 ? value : p.slope * value;
  }
  value *= p.scale;
  if (p.residual.count > 0) {
    value += p.residual_scale * unpack<kDtype>(bits_at(p.residual), 0);
  }
  if (p.outer.count > 0) {
    value += p.outer_scale * unpack<kDtype>(bits_at(p.outer), 0);
  }
  if (p.noise != nullptr) {
    value += unpack<kDtype>(load_2_bytes(static_cast<const uint16_t*>(p.noise) + pixel), 0);
  }
  store_2_bytes(static_cast<uint16_t*>(p.out.data) + pixel * p.out.pixel_stride + channel, pack<kDtype>(value, 0));
}

}  // namespace andfast::convolution
