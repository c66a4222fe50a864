// A family of kernels: how the ops ask what it can do, pack weights for it and launch it.
//
// Weights are packed once and used by many launches, so the family is chosen by Shape alone (and the device), never by
// image sizes or the epilogue: a family that supports a Shape supports every Problem of that shape.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "problem.h"
#include "weights.h"

namespace andfast::convolution {

struct Family {
  const char* name;
  // Whether kernels were built that run on a device of this compute capability (10 * major + minor).
  bool (*runs_on)(int capability);
  bool (*supports)(const Shape& shape);
  // Elements of one image's packed weights; a multiple of 64.
  int64_t (*packed_elements)(const Shape& shape);
  cudaError_t (*pack)(const PackJob* jobs, int n_jobs, cudaStream_t stream);
  // The problem satisfies its contract (the ops check it), and its weights were packed by this family. Capturable: no
  // synchronization, no allocation. multiprocessors: of the current device.
  cudaError_t (*launch)(const Problem& problem, int multiprocessors, cudaStream_t stream);
};

// mma.sync and cp.async, for compute capability 8.0 and newer; supports every valid shape.
extern const Family kMmaFamily;

// TMA and wgmma, for compute capability 9.0 where 9.0a was built; G's shapes.
extern const Family kWgmmaFamily;

// The first of the families, fastest first, that runs on the device and supports the shape.
const Family& choose_family(const Shape& shape, int capability);

}  // namespace andfast::convolution
