"""The sm_90a convolution kernels (TMA, wgmma), run on the CPU by the emulator: the kernels' own code, thread by thread.

Besides the checks of test_convolution_emulator.py, a run fails on: products that read a stage which a copy may
overwrite, accumulators that are touched while a product is in flight, barriers with wrong counts, copies to places
that the swizzle does not fit, registers that the CTA does not have, global memory that is read before the previous
kernel is complete. Copies complete as late as they may, at once, or at random times.
"""

import ctypes
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
    UPSAMPLE,
    UPSAMPLE_ADJOINT,
    shape_of,
)
from injected_bugs import BuggyEmulator, Change, without

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
DRIVER = "run_wgmma.cpp"
LATE, EARLY, MIXED = range(3)
MAX_SHARED_BYTES = 227 * 1024

# G's convolutions and their gradients to the input, at small sizes
LAYERS = {
    f"growth {k}": Case((64, *[32 * k] * (k > 0)), 32, 11, 64, in_place=k > 0, store_signs=k % 2 == 1) for k in range(4)
} | {
    f"growth {k} backward": Case(
        (64, *[96 - 32 * k] * (k < 3)), 32, 9, 20, in_place=k < 3, transposed=True, bias=False, activation=activation
    )
    for k, activation in enumerate([GRADIENT_BY_SIGNS, GRADIENT_BY_VALUES] * 2)
} | {
    "last of a block": Case((64, 128), 64, 35, 18, activation=NO_ACTIVATION, scale=0.2, residual=True),
    "last of an RRDB": Case((64, 128), 64, 9, 33, activation=NO_ACTIVATION, scale=0.04, residual=True, outer=True),
    "block backward": Case((64, 128), 64, 18, 9, activation=NO_ACTIVATION, transposed=True, bias=False, residual=True),
    "one buffer": Case((192,), 64, 17, 10, activation=NO_ACTIVATION, scale=0.2, residual=True, beside=1),
    "conv_body": Case((64,), 64, 40, 17, activation=NO_ACTIVATION, residual=True),
    "conv_up": Case((64,), 64, 17, 18, images=2, resampling=UPSAMPLE, store_signs=True),
    "conv_up backward": Case(
        (64,), 64, 34, 17, resampling=UPSAMPLE_ADJOINT, transposed=True, bias=False, activation=GRADIENT_BY_VALUES
    ),
    "conv_hr": Case((64,), 64, 20, 36, store_signs=True),
    "conv_hr backward": Case((64,), 64, 33, 20, transposed=True, bias=False, activation=GRADIENT_BY_SIGNS),
}  # fmt: skip


def problems_of(case: Case, library: ctypes.CDLL, completion: int, *, strict: bool) -> dict[str, object]:
    library.set_schedule(completion, strict)
    return run(case, library).problems()


def check(case: Case, completion: int = LATE, *, strict: bool = False) -> None:
    problems = problems_of(case, compiled(DRIVER), completion, strict=strict)
    assert not problems, (problems, case, completion, strict)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_g(name, dtype):
    case = LAYERS[name]
    case.dtype = dtype
    check(case, MIXED if dtype == torch.float16 else LATE, strict=dtype == torch.float16)


@pytest.mark.parametrize("order", range(3), ids=["first warp first", "last warp first", "random"])
@pytest.mark.parametrize("completion", [LATE, EARLY, MIXED], ids=["late", "early", "mixed"])
def test_schedules(completion, order):
    """Several tiles pass through each CTA, so the ring of stages goes round."""
    for case in [
        Case((64, 32), 32, 17, 66, images=2, multiprocessors=1, order=order, seed=order),
        Case((64, 64), 64, 33, 17, multiprocessors=1, order=order, seed=order),
        Case((64,), 64, 17, 17, resampling=UPSAMPLE, multiprocessors=1, order=order, seed=order),
        Case((64,), 64, 33, 17, resampling=UPSAMPLE_ADJOINT, multiprocessors=1, order=order, seed=order),
    ]:
        check(case, completion, strict=True)


# One pixel, one row, whole tiles and one pixel more; 62 columns from tile to tile
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (2, 31), (8, 64), (9, 65), (7, 66), (1, 126), (1, 127)])
def test_sizes_of_growth(height, width):
    check(Case((40, 32), 32, height, width, images=2, multiprocessors=1))


