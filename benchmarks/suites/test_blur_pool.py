"""Anti-aliased pooling: andfast's implementations against what plain PyTorch offers. One group a shape and direction.

    python -m pytest benchmarks/suites/test_blur_pool.py --benchmark-group-by=group

Rows of a group do the same work but for two: F.avg_pool2d (box filter, aliases more) and F.interpolate(antialias=True)
(triangle filter of the same width, other border handling). The depthwise convolution is what an anti-aliased pooling is
usually written as: one 2-D filter, stride = factor, after reflection padding. Directions are forward, backward, both.
Each row's result and gradient are held against float64. benchmarks/measure.py says how a row is timed.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from andfast.functional import blur_pool, dispatch
from andfast.functional.blur_pool import OP, binomial_taps
from benchmarks import counts, measure
from benchmarks.machine import device

DEVICE = device()
CUDA = DEVICE == "cuda"
if CUDA and not measure.quick():
    SHAPES = [(48, 64, 256, 256), (48, 3, 256, 256), (48, 64, 240, 240)]
elif measure.quick():
    SHAPES = [(2, 3, 32, 32)]
else:
    SHAPES = [(16, 3, 256, 256), (2, 64, 128, 128)]
FORMATS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCE = {"bf16": 1e-2, "fp16": 2e-3, "fp32": 1e-5}
IMPLEMENTATIONS = list(dispatch.available(OP, DEVICE))
OTHERS = ["depthwise convolution", "avg_pool2d", "interpolate antialias"]
DIRECTIONS = ("forward", "backward", "forward+backward")

pytestmark = pytest.mark.benchmark(timer=measure.clock)


def cases():
    """(direction, factor, shape, memory format, dtype, name): F's factor and format in all types, others in one."""
    for shape, factor, memory_format, dtype in itertools.product(SHAPES, (4, 2, 3), FORMATS, DTYPES):
        first, usual = shape == SHAPES[0], dtype == ("bf16" if CUDA else "fp32")
        main = first and factor == 4 and memory_format == "nhwc" and (CUDA or dtype != "fp16")
        secondary = usual and factor == (3 if shape[2] % 3 == 0 else 4 if not first else factor)
        if shape[2] % factor or not (main or (secondary and not measure.quick())):
            continue
        for direction, name in itertools.product(DIRECTIONS, IMPLEMENTATIONS + OTHERS):
            if name == "interpolate antialias" and not CUDA and dtype != "fp32":
                continue  # it has no code for half types on the CPU
            if direction == "forward+backward" and name not in IMPLEMENTATIONS:
                continue
            yield direction, factor, shape, memory_format, dtype, name


def depthwise(channels, factor, dtype, memory_format):
    taps = torch.tensor(binomial_taps(factor))
    weight = torch.outer(taps, taps).expand(channels, 1, -1, -1)
    weight = weight.to(DEVICE, dtype).contiguous(memory_format=memory_format)
    pad = (len(taps) - factor) // 2

    def run(x):
        return F.conv2d(F.pad(x, (pad, pad, pad, pad), mode="reflect"), weight, stride=factor, groups=channels)

    return run


def candidate(name, channels, factor, dtype, memory_format):
    """The function of a name, and what it should agree with in float64."""
    if name in IMPLEMENTATIONS:
        return lambda x: blur_pool(x, factor, impl=name), lambda x: blur_pool(x, factor, impl="reference")
    if name == "depthwise convolution":
        call = depthwise(channels, factor, dtype, memory_format)
        return call, lambda x: blur_pool(x, factor, impl="reference")
    if name == "avg_pool2d":
        return (lambda x: F.avg_pool2d(x, factor),) * 2
    return (lambda x: F.interpolate(x, scale_factor=1 / factor, mode="bilinear", antialias=True),) * 2


def error_of(call, same, x, grad):
    """The larger of the relative errors of result and gradient, on the first and last image of a call at full size."""
    leaf = x.detach().requires_grad_()
    out = call(leaf)
    (gradient,) = torch.autograd.grad(out, leaf, grad)
    ends = x[[0, -1]].double().requires_grad_()
    expected = same(ends)
    (expected_grad,) = torch.autograd.grad(expected, ends, grad[[0, -1]].double())
    return measure.largest_error([out[[0, -1]].detach(), gradient[[0, -1]]], [expected.detach(), expected_grad])


@pytest.mark.parametrize(("direction", "factor", "shape", "memory_format", "dtype", "name"), list(cases()))
def test_blur_pool(benchmark, direction, factor, shape, memory_format, dtype, name):
    n, channels, height, width = shape
    kind = {"dtype": DTYPES[dtype], "memory_format": FORMATS[memory_format]}
    call, same = candidate(name, channels, factor, *kind.values())
    x = torch.rand(shape, device=DEVICE).to(**kind)
    grad = torch.rand(n, channels, height // factor, width // factor, device=DEVICE).to(**kind)
    try:
        error = error_of(call, same, x, grad)
    except NotImplementedError as missing:  # PyTorch's own ops do not have all types on all devices
        if name in IMPLEMENTATIONS:
            raise
        pytest.skip(str(missing))
    assert error <= TOLERANCE[dtype]
    benchmark.group = f"{OP} x{factor} {direction}, {tuple(shape)} {dtype} {memory_format}"
    sets = [(torch.rand_like(x), torch.rand_like(grad)) for _ in range(measure.sets_of(x.nbytes + grad.nbytes))]
    if direction == "forward":
        with torch.no_grad():
            timing = measure.time_row(benchmark, lambda x, _: call(x), sets)
    elif direction == "backward":
        # The graphs are kept, so that the backward pass alone is run again and again.
        leaves = [x.requires_grad_() for x, _ in sets]
        graphs = [(call(x), x, up) for x, (_, up) in zip(leaves, sets, strict=True)]
        timing = measure.time_row(
            benchmark, lambda out, x, up: torch.autograd.grad(out, x, up, retain_graph=True), graphs
        )
    else:
        leaves = [(x.requires_grad_(), up) for x, up in sets]
        timing = measure.time_row(benchmark, lambda x, up: torch.autograd.grad(call(x), x, up), leaves)
    forward, backward = counts.blur_pool(shape, factor, size=x.element_size())
    works = {"forward": [forward], "backward": [backward], "forward+backward": [forward, backward]}
    measure.describe_row(
        benchmark,
        works[direction],
        precision=dtype,
        timing=timing,
        op=OP,
        implementation=name,
        direction=direction,
        shape=f"{n}x{channels}x{height}x{width} /{factor}",
        memory_format=memory_format,
        error=error,
        input_sets=len(sets),
        threads=torch.get_num_threads(),
    )
