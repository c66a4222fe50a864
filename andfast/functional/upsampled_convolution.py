"""Nearest upsampling, a 3x3 convolution and a leaky ReLU, without materializing the upsampled map: G's tail.

With zero padding of 1 around the upsampled map::

    out = leaky_relu(conv2d(upsample_nearest(x, factor), weight, bias))

(Wang et al., ESRGAN, 2018, section 3.1; the layers ``conv_up1``, ``conv_up2`` and, with a factor of 1, ``conv_hr`` of
BasicSR's ``RRDBNet``.) With factor 2 it is a transposed convolution of the small map with a 4x4 kernel and 4/9 of the
products, see :mod:`andfast.functional.upsampled_kernel`.

Saved for backward: with frozen weights, the signs of the result, one bit per element, or nothing without an activation
(slope 1). If weights require gradients, x (the small map) and the result, which the caller and the next layer hold
anyway.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import compiled_ops, dispatch, layout, triton_support
from andfast.functional import upsampled_convolution_reference as reference
from andfast.functional.upsampled_kernel import gradients, transposed_kernel
from andfast.kernels.common.layout import SIGNS_PER_BYTE

FACTORS: Final = (1, 2)
TAPS: Final = 9
NAME: Final = "upsampled_convolution"
_OPS: Any = torch.ops.andfast


def upsampled_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, *, factor: int = 2, slope: float = 0.2, impl: str = "auto"
) -> Tensor:
    """Apply nearest upsampling, a 3x3 convolution and a leaky ReLU.

    Differentiable (once) in x, weight and bias; only the gradients that are needed are computed. Under autocast, inputs
    other than float64 are cast to the autocast dtype, which is the dtype of the result.

    Args:
        x: Features, (N, Cin, H, W), floating point; N may be 0. The result has its memory format.
        weight: (Cout, Cin, 3, 3).
        bias: (Cout,).
        factor: 2, or 1 for no upsampling.
        slope: negative slope of the leaky ReLU, at least 0; 1 for none.
        impl: "auto" for the fastest implementation available on x's device, or one of
            :data:`andfast.functional.dispatch.IMPLEMENTATIONS`.

    Returns:
        Tensor (N, Cout, factor * H, factor * W).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; ``impl`` is unknown.
        RuntimeError: the requested implementation is not available here.
    """
    x, weight, bias, slope = _checked(x, weight, bias, factor, slope)
    frozen = torch.is_grad_enabled() and x.requires_grad and not (weight.requires_grad or bias.requires_grad)
    keep_signs = frozen and slope != 1
    no_cuda = _unsuited_to_cuda(x.shape[1], weight.shape[0], factor, keep_signs)
    impl = dispatch.resolve(NAME, impl, x.device.type, x.dtype, no_cuda)
    return forward_op(x, weight, bias, factor, slope, keep_signs, impl)[0]


# -------------------------------------------------------------------------------------------------- Arguments


def _checked(
    x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Validate all arguments and apply autocast."""
    checks.images("x", x)
    for name, value in (("weight", weight), ("bias", bias)):
        checks.tensor(name, value)
        checks.floating(name, value)
    if isinstance(factor, bool | float) or factor not in FACTORS:
        raise ValueError(f"factor must be {' or '.join(map(str, FACTORS))}, was {factor!r}")
    if isinstance(slope, bool) or not isinstance(slope, int | float):
        raise TypeError(f"slope must be a number, was {type(slope).__name__}")
    if not 0 <= slope < math.inf:  # backward reads the pre-activation's sign off the result
        raise ValueError(f"slope must be finite and at least 0, was {slope}")
    if min(x.shape[1:]) < 1:
        raise ValueError(f"x must have at least one channel, row and column, was {checks.shape(x)}")
    dtype = checks.autocast_dtype(x.device.type)
    if dtype is not None:
        x, weight, bias = (layout.cast(tensor, dtype) for tensor in (x, weight, bias))
    c_out = weight.shape[0] if weight.dim() > 0 else 0
    if c_out < 1:
        raise ValueError(f"weight must have shape (Cout, Cin, 3, 3) with Cout at least 1, was {checks.shape(weight)}")
    checks.has_shape("weight", weight, (c_out, x.shape[1], 3, 3), meaning="(Cout, Cin, 3, 3)")
    checks.has_shape("bias", bias, (c_out,), meaning="(Cout,)")
    checks.like("weight", weight, "x", x)
    checks.like("bias", bias, "x", x)
    return x, weight, bias, float(slope)


