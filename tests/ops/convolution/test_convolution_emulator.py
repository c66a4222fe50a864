"""The convolution kernels of csrc/convolution, run on the CPU by the emulator: the kernels' own code, thread by thread.

A run compares every output with the definition in float64 and fails on: accesses out of bounds or unaligned, shared
memory that is read before its copy has arrived or overwritten while others read it, outputs that are not written
exactly once, writes elsewhere, bank conflicts, warps that diverge, deadlocks. Not covered: the intrinsics' assembly
and the code that nvcc generates.
"""

import ctypes
import dataclasses
import random
import shutil

import pytest
import torch
from convolution_emulator import COMPILER, Case, compiled, run
from convolution_structs import (
    GRADIENT_BY_SIGNS,
    GRADIENT_BY_VALUES,
    LEAKY_RELU,
    NO_ACTIVATION,
    NO_RESAMPLING,
    REPLICATE,
    UPSAMPLE,
    UPSAMPLE_ADJOINT,
    PackJob,
    Problem,
    Shape,
)
from injected_bugs import BuggyEmulator, Change, without

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
DRIVER = "run_mma.cpp"

# G's convolutions and their gradients to the input, at small sizes
GROWTH = {
    f"growth {k}": Case((64, *[32 * k] * (k > 0)), 32, 19, 18, in_place=k > 0, store_signs=True) for k in range(4)
}
GROWTH_BACKWARD = {
    f"growth {k} backward": Case(
        (64, *[96 - 32 * k] * (k < 3)), 32, 17, 20, in_place=k < 3, transposed=True, bias=False, activation=activation
    )
    for k, activation in enumerate([GRADIENT_BY_SIGNS, GRADIENT_BY_VALUES] * 2)
}
LAYERS = GROWTH | GROWTH_BACKWARD | {
    "last of a block": Case((64, 128), 64, 35, 18, activation=NO_ACTIVATION, scale=0.2, residual=True),
    "last of an RRDB": Case((64, 128), 64, 9, 33, activation=NO_ACTIVATION, scale=0.04, residual=True, outer=True),
    "block backward": Case((64, 128), 64, 18, 9, activation=NO_ACTIVATION, transposed=True, bias=False, residual=True),
    "conv_first": Case((8,), 64, 17, 19, images=2, image_channels=3, activation=NO_ACTIVATION),
    "conv_first of scale 1": Case((48,), 64, 17, 19, activation=NO_ACTIVATION),
    "conv_first backward": Case((64,), 3, 17, 19, transposed=True, bias=False, activation=NO_ACTIVATION, beside=1),
    "conv_body": Case((64,), 64, 40, 17, activation=NO_ACTIVATION, residual=True),
    "conv_up": Case((64,), 64, 33, 18, images=2, resampling=UPSAMPLE, store_signs=True),
    "conv_up backward": Case(
        (64,), 64, 18, 17, images=2, resampling=UPSAMPLE_ADJOINT, transposed=True, bias=False, activation=NO_ACTIVATION
    ),
    "conv_hr": Case((64,), 64, 20, 36, store_signs=True),
    "conv_last": Case((64,), 3, 33, 18, activation=NO_ACTIVATION),
    "conv_last backward": Case(
        (8,), 64, 33, 18, image_channels=3, transposed=True, bias=False, activation=GRADIENT_BY_SIGNS
    ),
}  # fmt: skip
# The degradation block: each image with its own weights, slopes and noise
BLOCKS = {
    "first": Case((8,), 64, 18, 20, images=3, image_channels=3, slopes="image", noise=True),
    "middle": Case((64,), 64, 35, 17, images=3, slopes="channel", residual=True, store_signs=True),
    "last": Case((64,), 3, 18, 20, images=3, slopes="image", noise=True),
}


def check(case: Case) -> None:
    problems = run(case, compiled(DRIVER)).problems()
    assert not problems, (problems, case)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_g(name):
    check(LAYERS[name])


@pytest.mark.parametrize(
    "name",
    ["growth 1 backward", "growth 2", "last of an RRDB", "conv_first", "conv_up", "conv_up backward", "conv_last"],
)
def test_layers_of_g_in_fp16(name):
    """One layer per kernel and epilogue."""
    check(dataclasses.replace(LAYERS[name], dtype=torch.float16))


@pytest.mark.parametrize("name", BLOCKS)
def test_degradation_block(name):
    case = BLOCKS[name]
    case.padding, case.per_image, case.bias = REPLICATE, True, False
    check(case)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (16, 16), (32, 16), (33, 17), (2, 31)])
def test_sizes(height, width):
    """One pixel, one row, whole tiles and one pixel more."""
    for sources, out in [((64, 32), 32), ((64,), 64), ((8,), 64), ((32,), 5)]:
        check(Case(sources, out, height, width, images=2, padding=height % 2, multiprocessors=1))


