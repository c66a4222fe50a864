// What plans of several launches (dense_block.h) need of a device. The ops have a CUDA device, tests the CPU emulator.
#pragma once

#include <cstdint>
#include <vector>

#include "problem.h"
#include "weights.h"

namespace andfast::convolution {

class Backend {
 public:
  virtual ~Backend() = default;
  // Elements of one image's packed weights.
  virtual int64_t packed_elements(const Shape& shape) const = 0;
  virtual void pack(const std::vector<PackJob>& jobs) = 0;
  virtual void launch(const Problem& problem) = 0;
};

// Packed convolutions one after the other in one allocation: weights, then the bias in fp32.
class PackedBuffer {
 public:
  // Without `memory` it only counts bytes.
  PackedBuffer(const Backend& backend, void* memory) : backend_(backend), memory_(static_cast<uint8_t*>(memory)) {}

  struct Entry {
    void* weights;
    float* bias;
  };
  Entry next(const Shape& shape, int images = 1) {
    Entry entry;
    entry.weights = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += align(images * backend_.packed_elements(shape) * 2);
    entry.bias = memory_ == nullptr ? nullptr : reinterpret_cast<float*>(memory_ + bytes_);
    bytes_ += align(padded_bias(shape) * static_cast<int64_t>(sizeof(float)));
    return entry;
  }
  int64_t bytes() const { return bytes_; }

 private:
  static int64_t align(int64_t bytes) { return (bytes + 127) / 128 * 128; }

  const Backend& backend_;
  uint8_t* memory_;
  int64_t bytes_ = 0;
};

}  // namespace andfast::convolution