def test_kernel_for_odd_widths_runs_even_widths():
    library = compiled(DRIVER)
    library.set_without_pairs(ctypes.c_bool(True))
    try:
        check(Case((64, 32), 32, 9, 66, images=2, in_place=True, multiprocessors=2))
    finally:
        library.set_without_pairs(ctypes.c_bool(False))


@pytest.mark.parametrize("resampling", [NO_RESAMPLING, UPSAMPLE, UPSAMPLE_ADJOINT], ids=["none", "up", "adjoint"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 33), (16, 16), (32, 16), (33, 17)])
def test_sizes_of_64_outputs(height, width, resampling):
    check(Case((32,), 64, height, width, images=2, multiprocessors=1, resampling=resampling))


def random_case(seed: int) -> Case:
    r = random.Random(seed)
    out = r.choice([32, 64])
    resampling = r.choice([NO_RESAMPLING, UPSAMPLE, UPSAMPLE_ADJOINT]) if out == 64 else NO_RESAMPLING
    two = [(64, 32), (64, 64), (40, 8), (32, 72), (64, 128)]
    sources = r.choice([(32,), (64,)] if resampling != NO_RESAMPLING else [(32,), (56,), (64,), (160,), *two])
    activation = r.choice([NO_ACTIVATION, LEAKY_RELU, LEAKY_RELU, GRADIENT_BY_VALUES, GRADIENT_BY_SIGNS])
    return Case(
        sources=sources,
        out=out,
        height=r.randint(1, 40),
        width=r.choice([r.randint(1, 40), r.randint(60, 68), r.randint(122, 130)]) if out == 32 else r.randint(1, 40),
        images=r.randint(1, 3),
        dtype=r.choice([torch.bfloat16, torch.float16]),
        resampling=resampling,
        transposed=r.random() < 0.5,
        in_place=resampling == NO_RESAMPLING and r.random() < 0.5,
        beside=r.randint(0, 2),
        bias=r.random() < 0.7,
        activation=activation,
        store_signs=r.random() < 0.5,
        scale=r.choice([1.0, 0.2]),
        residual=r.random() < 0.5,
        outer=r.random() < 0.3,
        multiprocessors=r.choice([1, 2, 5]),
        order=r.randint(0, 2),
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(12))
def test_random_problems(seed):
    check(random_case(seed), seed % 3, strict=seed % 2 == 0)


@pytest.mark.slow
def test_many_random_problems():
    for seed in range(1000, 1020):
        check(random_case(seed), seed % 3, strict=seed % 2 == 0)


# ------------------------------------------------------------------------------------------------- Injected bugs

