"""Nearest upsampling, a 3x3 convolution and a leaky ReLU in one: G's tail, whose upsampled maps are never made.

With zero padding of 1 around the upsampled map::

    out = leaky_relu(conv2d(upsample_nearest(x, factor), weight, bias))

(Wang et al., ESRGAN, 2018, section 3.1; the layers ``conv_up1``, ``conv_up2`` and, with a factor of 1, ``conv_hr`` of
BasicSR's ``RRDBNet``.) By 2 it is a transposed convolution of the small map with a 4x4 kernel, 4/9 of the products;
:mod:`andfast.functional.upsampled_kernel` says why.

What is kept between the passes depends on who asks. With frozen weights, one bit an element of the result, its sign;
without an activation (a slope of 1) nothing at all, where PyTorch's own convolution keeps its input. To train the
weights, x, which is the small map, and the result, both tensors that the caller and what reads the result have anyway.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import dispatch
from andfast.functional import layout as _convolution
from andfast.functional import triton_support as _triton
from andfast.functional.upsampled_kernel import gradients, transposed_kernel
from andfast.kernels.upsampled_convolution import launch as _fused

FACTORS: Final = (1, 2)
TAPS: Final = 9
NAME: Final = "upsampled_convolution"
_SIGNS_A_BYTE: Final = 8


def upsampled_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, *, factor: int = 2, slope: float = 0.2, impl: str = "auto"
) -> Tensor:
    """Enlarge images by repeating pixels, convolve them, and apply the leaky ReLU.

    Differentiable (once) in x, weight and bias; a gradient that nobody asks for is not computed. Under autocast,
    tensors other than float64 are cast to its dtype, in which the result is returned.

    Args:
        x: Features of images, (N, Cin, H, W), floating point; N may be 0. The result takes its memory format.
        weight: (Cout, Cin, 3, 3).
        bias: (Cout,).
        factor: 2, or 1 for a convolution and its activation without upsampling.
        slope: Negative slope of the leaky ReLU, at least 0; 1 for none.
        impl: "auto" for the fastest implementation available on x's device, or one of
            :data:`andfast.functional.dispatch.IMPLEMENTATIONS`.

    Returns:
        Tensor (N, Cout, factor * H, factor * W).

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape, device or value; ``impl`` is no implementation's name.
        RuntimeError: The implementation asked for is not available here.
    """
    x, weight, bias, slope = _checked(x, weight, bias, factor, slope)
    frozen = torch.is_grad_enabled() and x.requires_grad and not (weight.requires_grad or bias.requires_grad)
    impl = dispatch.resolve(NAME, impl, x.device.type, x.dtype)
    return forward_op(x, weight, bias, factor, slope, frozen and slope != 1, impl)[0]


def upsampled_convolution_reference(
    x: Tensor, weight: Tensor, bias: Tensor, *, factor: int = 2, slope: float = 0.2
) -> Tensor:
    """The same as its definition reads, the upsampled map and all, by autograd: the oracle of the tests."""
    if factor > 1:
        x = F.interpolate(x, scale_factor=factor, mode="nearest")
    convolved = F.conv2d(x, weight, bias, padding=1)
    return convolved if slope == 1 else F.leaky_relu(convolved, slope)


# -------------------------------------------------------------------------------------------------- Arguments


def _checked(
    x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Check every argument and cast what autocast wants cast."""
    checks.images("x", x)
    for name, value in (("weight", weight), ("bias", bias)):
        checks.tensor(name, value)
        checks.floating(name, value)
    if isinstance(factor, bool | float) or factor not in FACTORS:
        raise ValueError(f"factor must be {' or '.join(map(str, FACTORS))}, was {factor!r}")
    if isinstance(slope, bool) or not isinstance(slope, int | float):
        raise TypeError(f"slope must be a number, was {type(slope).__name__}")
    if not 0 <= slope < math.inf:  # the backward pass tells the sign before the activation by the sign after it
        raise ValueError(f"slope must be finite and at least 0, was {slope}")
    if min(x.shape[1:]) < 1:
        raise ValueError(f"x must have at least one channel, row and column, was {checks.shape(x)}")
    dtype = None if x.is_meta else checks.autocast_dtype(x.device.type)
    if dtype is not None:
        x, weight, bias = (_convolution.cast(one, dtype) for one in (x, weight, bias))
    c_out = weight.shape[0] if weight.dim() > 0 else 0
    if c_out < 1:
        raise ValueError(f"weight must have shape (Cout, Cin, 3, 3) with Cout at least 1, was {checks.shape(weight)}")
    checks.has_shape("weight", weight, (c_out, x.shape[1], 3, 3), meaning="(Cout, Cin, 3, 3)")
    checks.has_shape("bias", bias, (c_out,), meaning="(Cout,)")
    checks.like("weight", weight, "x", x)
    checks.like("bias", bias, "x", x)
    return x, weight, bias, float(slope)


