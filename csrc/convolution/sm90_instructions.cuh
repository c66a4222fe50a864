// The instructions of compute capability 9.0a, beside those of intrinsics.h, one function each. Addresses are of the shared
// window, in bytes. The CPU emulator (tests/ops/convolution/emulator) has functions of the same names.
#pragma once

#include "intrinsics.h"

#ifdef ANDFAST_EMULATOR
#include "emulator/sm90.h"
#else

#include <cuda.h>

namespace andfast::convolution::sm90 {

using TensorMap = CUtensorMap;

// ---- mbarriers

ANDFAST_DEVICE void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
// Makes the initialized barriers visible to the copies.
ANDFAST_DEVICE void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}
ANDFAST_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and lets the phase wait for this many bytes of copies too.
ANDFAST_DEVICE void mbarrier_arrive_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Returns once the phase of this parity is complete. A new barrier's phase has parity 0, the one before it counts as complete.
ANDFAST_DEVICE void mbarrier_wait(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra DONE;\nbra WAIT;\n"
      "DONE:\n}" ::"r"(barrier), "r"(parity)
      : "memory");
}

// ---- copies from global to shared memory; they complete on a barrier

ANDFAST_DEVICE void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
// A box of a four-dimensional tensor; elements outside of the tensor are zeros.
ANDFAST_DEVICE void tma_load(
    uint32_t to, const TensorMap* map, uint32_t barrier, int c, int x, int y, int n) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4,%5,%6}], [%2];" ::
          "r"(to), "l"(map), "r"(barrier), "r"(c), "r"(x), "r"(y), "r"(n)
      : "memory");
}
ANDFAST_DEVICE void tma_load(
    uint32_t to, const TensorMap* map, uint32_t barrier, int c, int x, int y, int z, int n) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3,%4,%5,%6,%7}], "
      "[%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(c), "r"(x), "r"(y), "r"(z), "r"(n)
      : "memory");
}
ANDFAST_DEVICE void bulk_load(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// ---- programmatic dependent launch; both do nothing in a kernel that is launched without it

// Returns once all that the stream launched before is complete and visible.
ANDFAST_DEVICE void wait_for_previous_kernel() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next kernel's CTAs may start where there is room for them.
ANDFAST_DEVICE void let_next_kernel_start() { asm volatile("griddepcontrol.launch_dependents;"); }

// ---- products of a warpgroup

// Operand of rows of 64 bytes with the 64-byte swizzle: eight adjacent rows a group, `group_bytes` from group to group. The
// swizzle goes by address bits, and the base offset is 0, so `address` may be any 16-byte unit of the first 32 bytes of any row.
ANDFAST_DEVICE uint64_t operand(uint32_t address, uint32_t group_bytes) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | (uint64_t{1} << 16) |
         (static_cast<uint64_t>(group_bytes >> 4) << 32) | (uint64_t{2} << 62);
}

ANDFAST_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
ANDFAST_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kGroupsInFlight>
ANDFAST_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsInFlight) : "memory");
}
// Keeps the compiler from moving reads of accumulators above the wait that precedes this.
template <int kCount>
ANDFAST_DEVICE void keep_below_wait(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#define ANDFAST_SUMS8(i) \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
      "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define ANDFAST_SUMS16(i) ANDFAST_SUMS8(i), ANDFAST_SUMS8(i + 8)
#define ANDFAST_SUMS48 ANDFAST_SUMS16(0), ANDFAST_SUMS16(16), ANDFAST_SUMS16(32)
#define ANDFAST_SUMS64 ANDFAST_SUMS48, ANDFAST_SUMS16(48)
#define ANDFAST_NAMES48 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30," \
  "%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define ANDFAST_NAMES64 ANDFAST_NAMES48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define ANDFAST_WGMMA(n, type, names, a, b, flag) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " flag ", 0;\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" names \
  "}, " a ", " b ", p, 1, 1, 0, 0;\n}"

// sums (+)= a b^T of 64 rows of a, 96 or 128 of b, and 16 channels; asynchronous. accumulate: 0 or 1.
template <Dtype kDtype>
ANDFAST_DEVICE void wgmma(float (&sums)[48], uint64_t a, uint64_t b, int accumulate) {
  if constexpr (kDtype == Dtype::kBFloat16) {
    asm volatile(ANDFAST_WGMMA("96", "bf16", ANDFAST_NAMES48, "%48", "%49", "%50")
                 : ANDFAST_SUMS48
                 : "l"(a), "l"(b), "r"(accumulate));
  } else {
    asm volatile(ANDFAST_WGMMA("96", "f16", ANDFAST_NAMES48, "%48", "%49", "%50")
                 : ANDFAST_SUMS48
                 : "l"(a), "l"(b), "r"(accumulate));
  }
}
template <Dtype kDtype>
ANDFAST_DEVICE void wgmma(float (&sums)[64], uint64_t a, uint64_t b, int accumulate) {
  if constexpr (kDtype == Dtype::kBFloat16) {
    asm volatile(ANDFAST_WGMMA("128", "bf16", ANDFAST_NAMES64, "%64", "%65", "%66")
                 : ANDFAST_SUMS64
                 : "l"(a), "l"(b), "r"(accumulate));
  } else {
    asm volatile(ANDFAST_WGMMA("128", "f16", ANDFAST_NAMES64, "%64", "%65", "%66")
                 : ANDFAST_SUMS64
                 : "l"(a), "l"(b), "r"(accumulate));
  }
}

#undef ANDFAST_WGMMA
#undef ANDFAST_NAMES64
#undef ANDFAST_NAMES48
#undef ANDFAST_SUMS64
#undef ANDFAST_SUMS48
#undef ANDFAST_SUMS16
#undef ANDFAST_SUMS8

// Registers a thread, from here on, of the calling warpgroup; the sum over the CTA's may not pass what it was launched with.
template <int kCount>
ANDFAST_DEVICE void give_up_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
ANDFAST_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// ---- within a warp

// Of an 8 x 8 matrix of 16-bit values, lane l holds row l / 4, columns 2 * (l % 4) and + 1; returns the same of its transpose.
ANDFAST_DEVICE uint32_t transpose_8x8(uint32_t pair) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}
ANDFAST_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
ANDFAST_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
ANDFAST_DEVICE float from_lane(float value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }

// ---- global memory

// Not by the read-only path, whose loads the compiler may move above wait_for_previous_kernel.
template <class T>
ANDFAST_DEVICE T load_value(const T* from) { return *from; }
ANDFAST_DEVICE void store_byte(uint8_t* to, uint32_t value) { *to = static_cast<uint8_t>(value); }

}  // namespace andfast::convolution::sm90

#endif
