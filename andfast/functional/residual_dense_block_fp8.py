"""The residual dense block with frozen weights and fp8 operands, for passes that need only the gradient to x.

The block is that of :mod:`andfast.functional.residual_dense_block`. The operands of its convolutions are rounded to fp8
(OCP formats; Micikevicius et al., FP8 formats for deep learning, 2022); sums, biases, activations and the residual are
not, and the residual keeps x's dtype. With q rounding to e4m3 and r to e5m2, to nearest and saturating::

    forward    a = q(x)        ak = q(lrelu(bk + wk * (a, a1 .. a(k-1))))        k = 1 to 4
               out = x + scale (b5 + w5 * (a, a1 .. a4))
    backward   d = r(grad)     dk = r(lrelu'(v(k) *' (d, d(k+1) .. d4)))         k = 4 to 1
               gx = grad + v(0) *' (d, d1 .. d4)

Features are not scaled: e4m3 covers 0.002 to 448. The weights w, and those of backward, v, which gather
(scale w5, wk+1 .. w4) for each slice that was read, are e4m3 with one factor per output channel, quantized once by
:func:`quantize_weights`. Backward is the gradient of the exact block, rounded; rounding itself has no gradient.

Gradients of a mean loss are far below the range of e5m2. The caller scales them to about :data:`GRADIENT_SIZE` and
undoes it afterwards; :class:`andfast.nn.fp8_body.Fp8Body` does so once for all blocks.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import dispatch, layout, sign_bits, triton_support
from andfast.functional.residual_dense_block import check_five_tensors
from andfast.kernels.residual_dense_block.buffers import (
    ACTIVATIONS,
    CONVOLUTIONS,
    gathered_weights,
    gradient_to_x,
    saved_for_backward,
)

NAME: Final = "residual_dense_block_fp8"

GRADIENT_SIZE: Final = 64.0
"""Target size of the largest gradient; e5m2 leaves a factor of 900 above it and 4e6 below."""

OLDEST: Final = (8, 9)
"""First compute capability with fp8 matrix units."""

_LARGEST: Final = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


class Fp8Weights(NamedTuple):
    """Quantized weights of a block, or of several stacked along leading dimensions.

    Attributes:
        kernels: ten, e4m3 as uint8, which more of PyTorch supports, each (..., 9, Cout, R) with R the channels summed
            over: five for forward, then those of the gradients to x4, x3, x2, x1 and x, with flipped taps.
        factors: ten, fp32 (..., Cout), of the sums.
        biases: five, fp32 (..., Cout), the last times the block's scale.
    """

    kernels: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    def block(self, index: int) -> "Fp8Weights":
        """Select one of several blocks."""
        return Fp8Weights(*(tuple(tensor[index] for tensor in tensors) for tensors in self))


@torch.no_grad()
def _quantized(kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize (..., Cout, R, 3, 3) to e4m3 bytes (..., 9, Cout, R) of at most 448, and factors (..., Cout)."""
    largest = kernel.abs().amax((-3, -2, -1))
    factor = largest.masked_fill(largest == 0, 1) / _LARGEST[torch.float8_e4m3fn]
    scaled = (kernel / factor[..., None, None, None]).flatten(-2).movedim(-1, -3)
    return _rounded(scaled, torch.float8_e4m3fn).contiguous().view(torch.uint8), factor


def quantize_weights(weights: Sequence[Tensor], biases: Sequence[Tensor], *, scale: float = 0.2) -> Fp8Weights:
    """Quantize the weights of residual dense blocks to fp8.

    Args:
        weights: five kernels as for :func:`andfast.functional.residual_dense_block`, or those of several blocks
            stacked: (..., G, F + k*G, 3, 3) and (..., F, F + 4*G, 3, 3).
        biases: five vectors, (..., G) four times and (..., F).
        scale: factor of the last convolution's output.

    Raises:
        TypeError: an argument is not a sequence of five tensors.
        ValueError: A tensor has the wrong shape, or requires a gradient, which fp8 weights do not support.
    """
    check_five_tensors("weights", weights)
    check_five_tensors("biases", biases)
    growth = weights[0].shape[-4] if weights[0].dim() > 3 else 0
    features = weights[-1].shape[-4] if weights[-1].dim() > 3 else 0
    blocks = tuple(weights[0].shape[:-4])
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        cout = features if k == ACTIVATIONS else growth
        checks.has_shape(f"weights[{k}]", weight, (*blocks, cout, features + k * growth, 3, 3), meaning="as documented")
        checks.has_shape(f"biases[{k}]", bias, (*blocks, cout), meaning="as documented")
        for name, tensor in (("weights", weight), ("biases", bias)):
            checks.like(f"{name}[{k}]", tensor, "weights[0]", weights[0], dtype=False)
            if tensor.requires_grad and torch.is_grad_enabled():
                raise ValueError(
                    f"{name}[{k}] must not require a gradient: fp8 is for frozen blocks (andfast.nn.frozen); "
                    "use residual_dense_block for training"
                )
    wide = [weight.detach().float() for weight in weights]
    scaled = [*wide[:-1], wide[-1] * scale]
    backward = [
        torch.cat(gathered_weights(scaled, k), -4).transpose(-4, -3).flip(-2, -1)
        for k in reversed(range(-1, ACTIVATIONS))
    ]
    kernels, factors = zip(*map(_quantized, (*scaled, *backward)), strict=True)
    vectors = [bias.detach().float() for bias in biases]
    return Fp8Weights(kernels, factors, (*vectors[:-1], vectors[-1] * scale))