# ----------------------------------------------------------------------------------- Reference implementation


def _forward_reference(
    x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float, keep_signs: bool
) -> tuple[Tensor, Tensor]:
    """Return out and its signs, see :func:`forward_op`."""
    if factor == 1:
        convolved = F.conv2d(x, weight, bias, padding=1)
    else:
        kernel = transposed_kernel(weight, factor).transpose(0, 1)
        convolved = F.conv_transpose2d(x, kernel, bias, stride=factor, padding=1)
    if slope != 1:
        F.leaky_relu_(convolved, slope)
    out = _laid_out(convolved, _convolution.empty(x, weight.shape[0], factor=factor))
    return out, _packed(out > 0) if keep_signs else x.new_empty(0, dtype=torch.uint8)


def _backward_reference(
    grad: Tensor,
    saved: Tensor,
    x: Tensor | None,
    weight: Tensor,
    factor: int,
    slope: float,
    needed: Sequence[bool],
    channels_last: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients to x, weight and bias, None where it is not needed."""
    x_needed, weight_needed, bias_needed = needed
    grad_x = grad_weight = grad_bias = None
    if saved.numel():
        if saved.dtype == torch.uint8:
            saved = _unpacked(saved, grad.shape[1]).to(grad.dtype)
        grad = torch.ops.aten.leaky_relu_backward(grad, saved, slope, False)
    if weight_needed:
        if x is None:
            raise ValueError(f"the gradient to the weight of {NAME} needs x")
        grad_x, grad_weight, grad_bias = gradients(grad, x, weight, factor, list(needed))
    else:
        if x_needed:
            kernel = transposed_kernel(weight, factor).transpose(0, 1)  # (Cin, Cout, ...)
            grad_x = F.conv2d(grad, kernel, stride=factor, padding=1)
        if bias_needed:
            grad_bias = grad.sum((0, 2, 3))
    if grad_x is not None:
        grad_x = _laid_out(grad_x, _gradient_to_x(grad, weight, factor, channels_last))
    return grad_x, grad_weight, grad_bias


def _packed(positive: Tensor) -> Tensor:
    """Booleans (N, C, H, W) as bits, (N, H, W, ceil(C / 8)) bytes."""
    by_pixel = positive.permute(0, 2, 3, 1).view(torch.uint8)
    if missing := -positive.shape[1] % _SIGNS_A_BYTE:
        by_pixel = F.pad(by_pixel, (0, missing))
    by_byte = by_pixel.unflatten(-1, (by_pixel.shape[-1] // _SIGNS_A_BYTE, _SIGNS_A_BYTE))
    return (by_byte << _bit_numbers(positive)).sum(-1, dtype=torch.uint8)


def _unpacked(signs: Tensor, channels: int) -> Tensor:
    """The inverse of :func:`_packed`: above zero where the bit is set, else zero."""
    bits = signs.unsqueeze(-1) & (1 << _bit_numbers(signs))
    return bits.flatten(-2)[..., :channels].permute(0, 3, 1, 2)


def _bit_numbers(like: Tensor) -> Tensor:
    return torch.arange(_SIGNS_A_BYTE, dtype=torch.uint8, device=like.device)


def _laid_out(value: Tensor, wanted: Tensor) -> Tensor:
    """``value`` in the strides of ``wanted``, which is written to if they differ."""
    return value if value.stride() == wanted.stride() else wanted.copy_(value)


def _gradient_to_x(grad: Tensor, weight: Tensor, factor: int, channels_last: bool) -> Tensor:
    """An uninitialised tensor of the shape, dtype and strides that the gradient to x has."""
    n, _, height, width = grad.shape
    shape = (n, weight.shape[1], height // factor, width // factor)
    form = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=form)


# Triton comes second until a GPU has verified and timed it: "auto" takes the first that can run.
dispatch.register(
    NAME,
    {"reference": dispatch.everywhere, "triton": _triton.why_not},
    dtypes={"triton": _triton.DTYPES},
)


# --------------------------------------- Registration: one op forward, one backward, for every implementation


@torch.library.custom_op("andfast::upsampled_convolution", mutates_args=())
def forward_op(
    x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float, keep_signs: bool, impl: str
) -> tuple[Tensor, Tensor]:
    """Return out, and its signs if ``keep_signs``, else a tensor without elements; arguments are not checked.

    Signs are (N, factor * H, factor * W, ceil(Cout / 8)) bytes: bit c % 8 of byte c // 8 says that channel c is
    positive. Without them a backward pass reads the signs off out itself.
    """
    if impl == "triton":
        out = _convolution.empty(x, weight.shape[0], factor=factor)
        signs = x.new_empty(_signs_shape(x, weight, factor, keep_signs), dtype=torch.uint8)
        _fused.forward(x, weight, bias, factor, slope, out, signs)
        return out, signs
    return _forward_reference(x, weight, bias, factor, slope, keep_signs)


def _signs_shape(x: Tensor, weight: Tensor, factor: int, keep_signs: bool) -> tuple[int, ...]:
    n, _, height, width = x.shape
    return (n, factor * height, factor * width, -(-weight.shape[0] // _SIGNS_A_BYTE)) if keep_signs else (0,)


@forward_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float, keep_signs: bool, impl: str
) -> tuple[Tensor, Tensor]:
    signs = x.new_empty(_signs_shape(x, weight, factor, keep_signs), dtype=torch.uint8)
    return _convolution.empty(x, weight.shape[0], factor=factor), signs


@torch.library.custom_op("andfast::upsampled_convolution_backward", mutates_args=())
def backward_op(
    grad: Tensor,
    saved: Tensor,
    x: Tensor | None,
    weight: Tensor,
    factor: int,
    slope: float,
    needed: Sequence[bool],
    channels_last: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to x, weight and bias; those not needed as tensors without elements.

    ``saved`` is the signs of out, or out itself, or has no elements without an activation. ``x`` is needed for the
    gradient to weight alone; ``channels_last`` says which format the gradient to x takes.
    """
    arguments = (grad, saved, x, weight, factor, slope, needed)
    if impl == "triton":
        into = _gradient_to_x(grad, weight, factor, channels_last) if needed[0] else None
        grad_x, grad_weight, grad_bias = _fused.backward(*arguments, into)
    else:
        grad_x, grad_weight, grad_bias = _backward_reference(*arguments, channels_last)
    # An op returns tensors, not None, and always of the same strides, which the fake below can foretell.
    return (
        grad.new_empty(0) if grad_x is None else grad_x,
        grad.new_empty(0) if grad_weight is None else grad_weight.contiguous(),
        grad.new_empty(0) if grad_bias is None else grad_bias,
    )


@backward_op.register_fake
def _(
    grad: Tensor, saved: Tensor, x: Tensor | None, weight: Tensor, factor: int, slope: float, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needed, channels_last, _impl = others
    return (
        _gradient_to_x(grad, weight, factor, channels_last) if needed[0] else grad.new_empty(0),
        weight.new_empty(weight.shape if needed[1] else (0,)),
        weight.new_empty(weight.shape[0] if needed[2] else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, ctx.factor, ctx.slope, signs_kept, ctx.impl = inputs
    out, signs = output
    ctx.mark_non_differentiable(signs)
    ctx.channels_last = _convolution.memory_format(x) == torch.channels_last
    saved = signs if signs_kept or ctx.slope == 1 else out
    ctx.save_for_backward(saved, x if ctx.needs_input_grad[1] else None, weight)


def _backward(ctx: Any, grad: Tensor, _grad_signs: Tensor | None) -> tuple[Any, ...]:
    needed = list(ctx.needs_input_grad[:3])
    grads = backward_op(grad, *ctx.saved_tensors, ctx.factor, ctx.slope, needed, ctx.channels_last, ctx.impl)
    return *(one if need else None for one, need in zip(grads, needed, strict=True)), *(None,) * 4


forward_op.register_autograd(_backward, setup_context=_setup_context)


# ---------------------------------- Operation counts, for torch.utils.flop_counter: two a multiply-accumulate

# Those of the definition, so that one work has one count whoever does it; upsampling by 2 takes 4/9 of them.


@register_flop_formula(torch.ops.andfast.upsampled_convolution)
def _forward_operations(x_shape: Any, weight_shape: Any, _bias_shape: Any, factor: int, *_: Any, **_kwargs: Any) -> int:
    return 2 * TAPS * weight_shape[0] * weight_shape[1] * x_shape[0] * x_shape[2] * x_shape[3] * factor**2


@register_flop_formula(torch.ops.andfast.upsampled_convolution_backward)
def _backward_operations(
    grad_shape: Any, _saved_shape: Any, _x_shape: Any, weight_shape: Any, *others: Any, **_kwargs: Any
) -> int:
    _factor, _slope, needed, *_ = others
    pixels = grad_shape[0] * grad_shape[2] * grad_shape[3]
    return 2 * TAPS * weight_shape[0] * weight_shape[1] * pixels * sum(needed[:2])
