"""The degradation block against what PyTorch offers, at the shapes of F.

    python -m pytest benchmarks/suites/test_degradation_block.py --benchmark-group-by=group

Rows of a group, at one shape and precision:

- andfast's implementations, by name
- eager: pad, grouped convolution, LeakyReLU and addition as one writes them, differentiated by autograd; with shared
  weights a plain convolution
- compiled: the same under torch.compile
- convolution: cuDNN's grouped convolution alone, zero padding, no activation, no noise. It does less than the others

Directions are forward (nothing kept for a backward pass) and forward+backward (all gradients). Each row is held against
float64 on its first and last image, with shared weights the weight's gradient against fp32 over all images.
benchmarks/measure.py says how a row is timed.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from andfast.functional import degradation_block, dispatch
from andfast.functional.degradation_block import OP
from benchmarks import counts, measure
from benchmarks.machine import device

DEVICE = device()
CUDA = DEVICE == "cuda"
BATCH, SIDES = (48, (256, 64)) if CUDA and not measure.quick() else (2, (16,))
LAYERS = ((64, 64), (3, 64), (64, 3))
IMPLEMENTATIONS = list(dispatch.available(OP, DEVICE))
OTHERS = ["eager", "compiled", "convolution"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
TOLERANCE = {"bf16": 1e-2, "fp16": 2e-3, "tf32": 2e-3, "fp32": 1e-5}

pytestmark = pytest.mark.benchmark(timer=measure.clock)


def cases():
    """(direction, side, layer, weights, precision, name): bf16 at every shape, the rest where most of F's time goes."""
    sides_layers = list(itertools.product(SIDES, LAYERS))
    precisions = list(DTYPES) if CUDA else ["fp32", "bf16"]
    for side, layer in sides_layers:
        for precision, weights in itertools.product(precisions, ("per image", "shared")):
            main = precision == precisions[0] and weights == "per image"
            # Shared weights in bf16, other precisions in HR's size.
            secondary = layer == LAYERS[0] and (
                precision == precisions[0] or (weights == "per image" and side == SIDES[0])
            )
            if not (main or secondary):
                continue
            for direction, name in itertools.product(("forward", "forward+backward"), IMPLEMENTATIONS + OTHERS):
                # Saves a minute of compilation for redundant rows; inductor's C++ takes as long on a CPU.
                if name == "compiled" and not (CUDA and main and layer == LAYERS[0]):
                    continue
                yield direction, side, layer, weights, precision, name


def eager(x, weight, slope, noise):
    """The block as one writes it with grouped convolutions."""
    n, c_in, height, width = x.shape
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    if weight.dim() == 4:
        z = F.conv2d(padded, weight)
    else:
        z = F.conv2d(padded.reshape(1, n * c_in, height + 2, width + 2), weight.flatten(0, 1), groups=n)
        z = z.reshape(n, -1, height, width)
    return torch.where(z > 0, z, z * slope.to(z.dtype).view(-1, 1, 1, 1)) + noise


def convolution(x, weight, slope, noise):
    """The convolution alone."""
    if weight.dim() == 4:
        return F.conv2d(x, weight, padding=1)
    n, _, height, width = x.shape
    return F.conv2d(x.reshape(1, -1, height, width), weight.flatten(0, 1), padding=1, groups=n).reshape(
        n, -1, height, width
    )


def function(name):
    if name in IMPLEMENTATIONS:
        # The op's slopes are (N,) in fp32, as F's are.
        return lambda x, weight, slope, noise: degradation_block(x, weight, slope, noise, impl=name)
    if name == "compiled":
        torch.compiler.reset()
        return torch.compile(eager, dynamic=False)
    return {"eager": eager, "convolution": convolution}[name]


def inputs(side, layer, shared, dtype, memory_format):
    """x, weight, slope, noise; the incoming gradient."""
    c_in, c_out = layer
    x = torch.rand(BATCH, c_in, side, side, device=DEVICE)
    weight = torch.randn(*(() if shared else (BATCH,)), c_out, c_in, 3, 3, device=DEVICE) / (9 * c_in) ** 0.5
    slope = 1 + 0.1 * torch.randn(BATCH, device=DEVICE)
    noise, grad = (torch.randn(BATCH, c_out, side, side, device=DEVICE) for _ in range(2))
    x, noise, grad = (tensor.to(dtype=dtype, memory_format=memory_format) for tensor in (x, noise, grad))
    return (x, weight.to(dtype), slope, noise), grad