# ------------------------------------------------------------------------------------ Choice of implementation


def _unsuited_to_cuda(c_in: int, c_out: int, factor: int, keep_signs: bool) -> str | None:
    """Why the compiled ops do not support these channels, forward and backward, or None if they do."""
    multiple = compiled_ops.CHANNELS
    for name, channels, whole in (("Cout", c_out, factor == 2 or keep_signs), ("Cin", c_in, factor == 2)):
        if channels % multiple and (whole or channels > multiple):
            below = "" if whole else f" or less than {multiple}"
            return f"{name} must be a multiple of {multiple}{below}, was {channels},"
    return None


# "auto" selects the first that is available. An H200 measured Triton against the reference; counts (docs/kernels) are
# for the compiled ops on both architectures, but on 9.0 they wait for a measurement.
dispatch.register(
    NAME,
    {"reference": dispatch.everywhere, "triton": triton_support.why_not, "cuda": compiled_ops.why_not},
    dtypes={"triton": triton_support.DTYPES, "cuda": compiled_ops.DTYPES},
    rankings={
        8: dispatch.Ranking(("cuda", "reference", "triton"), measured=False),
        9: dispatch.Ranking(("triton", "reference", "cuda"), measured=True),
    },
)


# ------------------------------------------------------------------------------------------------------ Triton


def _forward_triton(
    x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float, out: Tensor, signs: Tensor
) -> None:
    """Write ``out``, and its signs if ``signs`` has elements."""
    from andfast.kernels.upsampled_convolution import kernels  # noqa: PLC0415  (imports Triton)

    packed = transposed_kernel(weight, factor).flatten(2).permute(2, 1, 0).contiguous()  # (taps, Cin, Cout)
    kernels.forward(x, packed, bias, slope, out, signs, factor=factor, tf32=triton_support.tf32_allowed())


