// Threads of a CTA as fibers on one CPU thread: they run until they wait for others, in an order that a test chooses.
#pragma once

#if !defined(__x86_64__) || !defined(__linux__)
#error "the emulator switches stacks in x86-64 assembly for Linux"
#endif

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

// Saves the stack pointer to *save after pushing what a call preserves, and continues where `to` was saved.
extern "C" void emulator_switch(void** save, void* to);
__asm__(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");

namespace emulator {

struct Index {
  unsigned x = 0;
};

// Which warp runs next; within a warp lanes run from the first on, or at random.
enum class Order : int32_t { kFirstWarpFirst, kLastWarpFirst, kRandom };

constexpr size_t kStackBytes = 64 * 1024;
constexpr int kLanes = 32;

struct Fiber {
  void* stack_pointer = nullptr;
  Index thread;
  int warp = 0;
  int lane = 0;
  bool done = false;
  const char* waits_for = "";
};

// A collective of a warp: executed by the lane that arrives last.
struct Collective {
  const char* name = nullptr;
  uint64_t tag = 0;
  int arrived = 0;
  void* arguments[kLanes] = {};
};

// All state of the machine that is not memory; one launch at a time.
struct Machine {
  Order order = Order::kRandom;
  uint64_t random_state = 1;
  Index block;
  Index blocks;
  Index threads;
  std::vector<Fiber> fibers;
  std::vector<uint32_t> ready;  // lanes of each warp that can run
  std::vector<Collective> collectives;
  Fiber* current = nullptr;
  void* main_stack = nullptr;
  std::vector<uint8_t> stacks;
  std::function<void()> kernel;
  std::vector<Fiber*> at_barrier;
  int alive = 0;
  bool aborted = false;
  std::map<std::string, int64_t> errors;
  std::string first_error;
  std::vector<std::function<void()>> at_barrier_release;  // what a barrier does for memory
  std::vector<std::function<void(Fiber&)>> at_exit;       // checks when a thread returns
};
inline Machine machine;

inline uint32_t random_number() {
  uint64_t& s = machine.random_state;
  s ^= s << 13;
  s ^= s >> 7;
  s ^= s << 17;
  return static_cast<uint32_t>(s >> 16);
}

// Counts an error; the kernel goes on, as hardware would.
inline void error(const std::string& kind) {
  if (machine.errors[kind]++ == 0 && machine.first_error.empty()) {
    machine.first_error = kind + " (block " + std::to_string(machine.block.x) + ", thread " +
                          (machine.current ? std::to_string(machine.current->thread.x) : "none") + ")";
  }
}

inline void to_scheduler() { emulator_switch(&machine.current->stack_pointer, machine.main_stack); }

// An error after which there is no going on: no fiber of the block runs again.
inline void fatal(const std::string& kind) {
  error(kind);
  machine.aborted = true;
  while (machine.current != nullptr) {
    to_scheduler();
  }
}

inline void wait(const char* what) {
  machine.current->waits_for = what;
  machine.ready[machine.current->warp] &= ~(1u << machine.current->lane);
  to_scheduler();
}

inline void wake(const Fiber& fiber) { machine.ready[fiber.warp] |= 1u << fiber.lane; }

// Blocks until all 32 lanes have called it with the same name and tag, then `execute` sees their arguments.
template <typename Execute>
void collective(const char* name, uint64_t tag, void* argument, const Execute& execute) {
  Fiber& fiber = *machine.current;
  Collective& c = machine.collectives[fiber.warp];
  if (c.arrived == 0) {
    c.name = name;
    c.tag = tag;
  } else if (std::string(c.name) != name || c.tag != tag) {
    fatal(std::string("a warp diverges: some lanes at ") + c.name + ", others at " + name);
  }
  c.arguments[fiber.lane] = argument;
  if (++c.arrived < kLanes) {
    wait(name);
    return;
  }
  execute(c.arguments);
  c.arrived = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane != fiber.lane) {
      wake(machine.fibers[fiber.warp * kLanes + lane]);
    }
  }
}