def pick(tensors, shared):
    """The first and the last image, in float64; weights that are shared as they are."""
    ends = [0, -1]
    return [tensor.double() if index == 1 and shared else tensor[ends].double() for index, tensor in enumerate(tensors)]


def gradients(call, tensors, grad):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = call(*leaves)
    computed = torch.autograd.grad(out, leaves, grad, allow_unused=True)
    return out.detach(), computed


def expected_weight(call, tensors, grad):
    """The gradient to shared weights in fp32, eight images at a time."""
    total = 0
    for first in range(0, BATCH, 8):
        part = [tensor if index == 1 else tensor[first : first + 8] for index, tensor in enumerate(tensors)]
        total = total + gradients(call, [tensor.float() for tensor in part], grad[first : first + 8].float())[1][1]
    return total.double()


def error_of(call, same, tensors, grad, shared, both):
    """The largest relative error of the output, and of the gradients with ``both``, of a call at full size.

    ``same``: the function it should agree with, the block's reference or the bare convolution.
    """
    ends = pick(tensors, shared)
    if not both:
        with torch.no_grad():
            return measure.relative_error(call(*tensors)[[0, -1]], same(*ends))
    out, computed = gradients(call, tensors, grad)
    expected_out, expected = gradients(same, ends, grad[[0, -1]].double())
    errors = [measure.relative_error(out[[0, -1]], expected_out)]
    for index, (gradient, exact) in enumerate(zip(computed, expected, strict=True)):
        if gradient is None:
            assert exact is None
        elif index == 1 and shared:
            errors.append(measure.relative_error(gradient, expected_weight(same, tensors, grad)))
        else:
            errors.append(measure.relative_error(gradient[[0, -1]], exact))
    return max(errors)


@pytest.mark.parametrize(("direction", "side", "layer", "weights", "precision", "name"), list(cases()))
def test_degradation_block(benchmark, precision_switch, direction, side, layer, weights, precision, name):
    shared, both = weights == "shared", direction != "forward"
    memory_format = torch.channels_last
    # cuDNN's grouped convolution takes the images of a batch as channels, which lie in NCHW.
    if name in ("eager", "compiled", "convolution") and not shared:
        memory_format = torch.contiguous_format

    def make():
        return inputs(side, layer, shared, DTYPES[precision], memory_format)

    tensors, grad = make()
    mode = "tf32" if precision == "tf32" else "ieee"
    call = function(name)

    def same(*arguments):
        precision_switch("ieee")
        return convolution(*arguments) if name == "convolution" else degradation_block(*arguments, impl="reference")

    def timed(*arguments):
        precision_switch(mode)
        return call(*arguments)

    error = error_of(timed, same, tensors, grad, shared, both)
    # cuDNN's fastest fp32 algorithm may be one that rounds more.
    assert error <= TOLERANCE[precision] * (1 if name == "triton" or precision != "fp32" else 10)
    precision_switch(mode)
    sets = measure.sets_like((tensors, grad), make)
    c_in, c_out = layer
    shape = f"{BATCH}x{c_in}->{c_out}x{side}x{side}"
    benchmark.group = f"{OP} {direction}, {shape} {precision}, {weights} weights"
    # Without activation and noise there are no gradients to their arguments.
    differentiated = slice(0, 2 if name == "convolution" else 4) if both else slice(0)
    leaves = [([tensor.detach().requires_grad_(both) for tensor in arguments], up) for arguments, up in sets]
    timing = measure.time_passes(
        benchmark, call, [(arguments, arguments[differentiated], up) for arguments, up in leaves]
    )
    passes = counts.degradation_block(
        tensors[0].shape,
        c_out,
        size=tensors[0].element_size(),
        shared=shared,
        noise=None if name == "convolution" else c_out,
        needs=() if not both else ("x", "weight") if name == "convolution" else counts.ALL,
    )
    measure.describe_row(
        benchmark,
        passes[: 1 + both],
        precision=precision,
        timing=timing,
        op=OP,
        implementation=name,
        direction=direction,
        shape=shape,
        weights=weights,
        memory_format="nchw" if memory_format == torch.contiguous_format else "nhwc",
        error=error,
        input_sets=len(sets),
    )
