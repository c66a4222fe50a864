// Tensors of torch's stable ABI as the convolutions see them, and the device that runs them.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../check.h"
#include "backend.h"
#include "problem.h"

namespace andfast::convolution {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::string shape_text(const Tensor& t);

// The convolutions' own names of dtypes; raise for those that they do not take.
WeightPart::Type weight_type(const char* name, const Tensor& t);
Dtype dtype_of(ScalarType dtype);

// Checks that t is on a CUDA device, is bf16 or fp16 and has 4 dimensions, the last three not empty.
Dtype check_images(const char* name, const Tensor& t);
void check_like(const char* name, const Tensor& t, const Tensor& x);
void check_size(const char* name, const Tensor& t, std::vector<int64_t> size);

Tensor empty_channels_last(const Tensor& like, int64_t n, int64_t channels, int64_t height, int64_t width);
Tensor empty_bytes(const Tensor& like, std::vector<int64_t> size);

// The current device's stream and kernels. Makes t's device current for its lifetime.
class Device final : public Backend {
 public:
  explicit Device(const Tensor& t);
  int64_t packed_elements(const Shape& shape) const override;
  void pack(const std::vector<PackJob>& jobs) override;
  void launch(const Problem& problem) override;
  cudaStream_t stream() const { return stream_; }

  // t itself, if its channels are contiguous, a multiple of 8 and aligned, else a channels-last copy with channels of zeros.
  Channels channels_last(const Tensor& t);

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  int capability_;
  int multiprocessors_;
  std::vector<Tensor> copies_;  // alive until the launches are enqueued
};

// A dense channels-last tensor that was allocated here.
Channels whole(const Tensor& t);

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace andfast::convolution
