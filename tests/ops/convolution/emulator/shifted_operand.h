// One assumption of sm90_taps.cuh alone: an operand of wgmma may begin at any row of a swizzled tile, with base offset 0,
// as the swizzle goes by address bits. Run by the emulator and on a GPU.
#pragma once

#include "sm90_pipeline.cuh"

namespace andfast::convolution::sm90 {

constexpr int kShiftedRows = Taps<Resampling::kNone>::kPitch * Taps<Resampling::kNone>::kHaloHeight;
constexpr int kShiftedPixelBytes = kShiftedRows * kRowBytes;
constexpr int kShiftedWeightBytes = 64 * kRowBytes;
constexpr int kShiftedSharedBytes = 1024 + kShiftedWeightBytes + kShiftedPixelBytes + 16;
// The last group of eight rows of the last shift ends with the tile.
constexpr int kShifts = kShiftedRows - 15 * Taps<Resampling::kNone>::kPitch - 7;

// For each shift s: out[s][o][n] = sum over i of weights[o][i] * pixels[s + n / 8 * 18 + n % 8][i], n < 128. Both operands
// are given as shared memory holds them, swizzled. For a CTA of 128 threads.
ANDFAST_DEVICE void multiply_shifted(
    const uint16_t* pixels,   // (kShiftedRows, 32)
    const uint16_t* weights,  // (64, 32)
    float* out,               // (kShifts, 64, 128)
    bool with_base_offset) {  // as if the swizzle began where the operand does: not what the kernels do
  const uint32_t at_weights = (shared_base() + 1023) & ~1023u;
  const uint32_t at_pixels = at_weights + kShiftedWeightBytes;
  const uint32_t barrier = at_pixels + kShiftedPixelBytes;
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
  }
  synchronize();
  wait_for_previous_kernel();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, kShiftedWeightBytes + kShiftedPixelBytes);
    bulk_load(at_weights, weights, kShiftedWeightBytes, barrier);
    bulk_load(at_pixels, pixels, kShiftedPixelBytes, barrier);
  }
  mbarrier_wait(barrier, 0);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  for (int shift = 0; shift < kShifts; ++shift) {
    const uint64_t base_offset = with_base_offset ? (at_pixels + shift * kRowBytes) >> 7 & 7 : 0;
    float sums[64];
    wgmma_fence();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      wgmma<Dtype::kBFloat16>(sums, operand(at_weights + 32 * half, 8 * kRowBytes),
                              operand(at_pixels + shift * kRowBytes + 32 * half,
                                      Taps<Resampling::kNone>::kPitch * kRowBytes) |
                                  base_offset << 49,
                              half > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    keep_below_wait(sums);
#pragma unroll
    for (int r = 0; r < 64; r += 2) {
      const int column = 8 * (r / 4) + 2 * (threadIdx.x % 4);
      float* const to = out + (shift * 64 + row + 8 * (r / 2 % 2)) * 128 + column;
      store_4_bytes(to, bits_of(sums[r]));
      store_4_bytes(to + 1, bits_of(sums[r + 1]));
    }
  }
}

}  // namespace andfast::convolution::sm90
