// csrc/convolution/sm90_instructions.cuh as the emulator has it: TMA, bulk copies and wgmma complete as late, as early or as
// irregularly as the ISA allows, what is in flight is poisoned, and every rule that hardware does not enforce is checked.
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
  int initialised_by = -1;
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

// A warpgroup's accumulators that products in flight write: 128 threads by N / 2 registers.
struct Accumulators {
  float* registers[128] = {};
  int columns = 0;
  std::vector<float> values;  // while products are in flight; the registers are poisoned
  int in_flight[4] = {};      // by warp
};

struct Product {
  uint64_t a;
  uint64_t b;
  bool accumulate;
  int accumulators;  // index
  int issued_by = 0;  // mask of warps
  void (*multiply)(const Product&, float* values);
  int columns;
};

struct Warpgroup {
  std::vector<Product> products;
  std::vector<Accumulators> accumulators;
  size_t executed = 0;
  size_t issued[4] = {};
  std::vector<size_t> groups[4];  // products before each commit
  size_t waited_groups[4] = {};
  size_t waited_products[4] = {};
  bool fenced[4] = {};
  std::vector<Fiber*> waiting;
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
inline std::vector<Warpgroup> warpgroups;
inline std::vector<int> reads_in_flight;  // by unit of shared memory: wgmma that nobody has waited for
inline std::vector<bool> previous_kernel_complete;  // as each thread knows
inline std::vector<int> registers_of_warp;
inline int free_registers = 0;
inline std::vector<Fiber*> waiting_for_registers;

inline void check_dependency(const char* who) {
  if (!previous_kernel_complete[machine.current->thread.x]) {
    error(std::string(who) + ": global memory is read before the previous kernel is known to be complete");
  }
}

// ---- copies and mbarriers

inline Mbarrier& mbarrier_at(uint32_t at) {
  const auto found = mbarriers.find(at);
  if (found == mbarriers.end()) {
    fatal("mbarrier: used before it is initialised");
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
      error("copy: lands under a wgmma that nobody has waited for");
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
    error("copy: its mbarrier was not fenced after it was initialised");
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

// ---- wgmma

struct Operand {
  uint32_t start;
  uint32_t group_bytes;
};

inline Operand decode(uint64_t bits) {
  constexpr uint64_t kReserved = 3ull << 14 | 3ull << 30 | 7ull << 46 | 7ull << 49 | 0x3FFull << 52;
  if (bits >> 62 != 2 || (bits & kReserved) != 0) {
    fatal("wgmma: operands with the 64-byte swizzle and base offset 0 are emulated");
  }
  return {static_cast<uint32_t>(bits & 0x3FFF) << 4, static_cast<uint32_t>(bits >> 32 & 0x3FFF) << 4};
}

// Address of the 16-byte unit `half` (0 or 1) of a row: the swizzle goes by the bits of the address, wherever the operand starts.
inline uint32_t unit_of(const Operand& operand, int row, int half) {
  return swizzled(operand.start + row / 8 * operand.group_bytes + row % 8 * 64 + half * 16);
}

inline void touch_operands(const Product& product, int reads, bool check, bool count) {
  for (const auto& [bits, rows] : {std::pair(product.a, 64), std::pair(product.b, product.columns)}) {
    const Operand operand = decode(bits);
    for (int row = 0; row < rows; row += 8) {
      for (int half = 0; half < 2; ++half) {
        uint32_t units[8];
        for (int i = 0; i < 8; ++i) {
          units[i] = unit_of(operand, row + i, half);
          if (check) {
            shared.check_read(units[i], kUnit, "wgmma");
          }
          reads_in_flight[units[i] / kUnit] += reads;
        }
        if (count) {
          shared.count_banks(units);
        }
      }
    }
  }
}

template <andfast::convolution::Dtype kDtype>
void load_operand(uint64_t bits, int rows, float* to) {  // rows of 16
  const Operand operand = decode(bits);
  for (int row = 0; row < rows; ++row) {
    for (int half = 0; half < 2; ++half) {
      uint16_t unit[8];
      std::memcpy(unit, shared.bytes + unit_of(operand, row, half), 16);
      for (int i = 0; i < 8; ++i) {
        to[16 * row + 8 * half + i] = andfast::convolution::unpack<kDtype>(unit[i], 0);
      }
    }
  }
}

// values[thread][register]: register 4 * j + 2 * h + e of thread t is row 16 * (t / 32) + t % 32 / 4 + 8 * h, column
// 8 * j + 2 * (t % 4) + e.
template <andfast::convolution::Dtype kDtype>
void multiply_operands(const Product& product, float* values) {
  static float a[64 * 16];
  static float b[256 * 16];
  static float transposed[16 * 256];
  static float sums[64 * 256];
  const int columns = product.columns;
  load_operand<kDtype>(product.a, 64, a);
  load_operand<kDtype>(product.b, columns, b);
  for (int n = 0; n < columns; ++n) {
    for (int k = 0; k < 16; ++k) {
      transposed[k * columns + n] = b[16 * n + k];
    }
  }
  for (int m = 0; m < 64; ++m) {
    float* const sum = sums + m * columns;
    std::fill(sum, sum + columns, 0.0f);
    for (int k = 0; k < 16; ++k) {
      const float factor = a[16 * m + k];
      const float* const row = transposed + k * columns;
      for (int n = 0; n < columns; ++n) {
        sum[n] += factor * row[n];
      }
    }
  }
  for (int t = 0; t < 128; ++t) {
    for (int r = 0; r < columns / 2; ++r) {
      const int row = 16 * (t / 32) + t % 32 / 4 + 8 * (r / 2 % 2);
      const int column = 8 * (r / 4) + 2 * (t % 4) + r % 2;
      float& value = values[t * (columns / 2) + r];
      value = (product.accumulate ? value : 0.0f) + sums[row * columns + column];
    }
  }
}

constexpr uint32_t kPoison = 0x7FBADBAD;

inline bool is_poison(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits == kPoison;
}

inline Warpgroup& warpgroup() { return warpgroups[machine.current->warp / 4]; }

template <andfast::convolution::Dtype kDtype>
void issue_product(float* sums, int columns, uint64_t a, uint64_t b, bool accumulate) {
  struct Argument {
    float* sums;
    uint64_t a;
    uint64_t b;
    bool accumulate;
  } argument{sums, a, b, accumulate};
  maybe_run_copies();
  collective("wgmma", columns, &argument, [&](void** arguments) {
    Warpgroup& group = warpgroup();
    const int warp = machine.current->warp % 4;
    const int registers = columns / 2;
    const auto of = [&](int lane) -> Argument& { return *static_cast<Argument*>(arguments[lane]); };
    for (int lane = 0; lane < kLanes; ++lane) {
      if (of(lane).a != a || of(lane).b != b || of(lane).accumulate != accumulate) {
        fatal("wgmma: lanes of a warp differ in its operands");
      }
    }
    if (!group.fenced[warp]) {
      error("wgmma: no wgmma.fence since registers were accessed");
    }
    const size_t index = group.issued[warp]++;
    if (index == group.products.size()) {
      Product product{a, b, accumulate, -1, 0, multiply_operands<kDtype>, columns};
      for (size_t i = 0; i < group.accumulators.size(); ++i) {
        const Accumulators& known = group.accumulators[i];
        if (known.columns == columns && known.registers[warp * kLanes] == of(0).sums) {
          product.accumulators = static_cast<int>(i);
        }
      }
      if (product.accumulators < 0) {
        product.accumulators = static_cast<int>(group.accumulators.size());
        group.accumulators.emplace_back();
        group.accumulators.back().columns = columns;
        group.accumulators.back().values.resize(128 * registers);
      }
      touch_operands(product, schedule.strict ? 4 : 1, true, true);
      group.products.push_back(product);
      ++sm90_counts.products;
      sm90_counts.product_columns += columns;
      sm90_counts.operand_bytes += (64 + columns) * 32;
    }
    Product& product = group.products[index];
    if (product.a != a || product.b != b || product.accumulate != accumulate || product.columns != columns) {
      fatal("wgmma: warps of a warpgroup issue different products");
    }
    Accumulators& held = group.accumulators[product.accumulators];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int thread = warp * kLanes + lane;
      float* const values = of(lane).sums;
      if (held.registers[thread] != nullptr && held.registers[thread] != values) {
        fatal("wgmma: threads of a warpgroup mean different accumulators");
      }
      held.registers[thread] = values;
      for (int r = 0; r < registers; ++r) {
        if (held.in_flight[warp] == 0) {
          held.values[thread * registers + r] = values[r];
          std::memcpy(&values[r], &kPoison, 4);
        } else if (!is_poison(values[r])) {
          error("wgmma: accumulators change while a product is in flight");
        }
      }
    }
    ++held.in_flight[warp];
    product.issued_by |= 1 << warp;
    if (product.issued_by == 15) {
      for (const Fiber* fiber : group.waiting) {
        wake(*fiber);
      }
      group.waiting.clear();
    }
  });
}

inline void execute_next_product(Warpgroup& group) {
  Product& product = group.products[group.executed++];
  touch_operands(product, schedule.strict ? 0 : -1, true, false);
  product.multiply(product, group.accumulators[product.accumulators].values.data());
}

inline void wait_for_products(size_t groups_in_flight) {
  collective("wgmma.wait_group", groups_in_flight, nullptr, [&](void**) {
    Warpgroup& group = warpgroup();
    const int warp = machine.current->warp % 4;
    if (group.groups[warp].size() <= groups_in_flight + group.waited_groups[warp]) {
      return;
    }
    const size_t groups = group.groups[warp].size() - groups_in_flight;
    const size_t products = group.groups[warp][groups - 1];
    while (group.executed < products) {
      if (group.products[group.executed].issued_by == 15) {
        execute_next_product(group);
      } else {
        group.waiting.push_back(machine.current);
        wait("wgmma.wait_group, for other warps");
      }
    }
    for (size_t i = group.waited_products[warp]; i < products; ++i) {
      Accumulators& held = group.accumulators[group.products[i].accumulators];
      if (schedule.strict) {
        touch_operands(group.products[i], -1, false, false);
      }
      if (--held.in_flight[warp] > 0) {
        continue;
      }
      group.fenced[warp] = false;
      const int registers = held.columns / 2;
      for (int thread = warp * kLanes; thread < (warp + 1) * kLanes; ++thread) {
        for (int r = 0; r < registers; ++r) {
          if (!is_poison(held.registers[thread][r])) {
            error("wgmma: accumulators change while a product is in flight");
          }
          held.registers[thread][r] = held.values[thread * registers + r];
        }
      }
    }
    group.waited_groups[warp] = groups;
    group.waited_products[warp] = products;
  });
}

// ---- registers

inline void set_registers(int count, bool more) {
  collective("setmaxnreg", count * 2 + more, nullptr, [&](void**) {
    int& held = registers_of_warp[machine.current->warp];
    if (count % 8 != 0 || count < 24 || count > 256 || (more ? count < held : count > held)) {
      error("setmaxnreg: count");
    }
    while (more && (count - held) * kLanes > free_registers) {
      waiting_for_registers.push_back(machine.current);
      wait("setmaxnreg");
    }
    free_registers += (held - count) * kLanes;
    held = count;
    for (const Fiber* fiber : waiting_for_registers) {
      wake(*fiber);
    }
    waiting_for_registers.clear();
  });
}

// Runs a kernel that is launched with `registers` a thread, block by block.
template <typename Kernel>
void launch_sm90(int blocks, int threads, uint32_t shared_bytes, int registers, const Kernel& kernel) {
  machine.kernel = kernel;
  machine.blocks.x = blocks;
  machine.threads.x = threads;
  machine.at_barrier_release.clear();
  machine.at_exit.clear();
  advance_asynchronous_units = run_some_copy;
  for (int block = 0; block < blocks && !machine.aborted; ++block) {
    machine.block.x = block;
    mbarriers.clear();
    copies_in_flight.clear();
    warpgroups.assign(threads / 128, Warpgroup());
    reads_in_flight.assign((kSharedStart + kSharedLimit) / kUnit, 0);
    previous_kernel_complete.assign(threads, false);
    registers_of_warp.assign(threads / kLanes, registers);
    free_registers = 0;
    waiting_for_registers.clear();
    shared.reset(shared_bytes);
    start_fibers(threads);
    run_fibers();
    if (machine.aborted || machine.alive > 0) {
      return;
    }
    if (!copies_in_flight.empty()) {
      error("a block ends with a copy in flight");
    }
    for (const Warpgroup& group : warpgroups) {
      for (size_t products : group.waited_products) {
        if (products != group.products.size()) {
          error("a block ends with a wgmma that nobody has waited for");
        }
      }
    }
  }
}

}  // namespace emulator

namespace andfast::convolution::sm90 {

using TensorMap = emulator::Map;

inline void mbarrier_init(uint32_t barrier, int arrivals) {
  using namespace emulator;
  if (barrier % 8 != 0 || barrier < kSharedStart || barrier + 8 > shared.end) {
    fatal("mbarrier: address");
  }
  Mbarrier fresh;
  fresh.arrivals = fresh.pending = arrivals;
  fresh.initialised_by = static_cast<int>(machine.current->thread.x);
  mbarriers[barrier] = fresh;
  shared.state[barrier / kUnit] = State::kReserved;
}
inline void mbarrier_init_fence() {
  using namespace emulator;
  for (auto& [at, barrier] : mbarriers) {
    barrier.fenced = barrier.fenced || barrier.initialised_by == static_cast<int>(machine.current->thread.x);
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