GROW = Case((64, 32), 32, 17, 66, multiprocessors=1)
WIDE = Case((64, 128), 64, 33, 17, multiprocessors=1, residual=True, activation=GRADIENT_BY_VALUES)
UP = Case((64,), 64, 17, 17, resampling=UPSAMPLE, multiprocessors=1)
DOWN = Case((64,), 64, 33, 17, resampling=UPSAMPLE_ADJOINT, multiprocessors=1)
P, R, T = "sm90_pipeline.cuh", "sm90_rows.cuh", "sm90_taps.cuh"
# name: case, changes
BUGS = {
    # stages and barriers
    "a stage is released too early, rows": (GROW, without(R, "wgmma_wait<1>();")),
    "stages are released after the first phase": (
        UP, Change(T, "if (column_parity == 0) return;", "if (!BUG && column_parity == 0) return;"),
    ),
    "sums are read in flight, rows": (
        GROW, Change(R, "wgmma_wait<0>();", "BUG ? wgmma_wait<1>() : wgmma_wait<0>();"),
    ),
    "no fence before the products": (GROW, without(R, "  wgmma_fence();\n")),
    "one warp speaks for its warpgroup": (
        GROW,
        Change(P, "ring.empty(s), consumer_warps)", "ring.empty(s), BUG ? consumer_warps / 4 : consumer_warps)"),
        Change(
            R, "if (lane == 0) mbarrier_arrive(ring.empty",
            "if (BUG ? threadIdx.x % 128 == 0 : lane == 0) mbarrier_arrive(ring.empty",
        ),
    ),
    "the producer does not wait": (WIDE, without(P, "mbarrier_wait(ring.empty(ring.stage), ring.parity ^ 1);")),
    "consumers do not wait": (GROW, without(R, "mbarrier_wait(ring.full(ring.stage), ring.parity);")),
    "parity never changes": (WIDE, without(P, "parity ^= 1;")),
    "fewer bytes are expected": (GROW, Change(P, "full, pixel_bytes +", "full, pixel_bytes - (BUG ? 64 : 0) +")),
    "barriers are not fenced": (GROW, without(P, "    mbarrier_init_fence();\n")),
    "the second half is never released": (
        GROW, Change(R, "mbarrier_arrive(ring.order());", "BUG ? void() : mbarrier_arrive(ring.order());"),
    ),
    "the previous kernel is not waited for": (WIDE, without(T, "  wait_for_previous_kernel();\n")),
    "more registers than there are": (
        GROW, Change(R, "take_registers<240>()", "BUG ? take_registers<248>() : take_registers<240>()"),
    ),
    # places
    "tiles begin a row too low": (
        GROW, Change(R, "tile.row * Rows::kHeight - 1", "tile.row * Rows::kHeight - (BUG ? 0 : 1)"),
    ),
    "taps are transposed": (
        WIDE,
        Change(
            T, "tap / kSide * T::kPitch + tap % kSide",
            "(BUG ? tap % kSide : tap / kSide) * T::kPitch + (BUG ? tap / kSide : tap % kSide)",
        ),
    ),
    "the group's stride is off": (
        WIDE, Change(T, "T::kPitch * kRowBytes);", "(T::kPitch - (BUG ? 2 : 0)) * kRowBytes);"),
    ),
    "weights are not swizzled": (
        GROW, Change("sm90_launch.h", "kUnitChannels ^ (row >> 1 & 3)", "kUnitChannels ^ (BUG ? 0 : row >> 1 & 3)"),
    ),
    "two tiles write a column": (GROW, Change(R, "tile.column > 0 ? 1 : 0", "!BUG && tile.column > 0 ? 1 : 0")),
    "rows below the image are written": (GROW, Change(R, "y >= p.height ? 0 : ", "!BUG && y >= p.height ? 0 : ")),
    "the wrong lane gives the column before": (GROW, Change(R, "g == 7 ? wrapped", "g == (BUG ? 6 : 7) ? wrapped")),
    "lanes of a pair keep the other row": (
        WIDE, Change(T, "value[v] = odd ? received", "value[v] = odd != BUG ? received"),
    ),
    "signs of another pixel": (
        WIDE, Change(T, "positive[i / 4] >> (8 * (i % 4))", "positive[i / 4] >> (8 * (i % (BUG ? 2 : 4)))"),
    ),
    "the residual of another pixel": (
        WIDE, Change(T, "first + (i + 1) * step, channel", "first + (i + (BUG ? 0 : 1)) * step, channel"),
    ),
    "a phase of another row": (
        UP, Change(T, "phase / 2) * p.width * kStep", "(BUG ? phase % 2 : phase / 2)) * p.width * kStep"),
    ),
    "windows of the wrong parity": (DOWN, Change("mma_tile.h", "? phase : 1 - phase", "|| BUG ? phase : 1 - phase")),
}  # fmt: skip


@pytest.fixture(scope="module")
def buggy(tmp_path_factory):
    changes = (changes for _, *changes in BUGS.values())
    return BuggyEmulator(tmp_path_factory.mktemp("buggy"), DRIVER, changes, "-DANDFAST_ONLY_BFLOAT16")


@pytest.mark.parametrize("case", [GROW, WIDE, UP, DOWN], ids=["rows", "taps", "up", "adjoint"])
@pytest.mark.parametrize("completion", [LATE, MIXED, EARLY], ids=["late", "mixed", "early"])
def test_no_bug_is_on_at_first(case, completion, buggy):
    with buggy.bug(0) as library:
        assert not problems_of(case, library, completion, strict=True)


