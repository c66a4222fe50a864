"""G's tail, upsampling + convolution + LeakyReLU, against what PyTorch offers, at the shapes of training.

    python -m pytest benchmarks/suites/test_upsampled_convolution.py --benchmark-group-by=group

Layers are conv_up1 and conv_up2 (x2) and conv_hr (x1) of a batch of 48 at 64 x 64. Rows of a group, at one precision:

- andfast's implementations, by name; "reference" is PyTorch's transposed convolution and packed signs
- eager: interpolate, conv2d and leaky_relu as ESRGAN writes them, differentiated by autograd, channels_last
- transposed: the transposed convolution with its 4x4 kernel and leaky_relu, by autograd; x2 alone
- compiled: eager under torch.compile

Directions are forward (nothing kept for a backward pass), frozen forward+backward (the gradient to x alone, as in the
ascent) and trainable forward+backward (all gradients). Each row is held against the definition in float64, result and
gradients; peak_memory_bytes beside its time is of one call. The floor has the fewest products that are known, 4/9
of the definition's for x2. benchmarks/measure.py says how a row is timed.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from andfast.functional import dispatch, upsampled_convolution
from andfast.functional.upsampled_convolution import NAME as OP
from andfast.functional.upsampled_convolution_reference import upsampled_convolution_reference
from andfast.functional.upsampled_kernel import transposed_kernel
from benchmarks import counts, measure
from benchmarks.machine import device

DEVICE = device()
CUDA = DEVICE == "cuda"
FEATURES, SLOPE = 64, 0.2
BATCH, SIDE = (48, 64) if CUDA and not measure.quick() else (1, 12)
LAYERS = {"conv_up1": (2, SIDE), "conv_up2": (2, 2 * SIDE), "conv_hr": (1, 4 * SIDE)}  # factor, height and width
DIRECTIONS = ("forward", "frozen forward+backward", "trainable forward+backward")
IMPLEMENTATIONS = list(dispatch.available(OP, DEVICE))
DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
TOLERANCE = {"bf16": 1e-2, "tf32": 2e-3, "fp32": 1e-5}

pytestmark = pytest.mark.benchmark(timer=measure.clock)


def cases():
    """(layer, direction, precision, name): all in bf16, in others conv_up2 alone, without a forward pass alone."""
    for precision in DTYPES if CUDA else ("fp32", "bf16"):
        names = [*IMPLEMENTATIONS, "eager", "transposed", "compiled"]
        for layer, direction, name in itertools.product(LAYERS, DIRECTIONS, names):
            secondary = precision != "bf16"
            if name in IMPLEMENTATIONS and name not in dispatch.available(OP, DEVICE, DTYPES[precision]):
                continue
            # Compilation takes longer than the rest; inductor's C++ does so on a CPU.
            if name == "compiled" and (secondary or not CUDA or layer == "conv_up1"):
                continue
            if name == "transposed" and LAYERS[layer][0] == 1:
                continue
            if secondary and CUDA and (direction == "forward" or layer != "conv_up2"):
                continue
            yield layer, direction, precision, name


def transposed(x, weight, bias, *, factor):
    kernel = transposed_kernel(weight, factor).transpose(0, 1)
    return F.leaky_relu(F.conv_transpose2d(x, kernel, bias, stride=factor, padding=1), SLOPE)


def eager(x, weight, bias, *, factor):
    """The layer as ESRGAN writes it."""
    if factor > 1:
        x = F.interpolate(x, scale_factor=factor, mode="nearest")
    return F.leaky_relu(F.conv2d(x, weight, bias, padding=1), SLOPE, inplace=True)


def function(name, factor):
    if name in IMPLEMENTATIONS:
        return lambda *arguments: upsampled_convolution(*arguments, factor=factor, slope=SLOPE, impl=name)
    if name == "compiled":
        torch.compiler.reset()
        compiled = torch.compile(eager, dynamic=False)
        return lambda *arguments: compiled(*arguments, factor=factor)
    chosen = {"eager": eager, "transposed": transposed}[name]
    return lambda *arguments: chosen(*arguments, factor=factor)


def inputs(dtype, factor, side):
    """x, weight, bias and the incoming gradient, channels_last.

    A summand of 2 or -2 decides the sign of every result: where one is near zero its gradient jumps, and rounding
    alone would make two right results differ.
    """

    def signs(*shape):
        return torch.where(torch.rand(shape, device=DEVICE) < 0.5, 1.0, -1.0)

    x = torch.randn(BATCH, FEATURES, side, side, device=DEVICE)
    x[:, 0] = 2 * signs(BATCH, side, side)
    weight = torch.randn(FEATURES, FEATURES, 3, 3, device=DEVICE) / (18 * FEATURES**0.5)
    weight[:, 0, 1, 1] = signs(FEATURES)
    bias = torch.randn(FEATURES, device=DEVICE) / 10
    grad = torch.randn(BATCH, FEATURES, factor * side, factor * side, device=DEVICE)
    form = {"dtype": dtype, "memory_format": torch.channels_last}
    return x.to(**form), weight.to(**form), bias.to(dtype), grad.to(**form)


def leaves(arguments, direction, dtype=None):
    """The arguments, detached, requiring the gradients of a direction; and those that do."""
    tensors = [tensor.detach().to(dtype or tensor.dtype) for tensor in arguments[:3]]
    differentiated = tensors[: DIRECTIONS.index(direction)] if direction != DIRECTIONS[2] else tensors
    for tensor in differentiated:
        tensor.requires_grad_()
    return tensors, differentiated


def error_of(call, arguments, direction, factor):
    """The largest relative error of the result and the gradients; on two images, as float64 takes eight bytes."""
    arguments = [arguments[0][:2], *arguments[1:3], arguments[3][:2]]
    results = measure.results_of(call, *leaves(arguments, direction), arguments[3])
    exact = measure.results_of(
        lambda *tensors: upsampled_convolution_reference(*tensors, factor=factor, slope=SLOPE),
        *leaves(arguments, direction, torch.float64),
        arguments[3],
    )
    return measure.largest_error(results, exact)


@pytest.mark.parametrize(("layer", "direction", "precision", "name"), list(cases()))
def test_upsampled_convolution(benchmark, precision_switch, layer, direction, precision, name):
    precision_switch("tf32" if precision == "tf32" else "ieee")
    factor, side = LAYERS[layer]
    dtype, call = DTYPES[precision], function(name, factor)
    first = inputs(dtype, factor, side)
    error = error_of(call, first, direction, factor)
    assert error <= TOLERANCE[precision]
    sets = measure.sets_like(first, lambda: inputs(dtype, factor, side))
    shape = "x".join(map(str, first[0].shape))
    benchmark.group = f"{OP} {direction}, {layer}, {shape} x{factor} {precision}"
    timing = measure.time_passes(benchmark, call, [(*leaves(values, direction), values[3]) for values in sets])
    work, size = counts.upsampled_convolution(first[0].shape, FEATURES, factor), dtype.itemsize
    passes = [work.forward(size, keep=direction != "forward")]
    if direction != "forward":
        passes.append(work.backward(size, weights=direction == DIRECTIONS[2]))
    measure.describe_row(
        benchmark,
        passes,
        precision=precision,
        timing=timing,
        op=OP,
        implementation=name,
        direction=direction,
        layer=layer,
        shape=f"{shape} x{factor}",
        memory_format="nhwc",
        error=error,
        input_sets=len(sets),
    )
