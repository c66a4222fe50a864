// Runs blocks of an sm_90a kernel: register counts of warps, and the state of a new block.
#pragma once

#include <cstdint>
#include <vector>

#include "sm90_wgmma.h"

namespace emulator {

inline std::vector<int> registers_of_warp;
inline int free_registers = 0;
inline std::vector<Fiber*> waiting_for_registers;

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
          error("a block ends with a wgmma that was not waited for");
        }
      }
    }
  }
}

}  // namespace emulator
