// The instructions of csrc/convolution/sm90_instructions.cuh in the emulator, which also checks every rule that hardware
// does not enforce.
#pragma once

#include <cstdint>

#include "sm90_block.h"

namespace andfast::convolution::sm90 {

using TensorMap = emulator::Map;

inline void mbarrier_init(uint32_t barrier, int arrivals) {
  using namespace emulator;
  if (barrier % 8 != 0 || barrier < kSharedStart || barrier + 8 > shared.end) {
    fatal("mbarrier: address");
  }
  Mbarrier fresh;
  fresh.arrivals = fresh.pending = arrivals;
  fresh.initialized_by = static_cast<int>(machine.current->thread.x);
  mbarriers[barrier] = fresh;
  shared.state[barrier / kUnit] = State::kReserved;
}
inline void mbarrier_init_fence() {
  using namespace emulator;
  for (auto& [at, barrier] : mbarriers) {
    barrier.fenced = barrier.fenced || barrier.initialized_by == static_cast<int>(machine.current->thread.x);
  }
}
inline void mbarrier_arrive(uint32_t at) {
  using namespace emulator;
  Mbarrier& barrier = mbarrier_at(at);
  if (barrier.pending == 0) {
    error("mbarrier: more arrivals than its count");
    return;
  }
  --barrier.pending;
  complete_phase_if_due(barrier);
}
inline void mbarrier_arrive_expect(uint32_t at, int bytes) {
  emulator::mbarrier_at(at).bytes += bytes;
  mbarrier_arrive(at);
}
inline void mbarrier_wait(uint32_t at, int parity) {
  using namespace emulator;
  maybe_run_copies();
  Mbarrier& barrier = mbarrier_at(at);
  if (parity != 0 && parity != 1) {
    error("mbarrier: parity");
  }
  const uint64_t phase = barrier.phase;
  if (static_cast<int>(phase & 1) != parity) {
    return;  // the phase before this one has that parity, and is complete
  }
  while (barrier.phase == phase) {
    barrier.waiting.push_back(machine.current);
    wait("mbarrier");
  }
  if (barrier.phase != phase + 1) {
    error("mbarrier: two phases went by before a thread that waits looked");
  }
}

inline void prefetch_map(const TensorMap*) {}
inline void tma_load(uint32_t to, const TensorMap* map, uint32_t barrier, int c, int x, int y, int n) {
  emulator::start_tma(to, *map, barrier, {c, x, y, n});
}
inline void tma_load(uint32_t to, const TensorMap* map, uint32_t barrier, int c, int x, int y, int z, int n) {
  emulator::start_tma(to, *map, barrier, {c, x, y, z, n});
}
inline void bulk_load(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  emulator::start_copy({to, static_cast<uint32_t>(bytes), barrier, nullptr, {}, static_cast<const uint8_t*>(from)});
}

inline void wait_for_previous_kernel() {
  emulator::previous_kernel_complete[emulator::machine.current->thread.x] = true;
}
inline void let_next_kernel_start() { emulator::check_dependency("griddepcontrol.launch_dependents"); }

inline uint64_t operand(uint32_t address, uint32_t group_bytes) {
  return (address & 0x3FFFF) >> 4 | 1ull << 16 | static_cast<uint64_t>(group_bytes >> 4) << 32 | 2ull << 62;
}
inline void wgmma_fence() {
  using namespace emulator;
  collective("wgmma.fence", 0, nullptr, [](void**) { warpgroup().fenced[machine.current->warp % 4] = true; });
}
inline void wgmma_commit() {
  using namespace emulator;
  collective("wgmma.commit_group", 0, nullptr, [](void**) {
    const int warp = machine.current->warp % 4;
    warpgroup().groups[warp].push_back(warpgroup().issued[warp]);
  });
}
template <int kGroupsInFlight>
void wgmma_wait() {
  emulator::wait_for_products(kGroupsInFlight);
}
template <int kCount>
void keep_below_wait(float (&)[kCount]) {}
template <Dtype kDtype, int kCount>
void wgmma(float (&sums)[kCount], uint64_t a, uint64_t b, int accumulate) {
  emulator::issue_product<kDtype>(sums, 2 * kCount, a, b, accumulate != 0);
}

template <int kCount>
void give_up_registers() {
  emulator::set_registers(kCount, false);
}
template <int kCount>
void take_registers() {
  emulator::set_registers(kCount, true);
}

inline uint32_t transpose_8x8(uint32_t pair) {
  struct Argument {
    uint32_t pair;
    uint32_t result;
  } argument{pair, 0};
  emulator::collective("movmatrix", 0, &argument, [](void** arguments) {
    uint16_t matrix[8][8];
    ++emulator::sm90_counts.shuffles;
    for (int lane = 0; lane < emulator::kLanes; ++lane) {
      std::memcpy(&matrix[lane / 4][2 * (lane % 4)], &static_cast<Argument*>(arguments[lane])->pair, 4);
    }
    for (int lane = 0; lane < emulator::kLanes; ++lane) {
      const uint32_t low = matrix[2 * (lane % 4)][lane / 4];
      const uint32_t high = matrix[2 * (lane % 4) + 1][lane / 4];
      static_cast<Argument*>(arguments[lane])->result = low | high << 16;
    }
  });
  return argument.result;
}
inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float from_lane(float value, int lane) {
  struct Argument {
    float value;
    int lane;
    float received;
  } argument{value, lane, 0};
  emulator::collective("shfl.idx", 0, &argument, [](void** arguments) {
    ++emulator::sm90_counts.shuffles;
    for (int i = 0; i < emulator::kLanes; ++i) {
      auto& of = *static_cast<Argument*>(arguments[i]);
      of.received = static_cast<Argument*>(arguments[of.lane])->value;
    }
  });
  return argument.received;
}

template <class T>
T load_value(const T* from) {
  T value;
  emulator::check_dependency("load");
  emulator::read_global(&value, from, sizeof(T), "load");
  return value;
}
inline void store_byte(uint8_t* to, uint32_t value) {
  const auto byte = static_cast<uint8_t>(value);
  emulator::write_global(to, &byte, 1, "store");
}

}  // namespace andfast::convolution::sm90
