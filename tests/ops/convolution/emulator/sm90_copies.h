// Emulated mbarriers, TMA and bulk copies. Copies complete as late, as early or as irregularly as the ISA allows; the bytes
// that they write are poisoned meanwhile.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "sm80.h"

namespace emulator {

enum class Completion : int32_t { kLate, kEarly, kMixed };

// Completion of copies; strict: a warp that waits for its wgmma knows of its own quarter of them only.
struct Schedule {
  Completion completion = Completion::kLate;
  bool strict = false;
};
inline Schedule schedule;

struct Mbarrier {
  int arrivals = 0;
  int pending = 0;
  int64_t bytes = 0;  // expected and not yet copied; copies may come first
  uint64_t phase = 0;
  bool fenced = false;
  int initialized_by = -1;
  std::vector<Fiber*> waiting;
};

// A tensor as TMA sees it: rows of 64 bytes with the 64-byte swizzle, zeros outside.
struct Map {
  static constexpr int kRank = 5;
  const uint8_t* data = nullptr;
  int rank = 0;
  int64_t sizes[kRank] = {};
  int64_t strides[kRank] = {};  // in bytes
  int box[kRank] = {};
};

struct Copy {
  uint32_t to;
  uint32_t bytes;
  uint32_t barrier;
  const Map* map;  // or null for a bulk copy
  int at[Map::kRank];
  const uint8_t* from;
};

struct Sm90Counts {
  int64_t copied_bytes = 0;  // from global memory
  int64_t zero_bytes = 0;
  int64_t products = 0;
  int64_t product_columns = 0;
  int64_t operand_bytes = 0;
  int64_t shuffles = 0;
};
inline Sm90Counts sm90_counts;

inline std::map<uint32_t, Mbarrier> mbarriers;
inline std::vector<Copy> copies_in_flight;
inline std::vector<int> reads_in_flight;  // by unit of shared memory: operands of wgmma that was not waited for
inline std::vector<bool> previous_kernel_complete;  // as each thread knows

inline void check_dependency(const char* who) {
  if (!previous_kernel_complete[machine.current->thread.x]) {
    error(std::string(who) + ": global memory is read before the previous kernel is known to be complete");
  }
}

inline Mbarrier& mbarrier_at(uint32_t at) {
  const auto found = mbarriers.find(at);
  if (found == mbarriers.end()) {
    fatal("mbarrier: used before it is initialized");
  }
  return found->second;
}

inline void complete_phase_if_due(Mbarrier& barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    ++barrier.phase;
    barrier.pending = barrier.arrivals;
    for (const Fiber* fiber : barrier.waiting) {
      wake(*fiber);
    }
    barrier.waiting.clear();
  }
}

inline uint32_t swizzled(uint32_t at) { return at ^ ((at >> 7 & 3) << 4); }

inline void run_copy(size_t index) {
  const Copy copy = copies_in_flight[index];
  copies_in_flight.erase(copies_in_flight.begin() + static_cast<int64_t>(index));
  std::vector<uint8_t> data(copy.bytes);
  if (copy.map == nullptr) {
    for (uint32_t i = 0; i < copy.bytes; i += kUnit) {
      read_global(&data[i], copy.from + i, kUnit, "bulk copy");
    }
    sm90_counts.copied_bytes += copy.bytes;
  } else {
    const Map& map = *copy.map;
    for (uint32_t i = 0; i < copy.bytes; i += kUnit) {
      // Unit i of the box, as coordinates of its first element.
      int64_t rest = i / 2;
      const uint8_t* from = map.data;
      bool inside = true;
      for (int d = 0; d < map.rank; ++d) {
        const int64_t at = copy.at[d] + rest % map.box[d];
        rest /= map.box[d];
        inside = inside && at >= 0 && at < map.sizes[d];
        from += at * map.strides[d];
      }
      uint8_t* const to = &data[swizzled(copy.to + i) - copy.to];
      if (inside) {
        read_global(to, from, kUnit, "TMA");
      } else {
        std::memset(to, 0, kUnit);
      }
      (inside ? sm90_counts.copied_bytes : sm90_counts.zero_bytes) += kUnit;
    }
  }
  for (uint32_t u = copy.to / kUnit; u < (copy.to + copy.bytes) / kUnit; ++u) {
    if (reads_in_flight[u] > 0) {
      error("copy: lands under a wgmma that was not waited for");
    }
  }
  shared.end_write(copy.to, data.data(), copy.bytes);
  Mbarrier& barrier = mbarrier_at(copy.barrier);
  barrier.bytes -= copy.bytes;
  complete_phase_if_due(barrier);
}

inline bool run_some_copy() {
  if (copies_in_flight.empty()) {
    return false;
  }
  run_copy(random_number() % copies_in_flight.size());
  return true;
}

inline void start_copy(const Copy& copy) {
  check_dependency("copy");
  if (!mbarrier_at(copy.barrier).fenced) {
    error("copy: its mbarrier was not fenced after it was initialized");
  }
  if (copy.bytes == 0 || copy.bytes % kUnit != 0) {
    fatal("copy: size");
  }
  shared.begin_write(copy.to, copy.bytes, "copy");
  for (uint32_t u = copy.to / kUnit; u < (copy.to + copy.bytes) / kUnit; ++u) {
    if (reads_in_flight[u] > 0) {
      error("copy: overwrites shared memory that a wgmma may still read");
    }
  }
  copies_in_flight.push_back(copy);
  if (schedule.completion == Completion::kEarly) {
    run_copy(copies_in_flight.size() - 1);
  }
}

inline void maybe_run_copies() {
  if (schedule.completion == Completion::kMixed && random_number() % 8 == 0) {
    run_some_copy();
  }
}

inline void start_tma(uint32_t to, const Map& map, uint32_t barrier, std::initializer_list<int> at) {
  if (static_cast<int>(at.size()) != map.rank) {
    fatal("TMA: rank of the map");
  }
  if (map.box[0] * 2 != 64) {
    fatal("TMA: rows of 64 bytes are emulated");
  }
  if (to % 512 != 0) {
    error("TMA: the tile does not begin where the swizzle does");
  }
  Copy copy{to, 2, barrier, &map, {}, nullptr};
  std::copy(at.begin(), at.end(), copy.at);
  for (int d = 0; d < map.rank; ++d) {
    copy.bytes *= map.box[d];
    if (map.box[d] < 1 || map.box[d] > 256 || map.sizes[d] < 1 || (d > 0 && map.strides[d] % 16 != 0)) {
      fatal("TMA: map");
    }
  }
  if (reinterpret_cast<uintptr_t>(map.data) % 16 != 0) {
    fatal("TMA: address of the tensor");
  }
  start_copy(copy);
}

}  // namespace emulator
