// A family of kernels: how the ops ask what it can do, pack weights for it and launch it.
//
// Weights are packed once and used by many launches, so the family is chosen by Shape alone (and the device), never by
// image sizes or the epilogue: a family that supports a Shape supports every Problem of that shape.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "problem.h"

namespace andfast::convolution {

// Part of a convolution's weights along the reduction: logical weight (image n, output o, input i, tap t = 3 * ky + kx) is
//
//     scale * data[n * image_stride + o * out_stride + i * in_stride + (flip ? 8 - t : t)]
//
// A (Cout, Cin, 3, 3) tensor forward: out_stride = 9 * Cin, in_stride = 9. For the gradient to its input the two change
// places and flip is set; a slice of channels is an offset of data.
struct WeightPart {
  enum class Type : int32_t { kBFloat16, kHalf, kFloat };
  const void* data = nullptr;
  Type type = Type::kFloat;
  bool flip = false;
  int32_t channels = 0;  // of the reduction
  int32_t out_stride = 0;
  int32_t in_stride = 0;
  float scale = 1.0f;
  int64_t image_stride = 0;
};

// One convolution's weights to pack. The parts stand for the sources' channels in order; together they are as many.
struct PackJob {
  static constexpr int kMaxParts = 5;
  Shape shape;
  int32_t images = 1;  // 1 for shared weights
  int32_t n_parts = 0;
  WeightPart parts[kMaxParts];
  void* packed = nullptr;  // images * packed_elements(shape) elements of shape.dtype, 16-byte aligned
};

struct Family {
  const char* name;
  // Whether kernels were built that run on a device of this compute capability (10 * major + minor).
  bool (*runs_on)(int capability);
  bool (*supports)(const Shape& shape);
  // Elements of one image's packed weights; a multiple of 64.
  int64_t (*packed_elements)(const Shape& shape);
  cudaError_t (*pack)(const PackJob* jobs, int n_jobs, cudaStream_t stream);
  // The problem satisfies its contract (the ops check it), and its weights were packed by this family. Capturable: no
  // synchronisation, no allocation. multiprocessors: of the current device.
  cudaError_t (*launch)(const Problem& problem, int multiprocessors, cudaStream_t stream);
};

// mma.sync and cp.async, for compute capability 8.0 and newer; supports every valid shape.
extern const Family kMmaFamily;

// The first of the families, fastest first, that runs on the device and supports the shape.
const Family& choose_family(const Shape& shape, int capability);

}  // namespace andfast::convolution
