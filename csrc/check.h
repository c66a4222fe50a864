// Errors about arguments, for sources that see torch through its stable ABI only.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <stdexcept>

// An error about an argument: its name, what it must be, what it was. (STD_TORCH_CHECK would put paths in front.)
#define ANDFAST_CHECK(holds, ...)                                              \
  do {                                                                         \
    if (!(holds)) {                                                            \
      throw std::runtime_error(torch::headeronly::detail::stdTorchCheckMsgImpl( \
          "", __VA_ARGS__));                                                   \
    }                                                                          \
  } while (false)
