// csrc/convolution/intrinsics.h as the emulator has it: cp.async completes as late as the ISA allows, what is in flight is
// poisoned, ldmatrix counts bank conflicts, and every access is checked.
#pragma once

#include <array>

#include "memory.h"
#include "problem.h"

#define ANDFAST_DEVICE inline
#define ANDFAST_HOST_DEVICE inline

#define threadIdx (emulator::machine.current->thread)
#define blockIdx (emulator::machine.block)
#define gridDim (emulator::machine.blocks)

namespace emulator {

// Copies of a thread by cp.async: those not yet committed, and groups in order of their commits.
struct AsyncCopies {
  struct Copy {
    uint32_t to;
    const void* from;
    int bytes;
  };
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
  size_t completed = 0;  // groups
};
inline std::vector<AsyncCopies> async_copies;  // by thread

struct Arrived {
  uint32_t to;
  std::array<uint8_t, kUnit> data;
};
inline std::vector<Arrived> visible_after_barrier;

struct Counts {
  int64_t copied_bytes = 0;  // by cp.async, without zeros
  int64_t products = 0;      // mma.sync
  int64_t loads = 0;         // ldmatrix
};
inline Counts counts;

inline AsyncCopies& copies_of_thread() { return async_copies[machine.current->thread.x]; }

// Runs a kernel, block by block.
template <typename Kernel>
void launch(int blocks, int threads, uint32_t shared_bytes, const Kernel& kernel) {
  machine.kernel = kernel;
  machine.blocks.x = blocks;
  machine.threads.x = threads;
  machine.at_barrier_release = {[] {
    for (const Arrived& arrived : visible_after_barrier) {
      shared.end_write(arrived.to, arrived.data.data(), kUnit);
    }
    visible_after_barrier.clear();
  }};
  machine.at_exit = {[](const Fiber& fiber) {
    const AsyncCopies& copies = async_copies[fiber.thread.x];
    bool outstanding = !copies.open.empty();
    for (size_t g = copies.completed; g < copies.groups.size(); ++g) {
      outstanding = outstanding || !copies.groups[g].empty();
    }
    if (outstanding) {
      error("cp.async: a thread returns before its copies have arrived");
    }
  }};
  for (int block = 0; block < blocks && !machine.aborted; ++block) {
    machine.block.x = block;
    async_copies.assign(threads, AsyncCopies());
    visible_after_barrier.clear();
    shared.reset(shared_bytes);
    start_fibers(threads);
    run_fibers();
  }
}

inline float bfloat16_to_float(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}
inline uint16_t float_to_bfloat16(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  if ((word & 0x7fffffff) > 0x7f800000) {
    return 0x7fff;
  }
  return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

}  // namespace emulator

namespace andfast::convolution {

inline uint32_t shared_base() { return emulator::kSharedStart; }

inline void copy_async(uint32_t to, const void* from, int bytes) {
  using namespace emulator;
  if (bytes != 0 && bytes != 16) {
    fatal("cp.async: copies of 0 or 16 bytes are emulated");
  }
  shared.begin_write(to, kUnit, "cp.async");
  copies_of_thread().open.push_back({to, from, bytes});
  counts.copied_bytes += bytes;
}

inline void commit_copies() {
  auto& copies = emulator::copies_of_thread();
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}

template <int kGroups>
void wait_copies() {
  using namespace emulator;
  auto& copies = copies_of_thread();
  for (; copies.completed + kGroups < copies.groups.size(); ++copies.completed) {
    for (const auto& copy : copies.groups[copies.completed]) {
      Arrived arrived{copy.to, {}};
      if (copy.bytes > 0) {
        read_global(arrived.data.data(), copy.from, copy.bytes, "cp.async");
      }
      visible_after_barrier.push_back(arrived);
    }
  }
}

inline void synchronize() { emulator::barrier(); }

inline void load_matrices(uint32_t (&r)[4], uint32_t row) {
  using namespace emulator;
  struct Argument {
    uint32_t* r;
    uint32_t row;
  } argument{r, row};
  collective("ldmatrix", 0, &argument, [](void** arguments) {
    const auto of = [&](int lane) -> Argument& { return *static_cast<Argument*>(arguments[lane]); };
    ++counts.loads;
    for (int m = 0; m < 4; ++m) {
      uint32_t rows[8];
      for (int i = 0; i < 8; ++i) {
        rows[i] = of(8 * m + i).row;
        shared.check_read(rows[i], kUnit, "ldmatrix");
      }
      shared.count_banks(rows);
      for (int lane = 0; lane < kLanes; ++lane) {
        std::memcpy(&of(lane).r[m], shared.bytes + rows[lane / 4] + lane % 4 * 4, 4);
      }
    }
  });
}

template <Dtype kDtype>
float unpack(uint32_t bits, int half) {
  const auto word = static_cast<uint16_t>(half ? bits >> 16 : bits);
  if constexpr (kDtype == Dtype::kBFloat16) {
    return emulator::bfloat16_to_float(word);
  } else {
    _Float16 value;
    std::memcpy(&value, &word, 2);
    return static_cast<float>(value);
  }
}

template <Dtype kDtype>
uint32_t pack(float low, float high) {
  const auto one = [](float value) -> uint32_t {
    if constexpr (kDtype == Dtype::kBFloat16) {
      return emulator::float_to_bfloat16(value);
    } else {
      const auto rounded = static_cast<_Float16>(value);
      uint16_t bits;
      std::memcpy(&bits, &rounded, 2);
      return bits;
    }
  };
  return one(low) | one(high) << 16;
}

template <Dtype kDtype>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  using namespace emulator;
  struct Argument {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
  } argument{d, a, {b0, b1}};
  collective("mma", 0, &argument, [](void** arguments) {
    ++counts.products;
    float left[16][16];
    float right[16][8];
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto& of = *static_cast<Argument*>(arguments[lane]);
      const int row = lane / 4;
      const int column = lane % 4 * 2;
      for (int e = 0; e < 2; ++e) {
        for (int i = 0; i < 4; ++i) {
          left[row + i % 2 * 8][column + i / 2 * 8 + e] = unpack<kDtype>(of.a[i], e);
        }
        for (int i = 0; i < 2; ++i) {
          right[column + i * 8 + e][row] = unpack<kDtype>(of.b[i], e);
        }
      }
    }
    float sum[16][8] = {};
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 8; ++n) {
          sum[m][n] += left[m][k] * right[k][n];
        }
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto& of = *static_cast<Argument*>(arguments[lane]);
      for (int i = 0; i < 4; ++i) {
        of.d[i] += sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
      }
    }
  });
}