def residual_dense_block_fp8(x: Tensor, weights: Fp8Weights, *, slope: float = 0.2, impl: str = "auto") -> Tensor:
    """Apply the residual dense block with fp8 operands and frozen weights.

    Differentiable (once) in x; the incoming gradient should have a size of about :data:`GRADIENT_SIZE`. Under autocast
    x is cast to the autocast dtype. "reference" emulates fp8 in float32 (float64 for float64 x) on any device.

    Args:
        x: Features, (N, F, H, W), floating point; N may be 0. The result has its memory format.
        weights: result of :func:`quantize_weights` for one block.
        slope: negative slope of the leaky ReLU, at least 0.
        impl: as for :func:`andfast.functional.residual_dense_block`. "triton" needs compute capability 8.9 and x in
            bfloat16 or float16.

    Returns:
        Tensor of x's shape.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; ``impl`` is unknown.
        RuntimeError: the requested implementation is not available here.
    """
    checks.images("x", x)
    if not isinstance(weights, Fp8Weights):
        raise TypeError(f"weights must be Fp8Weights, see quantize_weights, was {type(weights).__name__}")
    first = weights.kernels[0]
    if first.dim() != 3:
        raise ValueError(f"weights must be those of one block, had kernels of shape {checks.shape(first)}")
    checks.like("x", x, "weights", first, dtype=False)
    if x.shape[1] != first.shape[2]:
        raise ValueError(f"x must have the {first.shape[2]} channels of weights, was {checks.shape(x)}")
    if min(x.shape[2:]) < 1:
        raise ValueError(f"x must have at least one row and column, was {checks.shape(x)}")
    if isinstance(slope, bool) or not isinstance(slope, int | float):
        raise TypeError(f"slope must be a number, was {type(slope).__name__}")
    if not 0 <= slope < math.inf:
        raise ValueError(f"slope must be finite and at least 0, was {slope}")
    dtype = checks.autocast_dtype(x.device.type)
    if dtype is not None:
        x = layout.cast(x, dtype)
    impl = dispatch.resolve(NAME, impl, x.device.type, x.dtype)
    return forward_op(x, *map(list, weights), float(slope), impl)[0]


# ----------------------------------------------------------------------------------- Reference implementation


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to fp8, saturating; PyTorch's conversion gives NaN or infinity for large values."""
    return value.clamp(-_LARGEST[dtype], _LARGEST[dtype]).to(dtype)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of sums: float32, or float64 if x is float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _convolve(features: Sequence[Tensor], kernel: Tensor, factor: Tensor) -> Tensor:
    """One convolution of fp8 values, times the weights' factors."""
    dtype = features[0].dtype
    weight = kernel.view(torch.float8_e4m3fn).to(dtype).movedim(0, -1).unflatten(-1, (3, 3))
    with torch.autocast(features[0].device.type, enabled=False):
        sums = F.conv2d(torch.cat(list(features), 1), weight, padding=1)
    return sums * factor.to(dtype)[:, None, None]


def _forward_reference(
    x: Tensor, kernels: Sequence[Tensor], factors: Sequence[Tensor], biases: Sequence[Tensor], slope: float
) -> tuple[Tensor, Tensor]:
    dtype = _wide(x)
    features = [_rounded(x.to(dtype), torch.float8_e4m3fn).to(dtype)]
    bits = _signs(x, biases[0].shape[0])
    for k in range(CONVOLUTIONS):
        value = _convolve(features, kernels[k], factors[k]) + biases[k].to(dtype)[:, None, None]
        if k == ACTIVATIONS:
            return layout.empty(x, x.shape[1]).copy_(x.to(dtype) + value), bits
        value = F.leaky_relu(value, slope)
        bits[k] = sign_bits.pack(value > 0)
        features.append(_rounded(value, torch.float8_e4m3fn).to(dtype))
    raise AssertionError("unreachable")


