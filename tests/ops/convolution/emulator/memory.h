// Shared and global memory that notice what hardware does not tell.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "fibers.h"

namespace emulator {

constexpr uint32_t kUnit = 16;  // bytes whose state is kept together
constexpr uint32_t kSharedLimit = 227 * 1024;
constexpr uint32_t kSharedStart = 1024;  // address 0 is nobody's

enum class State : uint8_t { kNeverWritten, kInFlight, kValid, kReserved };

struct SharedMemory {
  alignas(1024) uint8_t bytes[kSharedStart + kSharedLimit];
  State state[(kSharedStart + kSharedLimit) / kUnit];
  uint32_t end = 0;
  int64_t phases = 0;      // of eight 16-byte rows, which one wavefront serves if they lie in different banks
  int64_t wavefronts = 0;

  void reset(uint32_t size) {
    if (size > kSharedLimit) {
      error("more shared memory than a multiprocessor has");
      size = kSharedLimit;
    }
    end = kSharedStart + size;
    std::memset(bytes, 0xff, sizeof(bytes));
    std::fill(std::begin(state), std::end(state), State::kNeverWritten);
  }

  void check_range(uint32_t at, uint32_t size, const char* who) const {
    if (at % kUnit != 0 || size % kUnit != 0) {
      fatal(std::string(who) + ": misaligned address of shared memory");
    }
    if (at < kSharedStart || at + size > end) {
      fatal(std::string(who) + ": address beyond shared memory");
    }
  }

  // A write by an asynchronous unit starts: what was there is lost.
  void begin_write(uint32_t at, uint32_t size, const char* who) {
    check_range(at, size, who);
    for (uint32_t u = at / kUnit; u < (at + size) / kUnit; ++u) {
      if (state[u] == State::kInFlight) {
        error(std::string(who) + ": two copies in flight to one place");
      }
      if (state[u] == State::kReserved) {
        error(std::string(who) + ": copy to reserved shared memory");
      }
      state[u] = State::kInFlight;
    }
    std::memset(bytes + at, 0xff, size);
  }

  // It is visible to all threads.
  void end_write(uint32_t at, const void* data, uint32_t size) {
    std::fill(state + at / kUnit, state + (at + size) / kUnit, State::kValid);
    std::memcpy(bytes + at, data, size);
  }

  void check_read(uint32_t at, uint32_t size, const char* who) const {
    check_range(at, size, who);
    for (uint32_t u = at / kUnit; u < (at + size) / kUnit; ++u) {
      if (state[u] == State::kInFlight) {
        error(std::string(who) + ": reads shared memory that a copy is in flight to");
      } else if (state[u] == State::kNeverWritten) {
        error(std::string(who) + ": reads shared memory that was never written");
      }
    }
  }

  // Counts the wavefronts of eight 16-byte rows.
  void count_banks(const uint32_t (&rows)[8]) {
    int in_bank[8] = {};
    int most = 0;
    for (int i = 0; i < 8; ++i) {
      if (std::find(rows, rows + i, rows[i]) == rows + i) {
        most = std::max(most, ++in_bank[rows[i] / kUnit % 8]);
      }
    }
    ++phases;
    wavefronts += most;
  }
};
inline SharedMemory shared;

// A tensor that the kernel may touch. Writes are counted for each 16-bit element, if it may write it at all.
struct Region {
  uint8_t* data;
  int64_t bytes;
  uint8_t* writes;  // bytes / 2 counts, or null
};
inline std::vector<Region> regions;

inline const Region& region_of(const void* p, int64_t size, const char* who) {
  static const Region nowhere{nullptr, 0, nullptr};
  if (reinterpret_cast<uintptr_t>(p) % size != 0) {
    fatal(std::string(who) + ": misaligned address of global memory");
  }
  for (const Region& region : regions) {
    const int64_t at = static_cast<const uint8_t*>(p) - region.data;
    if (at >= 0 && at + size <= region.bytes) {
      return region;
    }
  }
  fatal(std::string(who) + ": address beyond all tensors");
  return nowhere;
}

inline void read_global(void* to, const void* from, int64_t size, const char* who) {
  region_of(from, size, who);
  std::memcpy(to, from, size);
}

inline void write_global(void* to, const void* from, int64_t size, const char* who) {
  const Region& region = region_of(to, size, who);
  if (region.writes == nullptr) {
    fatal(std::string(who) + ": write to a tensor that is read only");
  }
  const int64_t at = static_cast<uint8_t*>(to) - region.data;
  for (int64_t i = at / 2; i < (at + size) / 2; ++i) {
    region.writes[i] += region.writes[i] < 255;
  }
  std::memcpy(to, from, size);
}

}  // namespace emulator
