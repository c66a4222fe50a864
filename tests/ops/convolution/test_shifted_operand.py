"""Whether an operand of wgmma may begin at any row of a swizzled tile, as the convolution to 64 outputs assumes.

The emulator assumes it (the swizzle is an exclusive or of address bits, base offset 0, as the PTX ISA's text has it),
and only a GPU can confirm it: ``pytest -m gpu tests/ops/convolution/test_shifted_operand.py`` does in some seconds,
and names the shifts that fail. The convolution to 32 outputs does not need it.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from convolution_emulator import COMPILER, SOURCES, compiled
from convolution_structs import aligned
from cuda_toolkit import nvcc
from torch import Tensor

FOLDER = Path(__file__).resolve().parent / "emulator"
PITCH, WIDTH, OUTPUTS, PIXELS = 18, 8, 64, 128


def swizzled(rows: Tensor) -> Tensor:
    """(R, 32) with the 64-byte swizzle: units of eight values of a row change places."""
    unit = torch.arange(4) ^ (torch.arange(len(rows))[:, None] >> 1 & 3)
    return rows.view(-1, 4, 8).gather(1, unit[..., None].expand(-1, -1, 8)).reshape(rows.shape)


def operands(rows: int) -> tuple[Tensor, Tensor]:
    """Small whole numbers, whose products and sums are exact."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(-8, 9, (rows, 32), generator=generator)
    weights = torch.randint(-8, 9, (OUTPUTS, 32), generator=generator)
    return pixels.float(), weights.float()


def expected(pixels: Tensor, weights: Tensor, shifts: int) -> Tensor:
    n = torch.arange(PIXELS)
    rows = torch.arange(shifts)[:, None] + n // WIDTH * PITCH + n % WIDTH  # (shifts, 128)
    return torch.einsum("oi,sni->son", weights, pixels[rows])


def sizes() -> tuple[int, int]:
    numbers = (ctypes.c_int64 * 2)()
    compiled("run_wgmma.cpp").shifted_sizes(numbers)
    return numbers[0], numbers[1]


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
def test_emulator_agrees_with_the_definition():
    rows, shifts = sizes()
    pixels, weights = operands(rows)
    inputs = [aligned(*x.shape, dtype=torch.bfloat16).copy_(swizzled(x)) for x in (pixels, weights)]
    out = aligned(shifts, OUTPUTS, PIXELS, dtype=torch.float32).fill_(torch.nan)
    writes = torch.zeros(out.numel() * 2, dtype=torch.uint8)
    library = compiled("run_wgmma.cpp")
    library.multiply_shifted.restype = ctypes.c_char_p
    error = library.multiply_shifted(*(ctypes.c_void_p(x.data_ptr()) for x in (*inputs, out, writes)))
    assert error is None, error
    assert (writes == 1).all()
    assert torch.equal(out, expected(pixels, weights, shifts))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The same code for compute capability 9.0a."""
    compiler = nvcc()
    if compiler is None:
        pytest.skip("needs a CUDA toolkit (nvcc)")
    library = tmp_path_factory.mktemp("shifted") / "shifted_operand.so"
    command = [compiler, "-std=c++20", "-O2", "--expt-relaxed-constexpr", "-gencode=arch=compute_90a,code=sm_90a"]
    command += ["-shared", "-Xcompiler=-fPIC", "-cudart=static", f"-I{SOURCES}", f"-I{FOLDER}"]
    done = subprocess.run(
        [*command, str(FOLDER / "shifted_operand.cu"), "-o", str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "wgmma" not in done.stderr, done.stderr  # no warning that products are serialized
    return library


@pytest.mark.slow
def test_builds(built):
    assert built.stat().st_size > 0


@pytest.mark.gpu
@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="needs compute capability 9.0"
)
def test_operands_begin_at_any_row(built):
    rows, shifts = sizes()
    pixels, weights = operands(rows)
    inputs = [swizzled(x).bfloat16().cuda() for x in (pixels, weights)]
    reference = expected(pixels, weights, shifts)
    library = ctypes.CDLL(str(built))

    def wrong(with_base_offset: bool) -> list[int]:
        out = torch.full((shifts, OUTPUTS, PIXELS), torch.nan, device="cuda")
        torch.cuda.synchronize()
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (*inputs, out)]
        error = library.multiply_shifted(*pointers, ctypes.c_bool(with_base_offset))
        assert error == 0, f"CUDA error {error}"
        return (out.cpu() != reference).flatten(1).any(1).nonzero().flatten().tolist()

    without = wrong(False)
    if without:  # what the kernels would have to do instead
        with_offset = wrong(True)
        pytest.fail(
            f"of {shifts} shifts, wrong products at {len(without)} ({without[:20]}); "
            f"with the operand's base offset set, at {len(with_offset)} ({with_offset[:20]})"
        )
