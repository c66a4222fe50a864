// The family of sm_90a kernels: instances, launches, packing of weights.

#include <cudaTypedefs.h>

#include <algorithm>
#include <atomic>
#include <string_view>

#include "family.h"
#include "pack.cuh"
#include "sm90_launch.h"
#include "sm90_rows.cuh"
#include "sm90_taps.cuh"

namespace andfast::convolution::sm90 {

namespace {

#define ANDFAST_TEXT_OF(...) #__VA_ARGS__
#define ANDFAST_TEXT(...) ANDFAST_TEXT_OF(__VA_ARGS__)
#ifdef ANDFAST_CUDA_ARCHS
constexpr std::string_view kArchs = ANDFAST_TEXT(ANDFAST_CUDA_ARCHS);
#else
constexpr std::string_view kArchs = "";
#endif

bool runs_on(int capability) { return capability == 90 && kArchs.find("9.0a") != std::string_view::npos; }

// For other architectures, which the same file is compiled for, these kernels are empty; runs_on keeps them from being used.
template <Dtype kDtype, bool kPairs>
__global__ void __launch_bounds__(Rows::kThreads, 1) wgmma_rows(const __grid_constant__ Launch launch) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  convolve_rows<kDtype, kPairs>(launch);
#endif
}
template <Dtype kDtype, Resampling kResampling>
__global__ void __launch_bounds__(Taps<kResampling>::kThreads, 1) wgmma_taps(const __grid_constant__ Launch launch) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  convolve_taps<kDtype, kResampling>(launch);
#endif
}

using Kernel = void (*)(Launch);

template <Dtype kDtype, bool kRows, Resampling kResampling>
Kernel kernel_for(bool pairs) {
  if constexpr (!kRows) return wgmma_taps<kDtype, kResampling>;
  return pairs ? wgmma_rows<kDtype, true> : wgmma_rows<kDtype, false>;
}

// ---- maps

// From the driver, without linking against it.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? entry : nullptr;
  }();
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
}

cudaError_t encode(CUtensorMap& map, const TensorView& view, Dtype dtype) {
  const auto encode_tiled = encoder();
  if (encode_tiled == nullptr) return cudaErrorSymbolNotFound;
  cuuint64_t sizes[5];
  cuuint64_t strides[4];  // of all dimensions but the first
  cuuint32_t box[5];
  cuuint32_t every[5];
  for (int d = 0; d < view.rank; ++d) {
    sizes[d] = view.sizes[d];
    box[d] = view.box[d];
    every[d] = 1;
    if (d > 0) strides[d - 1] = view.strides[d];
  }
  const CUresult result = encode_tiled(
      &map, dtype == Dtype::kHalf ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, view.rank,
      const_cast<void*>(view.data), sizes, strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// ---- launches

// Lets a kernel have all the shared memory there is, once on each device.
cudaError_t allow_shared_memory(Kernel kernel, std::atomic<uint64_t>& allowed_on) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const uint64_t bit = uint64_t{1} << (device % 64);
  if (device < 64 && (allowed_on.load() & bit) != 0) return cudaSuccess;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxSharedBytes);
  if (error == cudaSuccess) allowed_on.fetch_or(bit);
  return error;
}

template <Dtype kDtype, bool kRows, Resampling kResampling>
cudaError_t launch_kernel(const Problem& problem, int multiprocessors, cudaStream_t stream) {
  Launch l;
  fill_launch<kRows, kResampling>(l, problem);
  const auto encode_maps = [&](bool pairs) {
    for (int s = 0; s < 2; ++s) {
      const Channels& source = problem.sources[problem.sources[1].count > 0 ? s : 0];
      const cudaError_t error =
          encode(l.maps[s], kRows ? rows_view(problem, source, pairs) : taps_view<kResampling>(problem, source),
                 problem.dtype);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  };
  // The stride of a pair's columns is smaller than that of pairs, which comes before it. The driver's documentation nests
  // strides; should it insist, the kernel for odd widths gives the same bits.
  bool pairs = kRows && rows_in_pairs(problem);
  cudaError_t error = encode_maps(pairs);
  if (error != cudaSuccess && pairs) {
    pairs = false;
    error = encode_maps(pairs);
  }
  if (error != cudaSuccess) return error;

  static std::atomic<uint64_t> allowed_on[2];  // by device; rows have two kernels
  const Kernel kernel = kernel_for<kDtype, kRows, kResampling>(pairs);
  error = allow_shared_memory(kernel, allowed_on[pairs]);
  if (error != cudaSuccess) return error;

  // The next kernel's CTAs may start on multiprocessors that this one has left; all kernels here wait for it before they
  // touch global memory, and any other kernel is launched without this and waits as ever.
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(std::min(l.tiles, multiprocessors));
  config.blockDim = dim3(kRows ? Rows::kThreads : Taps<kResampling>::kThreads);
  config.dynamicSmemBytes = l.plan.shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, l);
}

cudaError_t launch(const Problem& problem, int multiprocessors, cudaStream_t stream) {
  if (problem.images == 0 || problem.height == 0 || problem.width == 0) return cudaSuccess;
  return with_kernel(shape_of(problem), [&]<bool kRows, Resampling kResampling>() {
    return problem.dtype == Dtype::kHalf
               ? launch_kernel<Dtype::kHalf, kRows, kResampling>(problem, multiprocessors, stream)
               : launch_kernel<Dtype::kBFloat16, kRows, kResampling>(problem, multiprocessors, stream);
  });
}

// ---- packing

struct Layout {
  static ANDFAST_HOST_DEVICE int elements(const Shape& shape) { return packed_elements(shape); }
  static ANDFAST_HOST_DEVICE PackedElement element(const Shape& shape, int at) {
    return with_kernel(shape, [&]<bool kRows, Resampling kResampling>() {
      return packed_element<kRows, kResampling>(shape, at);
    });
  }
};

int64_t elements_of(const Shape& shape) { return packed_elements(shape); }

cudaError_t pack(const PackJob* jobs, int n_jobs, cudaStream_t stream) {
  return launch_pack<Layout>(jobs, n_jobs, stream);
}

}  // namespace
}  // namespace andfast::convolution::sm90

namespace andfast::convolution {

const Family kWgmmaFamily = {"wgmma", sm90::runs_on, sm90::supports, sm90::elements_of, sm90::pack, sm90::launch};

}  // namespace andfast::convolution
