"""blur_pool's CUDA code on the CPU, thread by thread, with every memory access checked.

``blur_pool_emulator.cpp`` compiles the headers of the CUDA kernels (csrc/blur_pool) for the CPU. It fails on accesses
out of bounds or unaligned, on races in shared memory between two barriers, and on results written twice or never.
Results are compared with the definition in float64.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from blur_pool_cases import FORMATS, TOLERANCES, cases, definition, error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.cpp_extension import include_paths

from andfast.functional.blur_pool import binomial_taps

ROOT = Path(__file__).resolve().parents[3]
CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
COMPILER = os.environ.get("CXX", "c++").split()[-1]
MULTIPROCESSORS = 132  # of an H100

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")


class Run(NamedTuple):
    """The emulator's report of one launch."""

    layout: int  # 0: a chunk in one pixel, 1: chunks of a row, 2: single values
    reads: int
    vector_reads: int
    vector_writes: int
    blocks: int
    threads: int
    shared: int
    strips: int


class Plan(NamedTuple):
    layout: int
    tile_columns: int
    column_tiles: int
    tile_images: int
    blocks: int
    threads: int
    shared: int
    strips: int
    strip_rows: int
    slabs: int


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    target = tmp_path_factory.mktemp("emulator") / "emulator.so"
    includes = [f"-I{path}" for path in (str(ROOT / "csrc"), *include_paths())]
    command = [COMPILER, "-O1", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *includes]
    command += [str(Path(__file__).with_name("blur_pool_emulator.cpp")), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(target))
    loaded.emulate.restype = ctypes.c_char_p
    return loaded


def shifted(shape, dtype, memory_format, offset):
    """An empty tensor whose first value lies ``offset`` values after a multiple of 64 bytes."""
    count = torch.Size(shape).numel()
    whole = torch.empty(count + offset + 64, dtype=dtype)
    start = -whole.data_ptr() // whole.element_size() % (64 // whole.element_size()) + offset
    _, c, h, w = shape
    strides = (c * h * w, 1, w * c, c) if memory_format == torch.channels_last else (c * h * w, h * w, w, 1)
    return whole[start : start + count].as_strided(shape, strides)


