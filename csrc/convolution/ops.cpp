// The convolution ops of namespace andfast, registered with torch's stable ABI: one build serves every torch from 2.11 on.
// Private: andfast.functional checks what users pass and differentiates; here are the checks that memory safety needs.
#include <torch/csrc/stable/library.h>

#include "ops.h"

// A fragment, because torch.library defines other ops of this namespace in Python.
STABLE_TORCH_LIBRARY_FRAGMENT(andfast, m) {
  m.def(
      "convolution_pack(Tensor weight, Tensor? bias, ScalarType dtype, int factor, bool backward) -> Tensor");
  m.def(
      "convolution_forward(Tensor x, Tensor packed, int out_channels, int factor, float slope, Tensor? slopes, "
      "float scale, Tensor? residual, Tensor? noise, bool replicate, bool per_image, bool keep_signs) "
      "-> (Tensor, Tensor)");
  m.def(
      "convolution_backward(Tensor grad, Tensor packed, int in_channels, int factor, Tensor? input_signs, "
      "float input_slope, bool per_image) -> Tensor");
  m.def("convolution_activation_backward(Tensor grad, Tensor signs, float slope) -> Tensor");
  m.def(
      "dense_blocks_pack(Tensor[] weights, Tensor[] biases, ScalarType dtype, int per_group, float scale, "
      "float outer_scale, bool backward) -> Tensor");
  m.def(
      "dense_blocks_forward(Tensor x, Tensor packed, int growth, int blocks, int per_group, float slope, float scale, "
      "float outer_scale, int keep) -> (Tensor, Tensor)");
  m.def(
      "dense_blocks_backward(Tensor grad, Tensor saved, Tensor packed, int growth, int blocks, int per_group, "
      "float slope, float scale, float outer_scale) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(andfast, CUDA, m) {
  using namespace andfast::convolution;
  m.impl("convolution_pack", TORCH_BOX(&convolution_pack));
  m.impl("convolution_forward", TORCH_BOX(&convolution_forward));
  m.impl("convolution_backward", TORCH_BOX(&convolution_backward));
  m.impl("convolution_activation_backward", TORCH_BOX(&convolution_activation_backward));
  m.impl("dense_blocks_pack", TORCH_BOX(&dense_blocks_pack));
  m.impl("dense_blocks_forward", TORCH_BOX(&run_dense_blocks_forward));
  m.impl("dense_blocks_backward", TORCH_BOX(&run_dense_blocks_backward));
}