def _backward_reference(
    grad: Tensor, bits: Tensor, kernels: Sequence[Tensor], factors: Sequence[Tensor], slope: float
) -> Tensor:
    dtype = _wide(grad)
    incoming = _rounded(grad.to(dtype), torch.float8_e5m2).to(dtype)
    growth: list[Tensor] = []
    for step, k in enumerate(reversed(range(ACTIVATIONS))):
        value = _convolve([incoming, *growth], kernels[CONVOLUTIONS + step], factors[CONVOLUTIONS + step])
        value = torch.where(sign_bits.unpack(bits[k], value.shape[1]) != 0, value, value * slope)
        growth.insert(0, _rounded(value, torch.float8_e5m2).to(dtype))
    return gradient_to_x(grad).copy_(grad.to(dtype) + _convolve([incoming, *growth], kernels[-1], factors[-1]))


def _signs(x: Tensor, growth: int) -> Tensor:
    """Allocate the signs that forward saves; bit c % 8 of byte c // 8 is set where channel c is positive."""
    return saved_for_backward(x, growth, False)


# ------------------------------------------------------------------------------------- Triton, and registration


def _why_not_triton(device_type: str) -> str | None:
    reason = triton_support.why_not(device_type)
    if reason is None:
        for index in range(torch.cuda.device_count()):
            capability = torch.cuda.get_device_capability(index)
            if capability < OLDEST:
                return (
                    "fp8 matrix products need compute capability 8.9 or newer (Ada, Hopper), "
                    f"device {index} has {capability[0]}.{capability[1]}"
                )
    return reason


# Triton first: the reference emulates fp8.
dispatch.register(
    NAME,
    {"triton": _why_not_triton, "reference": dispatch.everywhere},
    dtypes={"triton": (torch.bfloat16, torch.float16)},
)


@torch.library.custom_op("andfast::residual_dense_block_fp8", mutates_args=())
def forward_op(
    x: Tensor,
    kernels: Sequence[Tensor],
    factors: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """Return out and the signs, see :func:`_signs`; arguments are not validated."""
    if impl == "triton":
        from andfast.kernels.residual_dense_block_fp8 import kernels as triton_kernels  # noqa: PLC0415  (imports Triton)

        out, bits = layout.empty(x, x.shape[1]), _signs(x, kernels[0].shape[1])
        triton_kernels.forward(x, kernels, factors, biases, slope, out, bits)
        return out, bits
    return _forward_reference(x, kernels, factors, biases, slope)


@forward_op.register_fake
def _(x: Tensor, kernels: Sequence[Tensor], *_args: Any) -> tuple[Tensor, Tensor]:
    return layout.empty(x, x.shape[1]), _signs(x, kernels[0].shape[1])


@torch.library.custom_op("andfast::residual_dense_block_fp8_backward", mutates_args=())
def backward_op(
    grad: Tensor, bits: Tensor, kernels: Sequence[Tensor], factors: Sequence[Tensor], slope: float, impl: str
) -> Tensor:
    """Return the gradient to x, channels_last."""
    if impl == "triton":
        from andfast.kernels.residual_dense_block_fp8 import kernels as triton_kernels  # noqa: PLC0415  (imports Triton)

        grad_x = gradient_to_x(grad)
        triton_kernels.backward(grad, bits, kernels, factors, slope, grad_x)
        return grad_x
    return _backward_reference(grad, bits, kernels, factors, slope)


@backward_op.register_fake
def _(grad: Tensor, *_args: Any) -> Tensor:
    return gradient_to_x(grad)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, kernels, factors, _, ctx.slope, ctx.impl = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *kernels, *factors)


def _backward(ctx: Any, grad: Tensor, _grad_bits: Tensor | None) -> tuple[Any, ...]:
    bits, *weights = ctx.saved_tensors
    half = len(weights) // 2
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = backward_op(grad, bits, weights[:half], weights[half:], ctx.slope, ctx.impl)
    none = [None] * half
    return grad_x, none, none, [None] * CONVOLUTIONS, None, None


forward_op.register_autograd(_backward, setup_context=_setup_context)


# -------------------------- Operation counts for torch.utils.flop_counter: two per multiply-accumulate


def _operations(shape: Sequence[int], kernels: Sequence[Sequence[int]]) -> int:
    """Operations of convolutions with kernels (9, Cout, R) on images of shape (N, C, H, W)."""
    return sum(2 * math.prod(kernel) * shape[0] * shape[2] * shape[3] for kernel in kernels)


@register_flop_formula(torch.ops.andfast.residual_dense_block_fp8)
def _forward_operations(x_shape: Any, kernel_shapes: Any, *_args: Any, **_kwargs: Any) -> int:
    return _operations(x_shape, kernel_shapes[:CONVOLUTIONS])


@register_flop_formula(torch.ops.andfast.residual_dense_block_fp8_backward)
def _backward_operations(grad_shape: Any, _bits_shape: Any, kernel_shapes: Any, *_args: Any, **_kwargs: Any) -> int:
    return _operations(grad_shape, kernel_shapes[CONVOLUTIONS:])
