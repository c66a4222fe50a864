"""The ascent's step over all of theta, and the first pass's gradients: andfast's implementations against PyTorch.

    python -m pytest benchmarks/suites/test_ascent.py --benchmark-group-by=group

On a GPU theta is that of F for 48 images of 256x256 (1.07e9 noise values), on a CPU a small one. "first" is the step
from the identity, whose noises are one expanded zero; "later" any other. ``bytes`` is what two passes have to move: the
first over values and gradients, the second over both and the result; in the first step gradients alone, twice, and the
result. A row that takes more passes shows fewer ``gb_per_s``. Each row is held against float64 on its last image.

``identity_gradients`` are those of F's five layers in front of the pooling, or behind it; ``bytes`` are x, g and the
noises' gradients, each once. benchmarks/measure.py says how a row is timed.
"""

import itertools

import pytest
import torch

from andfast.adversary import PRESETS, sample_identity
from andfast.functional import ascent_step, dispatch
from andfast.functional import identity_gradients as identity
from andfast.functional.ascent_step import OP, ascent_step_reference
from benchmarks import counts, measure
from benchmarks.counts import Work
from benchmarks.machine import device

DEVICE = device()
CUDA = DEVICE == "cuda"
IMAGES, SIDE, CHANNELS = (48, 256, 64) if CUDA and not measure.quick() else (2, 64, 16)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CASES = list(itertools.product(["first", "later"], DTYPES, dispatch.available(OP, DEVICE)))
if CUDA:  # half a minute of compilation; inductor's C++ takes minutes on a CPU
    CASES.append(("later", "fp32", "compiled"))
BALL = PRESETS["calibrated"].ball_for(SIDE, SIDE)
OPTIONS = {"radii": BALL.radii, "step_size": 0.3}

pytestmark = pytest.mark.benchmark(timer=measure.clock)


def theta(dtype, first):
    """Values, gradients and centers, in the memory format that F gives them."""
    identity = sample_identity(IMAGES, hr_size=SIDE, channels=CHANNELS, device=DEVICE, noise_dtype=dtype)

    def random(tensor, size):
        form = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE, memory_format=form).normal_(0, size)

    centers = [list(group) for group in identity]
    sizes = [
        r / sum(tensor[0].numel() for tensor in group) ** 0.5 for group, r in zip(centers, BALL.radii, strict=True)
    ]
    values = centers
    if not first:
        values = [
            [tensor + random(tensor, size) for tensor in group] for group, size in zip(centers, sizes, strict=True)
        ]
    return values, [[random(tensor, 1e-3) for tensor in group] for group in centers], centers


def bytes_of_two_passes(values, gradients, centers, first):
    total = 0
    for value, gradient, center in zip(
        *(itertools.chain(*groups) for groups in (values, gradients, centers)), strict=True
    ):
        stored = value.numel() * value.element_size()
        read_center = 0 if not any(center.stride()) else stored
        total += 2 * gradient.numel() * gradient.element_size() + stored
        total += read_center if first else 2 * (stored + read_center)
    return total


def candidate(name):
    if name == "compiled":
        torch.compiler.reset()
        compiled = torch.compile(ascent_step_reference, dynamic=False)
        return torch.no_grad()(lambda *three: compiled(*three, **OPTIONS))
    return lambda *three: ascent_step(*three, **OPTIONS, impl=name)


def largest_error(result, three):
    """Of the last image, relative to the largest distance from the identity that the group has, plus one rounding."""
    last = [[[tensor[-1:].double() for tensor in group] for group in groups] for groups in three]
    worst = 0.0
    for group, right, starts in zip(result, ascent_step_reference(*last, **OPTIONS), last[2], strict=True):
        reach = max((a - b).abs().max().item() for a, b in zip(right, starts, strict=True))
        for tensor, exact in zip(group, right, strict=True):
            kind = torch.finfo(tensor.dtype)
            rounding = kind.eps * (exact.abs() + kind.smallest_normal)
            excess = (tensor[-1:].double() - exact).abs() - rounding
            worst = max(worst, excess.max().item() / reach)
    return worst


