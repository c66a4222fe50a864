// The kernel that packs weights, for any family.
//
// A family's Layout has, as static device functions, `int elements(const Shape&)`, those of one image, and
// `PackedElement element(const Shape&, int at)`; elements are a multiple of 2.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

#include "pack.h"

namespace andfast::convolution {

constexpr int kJobsPerLaunch = 12;  // kernel arguments are at most 4 kB

struct PackJobs {
  PackJob job[kJobsPerLaunch];
};
static_assert(sizeof(PackJobs) <= 4096);

// One job a row of the grid; a thread packs two elements at a time.
template <typename Layout>
__global__ void __launch_bounds__(256, 4) pack_weights(const __grid_constant__ PackJobs jobs) {
  const PackJob& job = jobs.job[blockIdx.y];
  const int elements = Layout::elements(job.shape);
  const int64_t total = int64_t{elements} * job.images;
  const int64_t step = int64_t{2} * blockDim.x * gridDim.x;
  for (int64_t at = 2 * (int64_t{blockIdx.x} * blockDim.x + threadIdx.x); at < total; at += step) {
    float value[2];
    for (int e = 0; e < 2; ++e) {
      const PackedElement element = Layout::element(job.shape, static_cast<int>((at + e) % elements));
      value[e] = packed_weight(job, (at + e) / elements, element);
    }
    const uint32_t bits = job.shape.dtype == Dtype::kHalf ? pack<Dtype::kHalf>(value[0], value[1])
                                                          : pack<Dtype::kBFloat16>(value[0], value[1]);
    store_4_bytes(static_cast<uint16_t*>(job.packed) + at, bits);
  }
  if (blockIdx.x == 0 && job.packed_bias != nullptr) {
    for (int n = threadIdx.x; n < padded_bias(job.shape); n += blockDim.x) {
      job.packed_bias[n] = packed_bias(job, n);
    }
  }
}

template <typename Layout>
cudaError_t launch_pack(const PackJob* jobs, int n_jobs, cudaStream_t stream) {
  for (int first = 0; first < n_jobs; first += kJobsPerLaunch) {
    const int count = std::min(kJobsPerLaunch, n_jobs - first);
    PackJobs batch;
    std::copy(jobs + first, jobs + first + count, batch.job);
    pack_weights<Layout><<<dim3(32, count), 256, 0, stream>>>(batch);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
      return error;
    }
  }
  return cudaSuccess;
}

}  // namespace andfast::convolution
