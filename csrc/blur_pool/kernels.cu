// CUDA kernels of anti-aliased pooling. A thread's work is in forward.h, backward.h and any_filter.h, the launch plan
// in plan.h; docs/kernels/blur_pool.md has the counts.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "any_filter.h"
#include "backward.h"
#include "kernels.h"
#include "forward.h"
#include "tile.h"

namespace andfast::pool {
namespace {

// Memory accesses of a thread, see tile.h.
struct DeviceMemory {
  float* shared;

  template <typename T, int N>
  struct Bits {
    static_assert(sizeof(T) * N == 2 || sizeof(T) * N == 4 || sizeof(T) * N == 8 || sizeof(T) * N == 16);
    using type = std::conditional_t<
        sizeof(T) * N == 16, uint4,
        std::conditional_t<
            sizeof(T) * N == 8, uint2, std::conditional_t<sizeof(T) * N == 4, unsigned, unsigned short>>>;
  };

  template <typename T>
  __device__ __forceinline__ Pack<T, kChunk<T>> load(const T* p, int count, bool vector) const {
    constexpr int N = kChunk<T>;
    Pack<T, N> pack;
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (vector) {
      if (count > 0) {
        bits = __ldg(reinterpret_cast<const uint4*>(p));
      }
      std::memcpy(&pack, &bits, sizeof(bits));
      return pack;
    }
#pragma unroll
    for (int v = 0; v < N; ++v) {
      pack.at[v] = v < count ? p[v] : T(0);
    }
    return pack;
  }

  template <typename T, int N>
  __device__ __forceinline__ float widen(const Pack<T, N>& pack, int v) const {
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      unsigned words[N / 2];
      std::memcpy(words, &pack, sizeof(words));
      return __uint_as_float(v % 2 ? words[v / 2] & 0xffff0000u : words[v / 2] << 16);
    } else {
      return static_cast<float>(pack.at[v]);
    }
  }

  template <typename T, int N>
  __device__ __forceinline__ void store(T* p, const Pack<T, N>& pack, int count, bool vector) const {
    if (vector) {
      using Word = typename Bits<T, N>::type;
      Word bits;
      std::memcpy(&bits, &pack, sizeof(bits));
      *reinterpret_cast<Word*>(p) = bits;
      return;
    }
#pragma unroll
    for (int v = 0; v < N; ++v) {
      if (v < count) {
        p[v] = pack.at[v];
      }
    }
  }

  template <int N>
  __device__ __forceinline__ void write(int at, const float (&values)[N]) const {
    constexpr int kStep = N < 4 ? N : 4;
    using Word = typename Bits<float, kStep>::type;
#pragma unroll
    for (int v = 0; v < N; v += kStep) {
      Word bits;
      std::memcpy(&bits, values + v, sizeof(bits));
      *reinterpret_cast<Word*>(shared + at + v) = bits;
    }
  }

  template <int N>
  __device__ __forceinline__ void read(int at, float (&values)[N]) const {
    using Word = typename Bits<float, N>::type;
    const Word bits = *reinterpret_cast<const Word*>(shared + at);
    std::memcpy(values, &bits, sizeof(bits));
  }
};

template <template <typename, typename, Layout> class Thread, Layout kLayout, typename T, typename F>
__global__ void __launch_bounds__(kMaxThreads, (Thread<T, F, kLayout>::kResident)) tile_kernel(
    const __grid_constant__ Plan plan, const __grid_constant__ F filter, const T* __restrict__ from,
    T* __restrict__ to) {
  extern __shared__ float4 shared[];
  DeviceMemory memory{reinterpret_cast<float*>(shared)};
  Thread<T, F, kLayout> thread(plan, filter, from, to, blockIdx.x, static_cast<int>(threadIdx.x));
  thread.prepare(memory);
  for (int step = thread.begin(); step < thread.end(); ++step) {
    thread.gather(memory, step);
    if (thread.emits(step)) {
      __syncthreads();
      thread.emit(memory, step);
    }
  }
}

template <bool kForward, typename T, typename Acc>
__global__ void any_kernel(
    const __grid_constant__ AnyFilter<Acc> filter, const T* __restrict__ from, T* __restrict__ to, int64_t results) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < results; at += step) {
    to[at] = kForward ? forward_at(filter, from, at) : backward_at(filter, from, at);
  }
}