@pytest.mark.parametrize(("step", "dtype", "name"), CASES)
def test_ascent(benchmark, step, dtype, name):
    first = step == "first"
    three = theta(DTYPES[dtype], first)
    call = candidate(name)
    error = largest_error(call(*three), three)
    assert error <= 1e-4
    values = sum(tensor.numel() for group in three[0] for tensor in group)
    benchmark.group = f"{OP}, {step} step, noises {dtype}, {IMAGES} images of {SIDE}x{SIDE}, {CHANNELS} channels"
    work = Work((4 if first else 12) * values, bytes_of_two_passes(*three, first), matrix=False)
    measure.describe_row(
        benchmark,
        [work],
        precision=dtype,
        timing=measure.time_row(benchmark, call, [three]),
        op=OP,
        implementation=name,
        direction=step,
        shape=f"{IMAGES}x{CHANNELS}x{SIDE}x{SIDE}",
        error=error,
        values=values,
    )


IDENTITY_CASES = [
    (*case, impl)
    for case in (("HR", "fp32", "full"), ("HR", "bf16", "full"), ("HR", "fp32", "single"), ("LR", "fp32", "full"))
    for impl in dispatch.available(identity.OP, DEVICE)
]


def identity_call(side, dtype, noise, images):
    """Arguments of identity_gradients for five layers, in the memory format of training."""
    x, g = (
        torch.randn(images, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    before, after = torch.randn(2, 5, images, 3, CHANNELS, device=DEVICE)
    noises = [CHANNELS if noise == "full" else 1] * 5
    options = {"noises": noises, "slopes": [True] * 5, "correlation": True, "noise_dtype": DTYPES[dtype]}
    return (x, g, before, after), options


def identity_error(result, call, options):
    """Of the last image, the largest relative error of a result, less what rounding the noises costs."""
    x, g, before, after = call
    wide = [tensor.double() for tensor in (x[-1:], g[-1:], before[:, -1:], after[:, -1:])]
    exact = identity.identity_gradients(*wide, **options | {"noise_dtype": torch.float64}, impl="reference")
    pairs = [(result[0][-1:], exact[0]), (result[2][:, -1:], exact[2])]
    pairs += [(tensor[-1:], right.to(tensor.dtype)) for tensor, right in zip(result[1], exact[1], strict=True)]
    return max(((tensor.double() - right.double()).norm() / right.double().norm()).item() for tensor, right in pairs)


@pytest.mark.parametrize(("where", "dtype", "noise", "name"), IDENTITY_CASES)
def test_identity_gradients(benchmark, where, dtype, noise, name):
    side = SIDE if where == "HR" else SIDE // 4
    call, options = identity_call(side, dtype, noise, IMAGES)

    def run(*four):
        return identity.identity_gradients(*four, **options, impl=name)

    error = identity_error(run(*call), call, options)
    assert error <= (1e-5 if dtype == "fp32" else 1e-3)
    maps = "a map per channel" if noise == "full" else "one map"
    benchmark.group = (
        f"{identity.OP}, five layers at {where}, noises {dtype}, {maps}, {IMAGES} images of {side}x{side}, "
        f"{CHANNELS} channels"
    )
    size = DTYPES[dtype].itemsize
    work = counts.identity_gradients(call[0].shape, CHANNELS, 5, noise=options["noises"][0], noise_size=size)
    sets = [call] if CUDA and where == "HR" else [call, identity_call(side, dtype, noise, IMAGES)[0]]
    measure.describe_row(
        benchmark,
        [work],
        precision=dtype,
        timing=measure.time_row(benchmark, run, sets),
        op=identity.OP,
        implementation=name,
        direction=f"{where}, {maps}",
        shape=f"{IMAGES}x{CHANNELS}x{side}x{side}",
        error=error,
    )