def emulate(library, x, factor, taps, *, forward, memory_format, offset=0, tiles=True, multiprocessors=MULTIPROCESSORS):
    """Run forward or the transposed map on x; ``offset`` shifts the result from alignment, in values."""
    n, c, h, w = x.shape
    size = (h // factor, w // factor) if forward else (h * factor, w * factor)
    out = shifted((n, c, *size), x.dtype, memory_format, offset)
    large, small = (x, out) if forward else (out, x)
    images, inner = (n, c) if memory_format == torch.channels_last else (n * c, 1)
    report = (ctypes.c_int64 * 8)()
    problem = library.emulate(
        ctypes.c_bool(forward),
        ctypes.c_bool(tiles),
        CODES[x.dtype],
        ctypes.c_int64(images),
        *large.shape[2:],
        inner,
        factor,
        len(taps),
        (ctypes.c_double * len(taps))(*taps),
        ctypes.c_void_p(large.data_ptr()),
        ctypes.c_void_p(small.data_ptr()),
        multiprocessors,
        report,
    )
    assert problem is None, (problem.decode(), tuple(x.shape), x.dtype, factor, forward, memory_format, offset)
    return out, Run(*report)


def transposed(grad, factor, taps):
    """The transposed map in float64."""
    n, c, h, w = grad.shape
    x = torch.zeros(n, c, h * factor, w * factor, dtype=torch.float64, requires_grad=True)
    (grad_x,) = torch.autograd.grad(definition(x, factor, taps), x, grad.double())
    return grad_x


def compare(library, shape, factor, dtype, memory_format, offsets=(0, 0), taps=None, **options):
    """Compare both directions for the small-side shape ``shape``; return the emulator's reports."""
    n, c, h, w = shape
    taps = binomial_taps(factor) if taps is None else taps
    runs = []
    for forward in (True, False):
        size = (n, c, h * factor, w * factor) if forward else shape
        x = shifted(size, dtype, memory_format, offsets[0]).copy_(torch.randn(size))
        options |= {"forward": forward, "memory_format": memory_format, "offset": offsets[1]}
        result, run = emulate(library, x, factor, taps, **options)
        expected = definition(x, factor, taps) if forward else transposed(x, factor, taps)
        assert error(result, expected) <= TOLERANCES[dtype], (shape, factor, dtype, memory_format, offsets, forward)
        runs.append(run)
    return runs


HALVES_AND_SINGLE = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_edge_case_shapes(library, factor):
    """One pixel, row or column, odd and prime sizes, chunks that begin and end within pixels, many channels."""
    shapes = [(1, 1, 1, 1), (3, 2, 1, 5), (1, 3, 7, 1), (2, 3, 5, 7), (1, 5, 3, 11), (1, 31, 2, 3), (1, 33, 2, 3)]
    shapes += [
        (2, 8, 3, 13),
        (1, 16, 5, 2),
        (1, 64, 3, 19),
        (1, 72, 2, 5),
        (1, 100, 1, 3),
        (1, 1, 3, 521),
        (30, 1, 2, 2),
    ]
    # Last tiles of one column: the neighboring tile holds the originals of the margin, but not the margin.
    shapes += [(1, 64, 2, 57), (1, 64, 1, 273)] if factor != 3 else []
    for dtype, memory_format, shape in itertools.product(HALVES_AND_SINGLE, FORMATS, shapes):
        compare(library, shape, factor, dtype, memory_format)


shape_of = st.tuples(st.integers(1, 4), st.integers(1, 80), st.integers(1, 9), st.integers(1, 40)).filter(
    lambda shape: shape[0] * shape[1] * shape[2] * shape[3] <= 4000
)


@settings(max_examples=150)
@given(
    shape_of,
    st.sampled_from([2, 3, 4]),
    st.sampled_from(HALVES_AND_SINGLE),
    st.sampled_from(FORMATS),
    st.tuples(st.sampled_from([0, 0, 1, 3]), st.sampled_from([0, 0, 1, 5])),
    st.sampled_from([1, 7, MULTIPROCESSORS]),
)
def test_any_shape(library, shape, factor, dtype, memory_format, offsets, multiprocessors):
    """Also unaligned tensors, and strips of different heights."""
    compare(library, shape, factor, dtype, memory_format, offsets, multiprocessors=multiprocessors)


@settings(max_examples=60)
@given(cases(), st.sampled_from(list(CODES)))
def test_any_filter(library, case, dtype):
    """The generic kernels of any_filter.h."""
    factor, taps, (n, c, h, w), memory_format, _ = case
    if n * c:
        # Weights of both signs cancel: the bound is relative to the sum of absolute values.
        x = torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=memory_format)
        options = {"memory_format": memory_format, "tiles": False}
        result, _ = emulate(library, x, factor, taps, forward=True, **options)
        scale = sum(map(abs, taps)) ** 2 * x.double().abs().max()
        assert (result.double() - definition(x, factor, taps)).abs().max() <= 2 * TOLERANCES[dtype] * scale
        grad = torch.randn(n, c, h // factor, w // factor).to(dtype).contiguous(memory_format=memory_format)
        result, _ = emulate(library, grad, factor, taps, forward=False, **options)
        assert (result.double() - transposed(grad, factor, taps)).abs().max() <= 4 * TOLERANCES[dtype] * scale


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_infinity_does_not_spread(library, factor, memory_format):
    """Outputs without a tap on an infinite sample stay finite; multiplying with a zero tap would give NaN."""
    for place in itertools.product((0, 2, 4), (0, 3, 5)):
        grad = torch.zeros(1, 8, 5, 6).contiguous(memory_format=memory_format)
        grad[0, 3][place] = torch.inf
        options = {"forward": False, "memory_format": memory_format}
        result, _ = emulate(library, grad, factor, binomial_taps(factor), **options)
        reached, _ = emulate(library, grad.nan_to_num(posinf=1), factor, binomial_taps(factor), **options)
        assert torch.equal(result.isinf(), reached > 0)
        assert not result.isnan().any()
        x = torch.zeros(1, 8, 5 * factor, 6 * factor).contiguous(memory_format=memory_format)
        x[0, 3][place] = torch.inf
        options["forward"] = True
        result, _ = emulate(library, x, factor, binomial_taps(factor), **options)
        reached, _ = emulate(library, x.nan_to_num(posinf=1), factor, binomial_taps(factor), **options)
        assert torch.equal(result.isinf(), reached > 0)
        assert not result.isnan().any()


@pytest.mark.parametrize(
    ("shape", "memory_format", "layout"),
    [((1, 64, 8, 16), torch.channels_last, 0), ((8, 3, 8, 64), torch.channels_last, 1), ((2, 8, 8, 64), FORMATS[0], 1)],
    ids=["NHWC of 64", "NHWC of 3", "NCHW"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_are_read_once_in_vectors(library, shape, memory_format, layout, dtype):
    """All accesses to the large side are 16 bytes; only margins of tiles and strips are read more than once."""
    n, c, h, w = shape
    values = n * c * h * w * 16
    forward, backward = compare(library, shape, 4, dtype, memory_format, multiprocessors=0)  # one strip
    assert (forward.layout, backward.layout) == (layout, layout)
    assert forward.reads == forward.vector_reads
    assert backward.vector_writes == values
    rows = (4 * h + 4) / (4 * h)  # mirrored rows of one strip's margins
    columns = 36 / 32 if layout == 0 else 1  # margins of tiles
    assert forward.strips == 1
    assert values * rows <= forward.reads <= values * rows * columns


def test_launch_sizes_of_training(library):
    """At 48 x 64 x 256 x 256, x4, on 132 multiprocessors."""
    expected = {
        # forward, chunk, images, inner: columns, tiles, images, blocks, threads, strips
        (True, 8, 48, 64): (8, 8, 1, 384, 288, 1),
        (True, 4, 48, 64): (8, 8, 1, 768, 288, 1),
        (False, 8, 48, 64): (8, 8, 1, 384, 256, 1),
        (False, 4, 48, 64): (8, 8, 1, 768, 256, 1),
    }
    for (forward, chunk, images, inner), sizes in expected.items():
        report = (ctypes.c_int64 * 10)()
        library.plan_of(
            ctypes.c_bool(forward), chunk, ctypes.c_int64(images), 256, 256, inner, 4, 8, MULTIPROCESSORS, report
        )
        plan = Plan(*report)
        actual = (plan.tile_columns, plan.column_tiles, plan.tile_images, plan.blocks, plan.threads, plan.strips)
        assert actual == sizes, (forward, chunk, plan)
