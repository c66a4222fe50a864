"""Compiled mma.sync convolution kernels: spills and occupancy. No GPU is needed."""

import ctypes
import re

import pytest
import torch
from built_kernels import built_for
from convolution_emulator import compiled
from convolution_structs import NO_RESAMPLING, UPSAMPLE, shape_of

# By number in mma_tile.h's Kernel, a shape that selects the kernel: sources, outputs, resampling.
SHAPES = [
    ((192,), 64, NO_RESAMPLING),
    ((64,), 32, NO_RESAMPLING),
    ((64,), 3, NO_RESAMPLING),
    ((8,), 64, NO_RESAMPLING),
    ((64,), 64, UPSAMPLE),
]
KERNEL = re.compile(r"mma_convolution\w*KernelE(\d)")
SHARED_KB = {"sm_80": 164, "sm_90a": 228}  # of a multiprocessor
REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT = 256  # allocation unit of a warp's registers
RESERVED = 1024  # bytes of shared memory reserved per CTA


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED_KB)
def test_kernels_do_not_spill_and_reach_the_intended_occupancy(architecture):
    kernels = {
        name: resources
        for (arch, name), resources in built_for(*SHARED_KB).items()
        if arch == architecture and KERNEL.search(name)
    }
    numbers = {name: int(KERNEL.search(name)[1]) for name in kernels}
    assert sorted(numbers.values()) == sorted(2 * list(range(len(SHAPES))))  # bf16 and fp16
    for name, resources in kernels.items():
        assert resources.stack == resources.local == 0, (name, resources)
        threads, ctas, shared = tile_numbers(*SHAPES[numbers[name]])
        registers_of_warp = -(-32 * resources.registers // REGISTER_UNIT) * REGISTER_UNIT
        assert ctas * (threads // 32) * registers_of_warp <= REGISTERS, (name, resources)
        assert ctas * (shared + RESERVED) <= SHARED_KB[architecture] * 1024, (name, shared)


def tile_numbers(sources, out, resampling):
    """Threads, CTAs per multiprocessor and bytes of shared memory that a shape's tile is designed for."""
    numbers = (ctypes.c_int64 * 3)()
    shape = shape_of(torch.bfloat16, sources, out, resampling, False)
    compiled("run_mma.cpp").tile_numbers(ctypes.byref(shape), numbers)
    return tuple(numbers)