def _backward_triton(
    grad: Tensor,
    saved: Tensor,
    x: Tensor | None,
    weight: Tensor,
    factor: int,
    slope: float,
    needs_grad: Sequence[bool],
    channels_last: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients to x, weight and bias; None for those not needed. ``saved`` as in :func:`backward_op`.

    With signs the gradient to the pre-activation is not materialized: the kernel applies them as it loads ``grad``. The
    gradient to weight is PyTorch's, which reads it as a tensor.
    """
    from andfast.kernels.upsampled_convolution import kernels  # noqa: PLC0415  (imports Triton)

    needs_x, needs_weight, needs_bias = needs_grad
    signs = saved if saved.dtype == torch.uint8 else saved.new_empty(0, dtype=torch.uint8)
    if signs.numel() and (needs_weight or needs_bias):
        raise ValueError(f"gradients to the weight and bias of {NAME} need the result, not its signs")
    if saved.dtype != torch.uint8:
        grad = torch.ops.aten.leaky_relu_backward(grad, saved, slope, False)
    grad_x = grad_weight = grad_bias = None
    if needs_x:
        grad_x = reference.empty_gradient_to_x(grad, weight, factor, channels_last)
        packed = transposed_kernel(weight, factor).flatten(2).permute(2, 0, 1).contiguous()  # (taps, Cout, Cin)
        kernels.grad_input(grad, signs, packed, slope, grad_x, factor=factor, tf32=triton_support.tf32_allowed())
    if needs_weight:
        if x is None:
            raise ValueError(f"the gradient to the weight of {NAME} needs x")
        _, grad_weight, _ = gradients(grad, x, weight, factor, [False, True, False])
    if needs_bias:
        grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(grad.dtype)
    return grad_x, grad_weight, grad_bias


# -------------------------------------------------------------------------------------------------------- CUDA


def _forward_cuda(
    x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float, keep_signs: bool
) -> tuple[Tensor, Tensor]:
    """Return out and its signs, see :func:`forward_op`."""
    packed = _OPS.convolution_pack(weight.contiguous(), bias.contiguous(), x.dtype, factor, False)
    out, signs = _OPS.convolution_forward(
        x, packed, weight.shape[0], factor, slope, None, 1.0, None, None, False, False, keep_signs
    )
    return compiled_ops.in_format(out, layout.memory_format(x)), signs


def _backward_cuda(
    grad: Tensor,
    saved: Tensor,
    x: Tensor | None,
    weight: Tensor,
    factor: int,
    slope: float,
    needs_grad: Sequence[bool],
    channels_last: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients to x, weight and bias; None for those not needed. ``saved`` as in :func:`backward_op`.

    The gradients to weight and bias are PyTorch's.
    """
    needs_x, needs_weight, needs_bias = needs_grad
    if saved.numel():
        grad = grad.contiguous(memory_format=torch.channels_last)
        if saved.dtype == torch.uint8:
            grad = _OPS.convolution_activation_backward(grad, saved, slope)
        else:
            grad = torch.ops.aten.leaky_relu_backward(grad, saved, slope, False)
    grad_x = grad_weight = grad_bias = None
    if needs_x:
        packed = _OPS.convolution_pack(weight.contiguous(), None, grad.dtype, factor, True)
        grad_x = _OPS.convolution_backward(grad, packed, weight.shape[1], factor, None, 1.0, False)
        grad_x = compiled_ops.in_format(grad_x, torch.channels_last if channels_last else torch.contiguous_format)
    if needs_weight:
        if x is None:
            raise ValueError(f"the gradient to the weight of {NAME} needs x")
        _, grad_weight, _ = gradients(grad, x, weight, factor, [False, True, False])
    if needs_bias:
        grad_bias = compiled_ops.bias_gradient(grad)
    return grad_x, grad_weight, grad_bias


# ------------------------------------------------- Registration: one forward and one backward op


@torch.library.custom_op("andfast::upsampled_convolution", mutates_args=())
def forward_op(
    x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float, keep_signs: bool, impl: str
) -> tuple[Tensor, Tensor]:
    """Return out, and its signs if ``keep_signs``, else an empty tensor; arguments are not validated.

    Signs are (N, factor * H, factor * W, ceil(Cout / 8)) bytes: bit c % 8 of byte c // 8 is set where channel c is
    positive; in CUDA 4 * ceil(Cout / 32) bytes. Without them backward reads the signs off out itself.
    """
    if impl == "cuda":
        return _forward_cuda(x, weight, bias, factor, slope, keep_signs)
    if impl == "triton":
        out = layout.empty(x, weight.shape[0], factor=factor)
        signs = x.new_empty(_signs_shape(x, weight, factor, keep_signs, impl), dtype=torch.uint8)
        _forward_triton(x, weight, bias, factor, slope, out, signs)
        return out, signs
    return reference.forward(x, weight, bias, factor, slope, keep_signs)


def _signs_shape(x: Tensor, weight: Tensor, factor: int, keep_signs: bool, impl: str) -> tuple[int, ...]:
    if not keep_signs:
        return (0,)
    n, _, height, width = x.shape
    channels = weight.shape[0]
    count = compiled_ops.sign_bytes(channels) if impl == "cuda" else -(-channels // SIGNS_PER_BYTE)
    return n, factor * height, factor * width, count


@forward_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, factor: int, slope: float, keep_signs: bool, impl: str
) -> tuple[Tensor, Tensor]:
    signs = x.new_empty(_signs_shape(x, weight, factor, keep_signs, impl), dtype=torch.uint8)
    return layout.empty(x, weight.shape[0], factor=factor), signs


_BACKWARD: Final = {"reference": reference.backward, "triton": _backward_triton, "cuda": _backward_cuda}


@torch.library.custom_op("andfast::upsampled_convolution_backward", mutates_args=())
def backward_op(
    grad: Tensor,
    saved: Tensor,
    x: Tensor | None,
    weight: Tensor,
    factor: int,
    slope: float,
    needs_grad: Sequence[bool],
    channels_last: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to x, weight and bias; empty tensors for those not needed.

    ``saved`` is the signs of out, out itself, or empty without an activation. ``x`` is needed for the gradient to
    weight only; ``channels_last`` is the memory format of the gradient to x.
    """
    implementation = _BACKWARD[impl]
    grad_x, grad_weight, grad_bias = implementation(grad, saved, x, weight, factor, slope, needs_grad, channels_last)
    # An op must return tensors, with the strides that the fake below promises.
    return (
        grad.new_empty(0) if grad_x is None else grad_x,
        grad.new_empty(0) if grad_weight is None else grad_weight.contiguous(),
        grad.new_empty(0) if grad_bias is None else grad_bias,
    )


@backward_op.register_fake
def _(
    grad: Tensor, saved: Tensor, x: Tensor | None, weight: Tensor, factor: int, slope: float, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needs_grad, channels_last, _impl = args
    return (
        reference.empty_gradient_to_x(grad, weight, factor, channels_last) if needs_grad[0] else grad.new_empty(0),
        weight.new_empty(weight.shape if needs_grad[1] else (0,)),
        weight.new_empty(weight.shape[0] if needs_grad[2] else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, ctx.factor, ctx.slope, keep_signs, ctx.impl = inputs
    out, signs = output
    ctx.mark_non_differentiable(signs)
    ctx.channels_last = layout.memory_format(x) == torch.channels_last
    saved = signs if keep_signs or ctx.slope == 1 else out
    ctx.save_for_backward(saved, x if ctx.needs_input_grad[1] else None, weight)


def _backward(ctx: Any, grad: Tensor, _grad_signs: Tensor | None) -> tuple[Any, ...]:
    needs_grad = list(ctx.needs_input_grad[:3])
    grads = backward_op(grad, *ctx.saved_tensors, ctx.factor, ctx.slope, needs_grad, ctx.channels_last, ctx.impl)
    return *(value if needed else None for value, needed in zip(grads, needs_grad, strict=True)), *(None,) * 4


forward_op.register_autograd(_backward, setup_context=_setup_context)


# -------------------------- Operation counts for torch.utils.flop_counter: two per multiply-accumulate

# Counts of the definition, the same for every implementation; with factor 2 the implementations need 4/9 of them.


@register_flop_formula(torch.ops.andfast.upsampled_convolution)
def _forward_operations(x_shape: Any, weight_shape: Any, _bias_shape: Any, factor: int, *_: Any, **_kwargs: Any) -> int:
    return 2 * TAPS * weight_shape[0] * weight_shape[1] * x_shape[0] * x_shape[2] * x_shape[3] * factor**2


@register_flop_formula(torch.ops.andfast.upsampled_convolution_backward)
def _backward_operations(
    grad_shape: Any, _saved_shape: Any, _x_shape: Any, weight_shape: Any, *args: Any, **_kwargs: Any
) -> int:
    _factor, _slope, needs_grad, *_ = args
    pixels = grad_shape[0] * grad_shape[2] * grad_shape[3]
    return 2 * TAPS * weight_shape[0] * weight_shape[1] * pixels * sum(needs_grad[:2])
