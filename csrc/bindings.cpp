// andfast._C: host queries without tensors, for andfast.functional and its tests. Private. It needs no torch; whatever
// takes tensors is in andfast._ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "blur_pool/index.h"

namespace py = pybind11;

#define ANDFAST_TEXT_(...) #__VA_ARGS__
#define ANDFAST_TEXT(...) ANDFAST_TEXT_(__VA_ARGS__)

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host queries about andfast._ops (private).";

  // Compute capabilities that andfast._ops was built for, e.g. "8.0:9.0+PTX"; empty in a CPU-only build.
#ifdef ANDFAST_CUDA_ARCHS
  m.attr("CUDA_ARCHS") = ANDFAST_TEXT(ANDFAST_CUDA_ARCHS);
#else
  m.attr("CUDA_ARCHS") = "";
#endif

  // Index arithmetic, exposed for its tests.
  m.def("blur_pool_input_of", &andfast::input_of, py::arg("o"), py::arg("k"), py::arg("factor"), py::arg("pad"),
        py::arg("size"));
  m.def("blur_pool_padding_of", &andfast::padding_of, py::arg("n_taps"), py::arg("factor"));
  m.def("blur_pool_outputs_of", [](int64_t p, int64_t factor, int64_t n_taps, int64_t n_outputs) {
    const auto range = andfast::outputs_of(p, factor, n_taps, n_outputs);
    return std::make_pair(range.first, range.last);
  }, py::arg("p"), py::arg("factor"), py::arg("n_taps"), py::arg("n_outputs"));
  m.def("blur_pool_padded_of", [](int64_t i, int64_t pad, int64_t size) {
    const auto padded = andfast::padded_of(i, pad, size);
    return std::vector<int64_t>(padded.at, padded.at + padded.count);
  }, py::arg("i"), py::arg("pad"), py::arg("size"));
}
