// Emulated wgmma: products of a warpgroup run when a warp waits for them; until then their accumulators are poisoned and
// their operands must not be overwritten.
#pragma once

#include <cstdint>
#include <vector>

#include "sm90_copies.h"

namespace emulator {

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

inline std::vector<Warpgroup> warpgroups;

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

}  // namespace emulator
