"""The residual dense block against what PyTorch offers, at the shape of G in training.

    python -m pytest benchmarks/suites/test_residual_dense_block.py --benchmark-group-by=group

Rows of a group, at one precision:

- andfast's implementations, by name
- eager: the block as ESRGAN writes it, four concatenations, differentiated by autograd, channels_last
- compiled: the same under torch.compile

Directions are forward (nothing kept for a backward pass), frozen forward+backward (the gradient to x alone, as in the
ascent) and trainable forward+backward (all gradients). Each row is held against the definition in float64, result and
gradients; peak_memory_bytes beside its time is of one call. benchmarks/measure.py says how a row is timed.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from andfast.functional import dispatch, residual_dense_block
from andfast.functional.residual_dense_block import NAME as OP
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference
from benchmarks import counts, measure
from benchmarks.machine import device

DEVICE = device()
CUDA = DEVICE == "cuda"
FEATURES, GROWTH = 64, 32
SHAPE = (48, FEATURES, 64, 64) if CUDA and not measure.quick() else (2, FEATURES, 16, 16)
SLOPE = SCALE = 0.2
DIRECTIONS = ("forward", "frozen forward+backward", "trainable forward+backward")
IMPLEMENTATIONS = list(dispatch.available(OP, DEVICE))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
TOLERANCE = {"bf16": 1e-2, "fp16": 4e-3, "tf32": 2e-3, "fp32": 1e-5}

pytestmark = pytest.mark.benchmark(timer=measure.clock)


def cases():
    """(direction, precision, name): everything in bf16, other precisions without a forward pass alone."""
    for precision in DTYPES if CUDA else ("fp32", "bf16"):
        for direction, name in itertools.product(DIRECTIONS, [*IMPLEMENTATIONS, "eager", "compiled"]):
            secondary = precision != "bf16"
            if name in IMPLEMENTATIONS and name not in dispatch.available(OP, DEVICE, DTYPES[precision]):
                continue
            # Compilation takes longer than the rest; inductor's C++ does so on a CPU.
            if name == "compiled" and (secondary or not CUDA):
                continue
            if secondary and CUDA and direction == "forward":
                continue
            yield direction, precision, name


def eager(x, weights, biases):
    """The block as ESRGAN writes it."""
    features = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        features.append(F.leaky_relu(F.conv2d(torch.cat(features, 1), weight, bias, padding=1), SLOPE))
    return F.conv2d(torch.cat(features, 1), weights[-1], biases[-1], padding=1) * SCALE + x


def function(name):
    if name in IMPLEMENTATIONS:
        return lambda x, weights, biases: residual_dense_block(x, weights, biases, slope=SLOPE, scale=SCALE, impl=name)
    if name == "compiled":
        torch.compiler.reset()
        return torch.compile(eager, dynamic=False)
    return eager


def inputs(dtype):
    """x, weights and biases, channels_last; the incoming gradient.

    A summand of 2 or -2 decides the sign of every activation: where one is near zero its gradient jumps, and rounding
    alone would make two right results differ.
    """

    def signs(*shape):
        return torch.where(torch.rand(shape, device=DEVICE) < 0.5, 1.0, -1.0)

    x, grad = (torch.randn(SHAPE, device=DEVICE) for _ in range(2))
    x[:, 0] = 2 * signs(SHAPE[0], *SHAPE[2:])
    weights, biases = [], []
    for k in range(5):
        cout, cin = GROWTH if k < 4 else FEATURES, FEATURES + k * GROWTH
        weight = torch.randn(cout, cin, 3, 3, device=DEVICE) / (18 * cin**0.5)
        weight[:, 0, 1, 1] = signs(cout)
        weights.append(weight)
        biases.append(torch.randn(cout, device=DEVICE) / 10)
    form = {"dtype": dtype, "memory_format": torch.channels_last}
    return (
        x.to(**form),
        [tensor.to(**form) for tensor in weights],
        [tensor.to(dtype) for tensor in biases],
        grad.to(**form),
    )


def leaves(arguments, direction, dtype=None):
    """The arguments, detached, requiring the gradients of a direction; and those that do."""
    x, weights, biases = (
        [t.detach().to(dtype or t.dtype) for t in tensors] for tensors in ([arguments[0]], arguments[1], arguments[2])
    )
    everything = [*x, *weights, *biases]
    differentiated = {DIRECTIONS[0]: [], DIRECTIONS[1]: x, DIRECTIONS[2]: everything}[direction]
    for tensor in differentiated:
        tensor.requires_grad_()
    return (x[0], weights, biases), differentiated


def error_of(call, arguments, direction):
    """The largest relative error of the result and the gradients."""
    results = measure.results_of(call, *leaves(arguments, direction), arguments[3])
    exact = measure.results_of(
        lambda *arguments: residual_dense_block_reference(*arguments, slope=SLOPE, scale=SCALE),
        *leaves(arguments, direction, torch.float64),
        arguments[3],
    )
    return measure.largest_error(results, exact)


@pytest.mark.parametrize(("direction", "precision", "name"), list(cases()))
def test_residual_dense_block(benchmark, precision_switch, direction, precision, name):
    precision_switch("tf32" if precision == "tf32" else "ieee")
    dtype, call = DTYPES[precision], function(name)
    first = inputs(dtype)
    error = error_of(call, first, direction)
    assert error <= TOLERANCE[precision]
    sets = measure.sets_like(first, lambda: inputs(dtype))
    shape = "x".join(map(str, SHAPE))
    benchmark.group = f"{OP} {direction}, {shape} {precision}"
    timing = measure.time_passes(benchmark, call, [(*leaves(values, direction), values[3]) for values in sets])
    layer, size = counts.residual_dense_block(SHAPE, GROWTH), dtype.itemsize
    passes = [layer.forward(size, keep=direction != "forward")]
    if direction != "forward":
        passes.append(layer.backward(size, weights=direction == DIRECTIONS[2]))
    measure.describe_row(
        benchmark,
        passes,
        precision=precision,
        timing=timing,
        op=OP,
        implementation=name,
        direction=direction,
        shape=f"{shape}, growth {GROWTH}",
        memory_format="nhwc",
        error=error,
        input_sets=len(sets),
    )