inline void release_barrier_if_all_wait() {
  if (machine.at_barrier.empty() || static_cast<int>(machine.at_barrier.size()) < machine.alive) {
    return;
  }
  for (const auto& act : machine.at_barrier_release) {
    act();
  }
  for (const Fiber* fiber : machine.at_barrier) {
    wake(*fiber);
  }
  machine.at_barrier.clear();
}

// __syncthreads()
inline void barrier() {
  Fiber* const fiber = machine.current;
  machine.at_barrier.push_back(fiber);
  machine.ready[fiber->warp] &= ~(1u << fiber->lane);
  fiber->waits_for = "__syncthreads";
  release_barrier_if_all_wait();
  if ((machine.ready[fiber->warp] >> fiber->lane & 1) == 0) {
    to_scheduler();
  }
}

inline void fiber_main() {
  machine.kernel();
  Fiber& fiber = *machine.current;
  for (const auto& check : machine.at_exit) {
    check(fiber);
  }
  fiber.done = true;
  --machine.alive;
  machine.ready[fiber.warp] &= ~(1u << fiber.lane);
  release_barrier_if_all_wait();
  while (true) {
    to_scheduler();
  }
}

inline void start_fibers(int threads) {
  const int warps = threads / kLanes;
  machine.fibers.assign(threads, Fiber());
  machine.ready.assign(warps, ~0u);
  machine.collectives.assign(warps, Collective());
  machine.at_barrier.clear();
  machine.alive = threads;
  machine.aborted = false;
  machine.current = nullptr;
  if (machine.stacks.size() < kStackBytes * threads) {
    machine.stacks.resize(kStackBytes * threads);
  }
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = machine.fibers[t];
    fiber.thread.x = t;
    fiber.warp = t / kLanes;
    fiber.lane = t % kLanes;
    // What emulator_switch pops: six registers, then the address to return to; above it the stack is 16-byte aligned.
    const auto end = reinterpret_cast<uintptr_t>(machine.stacks.data() + kStackBytes * (t + 1));
    auto** const top = reinterpret_cast<void**>(end & ~uintptr_t{15});
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(&fiber_main);
    for (int i = 3; i <= 8; ++i) {
      top[-i] = nullptr;
    }
    fiber.stack_pointer = top - 8;
  }
}

// The warp to run, or -1 if all wait.
inline int next_warp() {
  const int warps = static_cast<int>(machine.ready.size());
  const int first = machine.order == Order::kRandom ? random_number() % warps : 0;
  for (int i = 0; i < warps; ++i) {
    const int at = machine.order == Order::kLastWarpFirst ? warps - 1 - i : (first + i) % warps;
    if (machine.ready[at] != 0) {
      return at;
    }
  }
  return -1;
}

inline int next_lane(uint32_t ready) {
  if (machine.order != Order::kRandom) {
    return __builtin_ctz(ready);
  }
  const int shift = random_number() % kLanes;
  const uint32_t rotated = shift == 0 ? ready : ready >> shift | ready << (kLanes - shift);
  return (__builtin_ctz(rotated) + shift) % kLanes;
}

// What else may happen when all fibers wait (asynchronous units); returns whether something did.
inline std::function<bool()> advance_asynchronous_units;

inline void run_fibers() {
  while (machine.alive > 0 && !machine.aborted) {
    const int warp = next_warp();
    if (warp < 0) {
      if (advance_asynchronous_units && advance_asynchronous_units()) {
        continue;
      }
      std::map<std::string, int> waiting;
      for (const Fiber& fiber : machine.fibers) {
        if (!fiber.done) {
          ++waiting[fiber.waits_for];
        }
      }
      std::string text = "deadlock:";
      for (const auto& [what, count] : waiting) {
        text += " " + std::to_string(count) + " threads at " + what;
      }
      error(text);
      return;
    }
    machine.current = &machine.fibers[warp * kLanes + next_lane(machine.ready[warp])];
    emulator_switch(&machine.main_stack, machine.current->stack_pointer);
    machine.current = nullptr;
  }
}

}  // namespace emulator
