"""What nvcc makes of the mma.sync convolution kernels: registers, spills, occupancy. No GPU is needed."""

import ctypes
import re
import subprocess

import pytest
import torch
from convolution_emulator import SOURCES, compiled
from convolution_structs import NO_RESAMPLING, UPSAMPLE, shape_of
from cuda_toolkit import nvcc

KERNEL = re.compile(
    r"Compiling entry function '\w*mma_convolution\w*KernelE(\d)\w*' for '(sm_\w+)'.*?(\d+) bytes stack frame, "
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)
# By their number in mma_tile.h's Kernel, a shape that gets the kernel: sources, outputs, resampling
KERNELS = [
    ((192,), 64, NO_RESAMPLING),
    ((64,), 32, NO_RESAMPLING),
    ((64,), 3, NO_RESAMPLING),
    ((8,), 64, NO_RESAMPLING),
    ((64,), 64, UPSAMPLE),
]
ARCHITECTURES = {"sm_80": 164, "sm_90a": 228}  # kB of shared memory of a multiprocessor
REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT = 256  # that a warp's registers are allocated in
RESERVED = 1024  # bytes of shared memory that each CTA costs besides


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mma_bfloat16.cu", "mma_half.cu"])
def test_no_spills_and_the_intended_occupancy(source, tmp_path):
    compiler = nvcc()
    if compiler is None:
        pytest.skip("needs a CUDA toolkit (nvcc)")
    targets = [f"-gencode=arch=compute_{arch[3:]},code={arch}" for arch in ARCHITECTURES]
    command = [compiler, "-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xptxas=-v", *targets]
    command += ["-c", str(SOURCES / source), "-o", str(tmp_path / "kernels.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "warning" not in said.lower(), said
    found = KERNEL.findall(said)
    assert sorted((arch, int(number)) for number, arch, *_ in found) == sorted(
        (arch, number) for arch in ARCHITECTURES for number in range(len(KERNELS))
    )
    for number, arch, *numbers in found:
        stack, stored, loaded, registers = map(int, numbers)
        assert stack == stored == loaded == 0, (number, arch, numbers)
        threads, ctas, shared = tile_numbers(*KERNELS[int(number)])
        of_warp = -(-32 * registers // REGISTER_UNIT) * REGISTER_UNIT
        assert ctas * (threads // 32) * of_warp <= REGISTERS, (number, arch, registers)
        assert ctas * (shared + RESERVED) <= ARCHITECTURES[arch] * 1024, (number, arch, shared)


def tile_numbers(sources, out, resampling):
    numbers = (ctypes.c_int64 * 3)()
    shape = shape_of(torch.bfloat16, sources, out, resampling, False)
    compiled("run_mma.cpp").tile_numbers(ctypes.byref(shape), numbers)
    return tuple(numbers)
