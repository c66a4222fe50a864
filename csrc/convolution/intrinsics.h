// The instructions that the kernels consist of, one function each. Under ANDFAST_EMULATOR the test's own versions, which
// check what hardware does not tell, take their place.
#pragma once

#include <cstdint>

#include "problem.h"

#ifdef ANDFAST_EMULATOR
#include "emulator/sm80.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define ANDFAST_DEVICE __device__ __forceinline__
#define ANDFAST_HOST_DEVICE __host__ __device__ __forceinline__

namespace andfast::convolution {

// Address of the CTA's dynamic shared memory.
ANDFAST_DEVICE uint32_t shared_base() {
  extern __shared__ __align__(1024) uint8_t shared[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Starts a copy of 16 bytes to shared memory, of which `bytes` (0 or 16) are read and the rest are zeros. It bypasses L1.
ANDFAST_DEVICE void copy_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
ANDFAST_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kGroups of this thread's latest commits are outstanding.
template <int kGroups>
ANDFAST_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

ANDFAST_DEVICE void synchronize() { __syncthreads(); }

// Four 8 x 8 matrices of 16-bit elements: lanes 8m to 8m + 7 give the addresses of the rows of matrix m.
ANDFAST_DEVICE void load_matrices(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}

// d (16 x 8, fp32) += a (16 x 16) * b (16 x 8)
template <Dtype kDtype>
ANDFAST_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kDtype == Dtype::kBFloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two values rounded to nearest even, the first in the low half; and back.
template <Dtype kDtype>
ANDFAST_DEVICE uint32_t pack(float low, float high) {
  uint32_t bits;
  if constexpr (kDtype == Dtype::kBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  }
  return bits;
}
template <Dtype kDtype>
ANDFAST_DEVICE float unpack(uint32_t bits, int half) {
  if constexpr (kDtype == Dtype::kBFloat16) {
    return __uint_as_float(half ? bits & 0xffff0000u : bits << 16);
  } else {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(half ? bits >> 16 : bits)));
  }
}

ANDFAST_DEVICE uint32_t shuffle_xor(uint32_t value, int lanes) { return __shfl_xor_sync(~0u, value, lanes); }

struct Words {
  uint32_t at[4];
};

// Global memory. Sources may be written by the same kernel (out is a slice of their buffer), so loads are plain ones.
ANDFAST_DEVICE Words load_16_bytes(const void* p) {
  Words w;
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3])
               : "l"(p));
  return w;
}
// In assembly, because nvcc splits some 16-byte stores into four.
ANDFAST_DEVICE void store_16_bytes(void* p, const Words& w) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w.at[0]), "r"(w.at[1]), "r"(w.at[2]),
               "r"(w.at[3])
               : "memory");
}
ANDFAST_DEVICE uint32_t load_4_bytes(const void* p) { return *static_cast<const uint32_t*>(p); }
ANDFAST_DEVICE void store_4_bytes(void* p, uint32_t value) { *static_cast<uint32_t*>(p) = value; }
ANDFAST_DEVICE uint32_t load_2_bytes(const void* p) { return *static_cast<const uint16_t*>(p); }
ANDFAST_DEVICE void store_2_bytes(void* p, uint32_t value) { *static_cast<uint16_t*>(p) = static_cast<uint16_t>(value); }
ANDFAST_DEVICE float load_float(const float* p) { return __ldg(p); }

}  // namespace andfast::convolution

#endif