def random_case(seed: int) -> Case:
    r = random.Random(seed)
    resampling = r.choice([NO_RESAMPLING] * 3 + [UPSAMPLE, UPSAMPLE_ADJOINT])
    sources = r.choice([(8,), (16,), (24,), (64,), (72,), (64, 32), (40, 8), (64, 128), (16, 8)])
    out = r.choice([1, 3, 7, 8, 16, 32, 40, 64, 72, 136])
    if resampling != NO_RESAMPLING:
        sources, out = sources[:1], max(out, 8)
    wide = out >= 8
    activation = r.choice([NO_ACTIVATION, LEAKY_RELU, LEAKY_RELU, GRADIENT_BY_VALUES, GRADIENT_BY_SIGNS])
    return Case(
        sources=sources,
        out=out,
        height=r.randint(1, 50),
        width=r.randint(1, 40),
        images=r.randint(1, 3),
        dtype=r.choice([torch.bfloat16, torch.float16]),
        resampling=resampling,
        padding=r.randint(0, 1) if resampling == NO_RESAMPLING else 0,
        per_image=r.random() < 0.3,
        transposed=r.random() < 0.5,
        in_place=wide and resampling == NO_RESAMPLING and r.random() < 0.5,
        beside=r.randint(0, 2),
        bias=r.random() < 0.7,
        activation=activation,
        slopes=r.choice(["one", "image", "channel"]) if activation == LEAKY_RELU else "one",
        store_signs=wide and r.random() < 0.5,
        scale=r.choice([1.0, 0.2]),
        residual=wide and r.random() < 0.5,
        outer=wide and r.random() < 0.3,
        noise=r.random() < 0.3,
        image_channels=r.choice([0, 3, 5]),
        multiprocessors=r.choice([1, 2, 5]),
        order=r.randint(0, 2),
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(30))
def test_random_problems(seed):
    check(random_case(seed))


@pytest.mark.slow
def test_many_random_problems():
    for seed in range(1000, 1020):
        check(random_case(seed))


# ------------------------------------------------------------------------------------------------- Injected bugs

WIDE = Case((64, 128), 64, 33, 17, multiprocessors=1)
PER_IMAGE = Case((64,), 64, 9, 9, 2, per_image=True)
IN_PLACE = Case((64, 32), 64, 9, 9, in_place=True)
KERNEL = "mma_kernel.h"
# name: case, symptom, change
BUGS = {
    "no barrier": (WIDE, "error", without(KERNEL, "      synchronize();")),
    "waits for one group too few": (
        WIDE, "error",
        Change(
            KERNEL, "wait_copies<T::kStages - 2>()",
            "BUG ? wait_copies<T::kStages - 1>() : wait_copies<T::kStages - 2>()",
        ),
    ),
    "no swizzle": (
        WIDE, "conflicts", Change("mma_tile.h", "? unit ^ (row >> 1 & 3)", "? unit ^ (BUG ? 0 : row >> 1 & 3)"),
    ),
    "reads beyond the right border": (WIDE, "wrong", Change(KERNEL, "x < p.width))", "x < p.width + BUG))")),
    "stores beyond the bottom": (
        WIDE, "not_once", Change(KERNEL, "y < p.height && x < p.width;", "(BUG || y < p.height) && x < p.width;"),
    ),
    "weights of the first image": (
        PER_IMAGE, "wrong",
        Change(KERNEL, "p.per_image_weights ? tile.image : 0", "p.per_image_weights && !BUG ? tile.image : 0"),
    ),
    "keeps weights of another chunk": (
        WIDE, "wrong",
        Change(
            KERNEL, "if (block == (stage == 0 ? held_by_0 : held_by_1))",
            "if (const int held = stage == 0 ? held_by_0 : held_by_1; BUG ? held >= 0 : held == block)",
        ),
    ),
    "overwrites a source": (
        IN_PLACE, "stray",
        Change(
            "epilogue.h", "pixel * p.out.pixel_stride + channel;",
            "pixel * p.out.pixel_stride + channel - (BUG ? 8 : 0);",
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def buggy(tmp_path_factory):
    changes = ([change] for *_, change in BUGS.values())
    return BuggyEmulator(tmp_path_factory.mktemp("buggy"), DRIVER, changes, "-DANDFAST_ONLY_WIDE")


@pytest.mark.parametrize("case", [WIDE, PER_IMAGE, IN_PLACE], ids=["wide", "per image", "in place"])
def test_no_bug_is_on_at_first(case, buggy):
    with buggy.bug(0) as library:
        assert not run(case, library).problems()


@pytest.mark.parametrize("name", BUGS)
def test_injected_bugs_are_caught(name, buggy):
    case, symptom, _ = BUGS[name]
    with buggy.bug(1 + list(BUGS).index(name)) as library:
        problems = run(case, library).problems()
    assert symptom in problems, problems


# ----------------------------------------------------------------------------------------------------------- Counts


def test_counts_of_a_growth_convolution():
    """Each tile is read once with its halo, and no product of 16 x 8 x 16 multiply-accumulates is wasted."""
    case = Case((64, 32), 32, 64, 64, multiprocessors=1, in_place=True)
    report = run(case, compiled(DRIVER)).report
    assert report.tiles == 16
    assert report.products * 2048 == 64 * 64 * 96 * 32 * 9
    rows = 17 + 18 + 18 + 17  # of the halos of four tiles, inside the image
    assert report.copied_bytes == rows**2 * 96 * 2 + 16 * 96 * 32 * 9 * 2


def test_weights_stay_in_shared_memory():
    """With two chunks and shared weights each CTA copies its weights once, not once per tile."""
    case = Case((64,), 64, 64, 64, images=2, multiprocessors=2)
    report = run(case, compiled(DRIVER)).report
    halos = 2 * 66 * 70 * 64 * 2  # rows 33 + 33 of two tiles, columns 17 + 18 + 18 + 17 of four
    assert report.copied_bytes == halos + 2 * 64 * 64 * 9 * 2


def test_structs_have_the_sizes_of_the_headers():
    library = compiled(DRIVER)
    sizes = (ctypes.c_int64 * 3)()
    library.struct_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(struct) for struct in (Problem, PackJob, Shape)]
