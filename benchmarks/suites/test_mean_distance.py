"""The perceptual loss's distance of two features: andfast's implementations against composed and compiled PyTorch.

    python -m pytest benchmarks/suites/test_mean_distance.py --benchmark-group-by=group

On a GPU features are VGG's conv1_2 (the largest), conv3_4 and an SR image, 48 of 256x256; on a CPU smaller ones.
"composed" is the loss as one writes it, in fp32 by two casts. ``bytes`` are the op's: both tensors read forward, and
again backward, where the gradient is written; a row that moves more shows fewer ``gb_per_s``. Each row's mean and
gradient are held against float64. benchmarks/measure.py says how a row is timed.
"""

import itertools

import pytest
import torch

from andfast.functional import dispatch, mean_distance
from andfast.functional.mean_distance import OP, mean_distance_reference
from benchmarks import counts, measure
from benchmarks.machine import device

DEVICE = device()
CUDA = DEVICE == "cuda"
if CUDA and not measure.quick():
    SHAPES = [(48, 64, 256, 256), (48, 256, 64, 64), (48, 3, 256, 256)]
else:
    SHAPES = [(2, 3, 32, 32)] if measure.quick() else [(4, 64, 128, 128)]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DIRECTIONS = ("forward", "forward+backward")
NAMES = [*dispatch.available(OP, DEVICE), "composed"]

pytestmark = pytest.mark.benchmark(timer=measure.clock)


def cases():
    """(direction, kind, shape, dtype, name): all forms for the largest features, others as training has them."""
    for direction, dtype in itertools.product(DIRECTIONS, DTYPES):
        # Compilation is a few seconds on a GPU; inductor's C++ takes minutes on a CPU.
        for name in (*NAMES, *(["compiled"] if CUDA else [])):
            yield direction, "l1", SHAPES[0], dtype, name
    for name in NAMES:
        yield "forward+backward", "l2", SHAPES[0], "bf16", name
        for shape in SHAPES[1:]:
            yield "forward+backward", "l1", shape, "bf16", name


def candidate(name, kind):
    if name == "composed":
        return lambda x, target: mean_distance_reference(x, target, kind)
    if name == "compiled":
        torch.compiler.reset()
        return torch.compile(lambda x, target: mean_distance_reference(x, target, kind), dynamic=False)
    return lambda x, target: mean_distance(x, target, kind=kind, impl=name)


def error_of(call, kind, x, target):
    """The larger of the relative errors of the mean and of the last image's gradient, on a call at full size."""
    leaf = x.detach().requires_grad_()
    mean = call(leaf, target)
    (gradient,) = torch.autograd.grad(mean, leaf)
    # An image at a time: the whole in float64 takes four times the memory.
    means = [mean_distance_reference(a.double(), b.double(), kind) for a, b in zip(x, target, strict=True)]
    exact = torch.stack(means).mean()
    last = x[-1].double().requires_grad_()
    (right,) = torch.autograd.grad(mean_distance_reference(last, target[-1].double(), kind) / len(x), last)
    errors = (mean.detach() - exact).abs() / exact, (gradient[-1] - right).norm() / right.norm()
    return max(error.item() for error in errors)


@pytest.mark.parametrize(("direction", "kind", "shape", "dtype", "name"), list(cases()))
def test_mean_distance(benchmark, direction, kind, shape, dtype, name):
    def features():
        return torch.randn(shape, device=DEVICE).to(DTYPES[dtype], memory_format=torch.channels_last)

    call = candidate(name, kind)
    x, target = features(), features()
    error = error_of(call, kind, x, target)
    assert error <= (5e-3 if dtype == "bf16" else 1e-5)
    benchmark.group = f"{OP} {kind} {direction}, {tuple(shape)} {dtype}"
    sets = [(features(), features()) for _ in range(measure.sets_of(2 * x.nbytes))]
    both = direction != "forward"
    leaves = [(x.requires_grad_(both), target) for x, target in sets]
    timing = measure.time_passes(benchmark, call, [(two, two[:1] if both else (), None) for two in leaves])
    forward, backward = counts.mean_distance(shape, size=x.element_size())
    measure.describe_row(
        benchmark,
        [forward, backward] if both else [forward],
        precision=dtype,
        timing=timing,
        op=OP,
        implementation=name,
        direction=direction,
        shape="x".join(map(str, shape)),
        kind=kind,
        error=error,
        input_sets=len(sets),
    )
