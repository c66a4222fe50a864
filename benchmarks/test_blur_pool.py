"""Anti-aliased pooling on the CPU: andfast's implementations against what plain PyTorch offers. One group a shape.

    python -m pytest benchmarks/test_blur_pool.py --benchmark-group-by=group --benchmark-columns=min,median,ops

Rows of a group do the same work but for two: F.avg_pool2d (box filter, aliases more) and F.interpolate(antialias=True)
(triangle filter of the same width, other border handling). The depthwise convolution is what an anti-aliased pooling is
usually written as: one 2-D filter, stride = factor, after reflection padding. It is timed in both memory formats.
"""

import pytest
import torch
import torch.nn.functional as F

from andfast.functional import blur_pool
from andfast.functional.blur_pool import binomial_taps

SHAPES = {
    "demo photographs": (8, 3, 128, 128),
    "photographs": (16, 3, 256, 256),
    "features": (2, 64, 128, 128),
}
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def depthwise(channels, factor, dtype, memory_format):
    taps = torch.tensor(binomial_taps(factor))
    weight = torch.outer(taps, taps).expand(channels, 1, -1, -1).to(dtype).contiguous(memory_format=memory_format)
    pad = (len(taps) - factor) // 2

    def run(x):
        padded = F.pad(x, (pad, pad, pad, pad), mode="reflect")
        return F.conv2d(padded, weight, stride=factor, groups=channels)

    return run


def candidate(name, channels, factor, dtype, memory_format):
    """The function of a name, and whether it computes what blur_pool does."""
    if name in ("cpp", "reference"):
        return lambda x: blur_pool(x, factor, impl=name), True
    if name == "depthwise convolution":
        return depthwise(channels, factor, dtype, memory_format), True
    if name == "avg_pool2d":
        return lambda x: F.avg_pool2d(x, factor), False
    return lambda x: F.interpolate(x, scale_factor=1 / factor, mode="bilinear", antialias=True), False


NAMES = ["cpp", "depthwise convolution", "reference", "avg_pool2d", "interpolate antialias"]


@pytest.mark.parametrize(
    ("dtype", "name"),
    # F.interpolate(antialias=True) has no bf16 code on the CPU.
    [(dtype, name) for dtype in DTYPES for name in NAMES if (dtype, name) != ("bf16", NAMES[-1])],
)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_blur_pool(benchmark, direction, factor, shape, memory_format, dtype, name):
    sizes, fmt = SHAPES[shape], FORMATS[memory_format]
    function, same = candidate(name, sizes[1], factor, DTYPES[dtype], fmt)
    x = torch.rand(sizes).to(DTYPES[dtype]).contiguous(memory_format=fmt)
    with torch.no_grad():
        expected = blur_pool(x.double(), factor, impl="reference")
        found = function(x)
        error = ((found.double() - expected).norm() / expected.norm()).item()
    assert found.shape == expected.shape
    assert not same or error <= (1e-5 if dtype == "fp32" else 1e-2)
    grad = torch.rand_like(found)
    benchmark.group = f"blur_pool x{factor} {direction}, {shape} {sizes} {dtype} {memory_format}"
    benchmark.extra_info.update(implementation=name, error=error, threads=torch.get_num_threads())

    def both():
        torch.autograd.grad(function(x), x, grad)

    if direction == "forward":
        with torch.no_grad():
            benchmark(function, x)
    else:
        x.requires_grad_()
        benchmark(both)