inline uint32_t shuffle_xor(uint32_t value, int lanes) {
  struct Argument {
    uint32_t value;
    uint32_t received;
  } argument{value, 0};
  emulator::collective("shfl", lanes, &argument, [lanes](void** arguments) {
    for (int lane = 0; lane < emulator::kLanes; ++lane) {
      static_cast<Argument*>(arguments[lane])->received = static_cast<Argument*>(arguments[lane ^ lanes])->value;
    }
  });
  return argument.received;
}

struct Words {
  uint32_t at[4];
};

inline Words load_16_bytes(const void* p) {
  Words words;
  emulator::read_global(&words, p, 16, "load");
  return words;
}
inline void store_16_bytes(void* p, const Words& words) { emulator::write_global(p, &words, 16, "store"); }
inline uint32_t load_4_bytes(const void* p) {
  uint32_t value;
  emulator::read_global(&value, p, 4, "load");
  return value;
}
inline void store_4_bytes(void* p, uint32_t value) { emulator::write_global(p, &value, 4, "store"); }
inline uint32_t load_2_bytes(const void* p) {
  uint16_t value;
  emulator::read_global(&value, p, 2, "load");
  return value;
}
inline void store_2_bytes(void* p, uint32_t value) { emulator::write_global(p, &value, 2, "store"); }
inline float load_float(const float* p) {
  float value;
  emulator::read_global(&value, p, 4, "load");
  return value;
}

}  // namespace andfast::convolution