struct Call {
  bool forward;
  const Sizes& sizes;
  const std::vector<double>& taps;
  void* large;
  void* small;
  int multiprocessors;
  cudaStream_t stream;
};

template <typename T, int kFactor, int kTaps>
void launch_tiles(const Call& call) {
  using F = Filter<kFactor, kTaps>;
  F filter;
  std::copy_n(call.taps.begin(), kTaps, filter.taps);
  const Plan plan = make_plan(
      call.forward, call.sizes, kChunk<T>, reinterpret_cast<std::uintptr_t>(call.large),
      reinterpret_cast<std::uintptr_t>(call.small), call.multiprocessors);
  const auto go = [&](auto kernel, const T* from, T* to) {
    kernel<<<static_cast<unsigned>(plan.blocks), plan.threads, static_cast<size_t>(plan.shared_bytes()), call.stream>>>(
        plan, filter, from, to);
  };
  const auto either = [&]<Layout kLayout>() {
    if (call.forward) {
      go(tile_kernel<Forward, kLayout, T, F>, static_cast<const T*>(call.large), static_cast<T*>(call.small));
    } else {
      go(tile_kernel<Backward, kLayout, T, F>, static_cast<const T*>(call.small), static_cast<T*>(call.large));
    }
  };
  switch (layout_of(plan)) {
    case Layout::kPixels: return either.template operator()<Layout::kPixels>();
    case Layout::kRows: return either.template operator()<Layout::kRows>();
    case Layout::kValues: return either.template operator()<Layout::kValues>();
  }
}

template <typename T>
void launch_tiles(const Call& call) {
  switch (call.sizes.factor) {
    case 2: return launch_tiles<T, 2, 4>(call);
    case 3: return launch_tiles<T, 3, 5>(call);
    case 4: return launch_tiles<T, 4, 8>(call);
  }
}

template <typename T, typename Acc>
void launch_any(const Call& call) {
  const Sizes& s = call.sizes;
  AnyFilter<Acc> filter{s.height, s.width, s.inner, s.factor, s.n_taps, {}};
  std::copy(call.taps.begin(), call.taps.end(), filter.taps);
  const int64_t large = s.images * s.height * s.large_row();
  const int64_t results = call.forward ? large / s.factor / s.factor : large;
  constexpr int kThreads = 256;
  const auto blocks = static_cast<unsigned>(std::min(ceil_div(results, kThreads), int64_t{1} << 30));
  const auto* const from = static_cast<const T*>(call.forward ? call.large : call.small);
  auto* const to = static_cast<T*>(call.forward ? call.small : call.large);
  if (call.forward) {
    any_kernel<true><<<blocks, kThreads, 0, call.stream>>>(filter, from, to, results);
  } else {
    any_kernel<false><<<blocks, kThreads, 0, call.stream>>>(filter, from, to, results);
  }
}

}  // namespace

bool has_tiles(Dtype dtype, int64_t factor, int64_t n_taps) {
  return dtype != Dtype::kDouble &&
      ((factor == 2 && n_taps == 4) || (factor == 3 && n_taps == 5) || (factor == 4 && n_taps == 8));
}

void launch(bool forward, bool tiles, Dtype dtype, const Sizes& sizes, const std::vector<double>& taps, void* large,
            void* small, int multiprocessors, cudaStream_t stream) {
  const Call call{forward, sizes, taps, large, small, multiprocessors, stream};
  switch (dtype) {
    case Dtype::kFloat: return tiles ? launch_tiles<float>(call) : launch_any<float, float>(call);
    case Dtype::kHalf: return tiles ? launch_tiles<c10::Half>(call) : launch_any<c10::Half, float>(call);
    case Dtype::kBFloat16: return tiles ? launch_tiles<c10::BFloat16>(call) : launch_any<c10::BFloat16, float>(call);
    case Dtype::kDouble: return launch_any<double, double>(call);
  }
}

}  // namespace andfast::pool