@pytest.mark.parametrize("name", BUGS)
def test_injected_bugs_are_caught(name, buggy):
    case = BUGS[name][0]
    with buggy.bug(1 + list(BUGS).index(name)) as library:
        assert any(problems_of(case, library, completion, strict=True) for completion in (LATE, MIXED, EARLY))


# --------------------------------------------------------------------------------------------------------------- Counts


# shape: resident weights, stages, chunks
PLANS = {
    ((64,), 32, NO_RESAMPLING): (1, 4, 2),
    ((64, 32), 32, NO_RESAMPLING): (1, 4, 3),
    ((64, 64), 32, NO_RESAMPLING): (1, 3, 4),
    ((64, 96), 32, NO_RESAMPLING): (1, 3, 5),
    ((64, 128), 64, NO_RESAMPLING): (0, 3, 6),
    ((64,), 64, NO_RESAMPLING): (1, 3, 2),
    ((64,), 64, UPSAMPLE): (1, 4, 2),
    ((64,), 64, UPSAMPLE_ADJOINT): (1, 2, 8),
}


@pytest.mark.parametrize(("sources", "out", "resampling"), PLANS)
def test_plans_of_g(sources, out, resampling):
    numbers = (ctypes.c_int64 * 4)()
    compiled(DRIVER).plan_of(ctypes.byref(shape_of(torch.bfloat16, sources, out, resampling, False)), numbers)
    assert tuple(numbers)[:3] == PLANS[sources, out, resampling]
    assert numbers[3] <= MAX_SHARED_BYTES


@pytest.mark.parametrize(
    ("sources", "out", "resampling", "supported"),
    [
        *((*shape, True) for shape in PLANS),
        ((64, 192), 32, NO_RESAMPLING, True),
        ((64, 224), 32, NO_RESAMPLING, False),  # weights and two stages do not fit
        ((1024,), 64, NO_RESAMPLING, True),  # weights are streamed
        ((96,), 64, UPSAMPLE, False),
        ((96,), 64, UPSAMPLE_ADJOINT, False),
        ((40,), 64, UPSAMPLE_ADJOINT, False),
        ((64, 64), 64, UPSAMPLE, False),
        ((8,), 64, NO_RESAMPLING, False),
        ((64,), 48, NO_RESAMPLING, False),
        ((64,), 3, NO_RESAMPLING, False),
    ],
)
def test_supported_shapes(sources, out, resampling, supported):
    library = compiled(DRIVER)
    library.supports_shape.restype = ctypes.c_bool
    shape = shape_of(torch.float16, sources, out, resampling, False)
    assert library.supports_shape(ctypes.byref(shape)) == supported
    shape.per_image_weights = True
    assert not library.supports_shape(ctypes.byref(shape))


def test_counts_of_a_growth_convolution():
    """No product is wasted at a width of 64, a tile is copied once with the rows above and below, weights once."""
    case = Case((64, 32), 32, 64, 64, multiprocessors=1, in_place=True)
    report = run(case, compiled(DRIVER)).report
    assert report.tiles == 8
    assert report.products * 64 * 96 * 16 == 64 * 64 * 96 * 32 * 9
    assert report.loads == report.products * (64 + 96) * 32  # bytes of shared memory that wgmma reads
    assert report.copied_bytes == (9 + 6 * 10 + 9) * 64 * 96 * 2 + 96 * 32 * 9 * 2


def test_counts_of_64_outputs():
    case = Case((64,), 64, 64, 32, multiprocessors=1)
    report = run(case, compiled(DRIVER)).report
    assert report.tiles == 4
    assert report.products * 64 * 128 * 16 == 64 * 32 * 64 * 64 * 9
    assert report.loads == report.products * (64 + 128) * 32
    assert report.copied_bytes == 66 * 34 * 64 * 2 + 64 * 64 * 9 * 2


@pytest.mark.parametrize("resampling", [UPSAMPLE, UPSAMPLE_ADJOINT], ids=["up", "adjoint"])
def test_upsampling_costs_four_taps(resampling):
    case = Case((64,), 64, 32, 32, multiprocessors=1, resampling=resampling)
    report = run(case, compiled(DRIVER)).report
    assert report.products * 64 * 128 * 16 == 64 * 64 * 64 * 64 * 4
