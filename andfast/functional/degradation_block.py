"""The degradation block: 3x3 convolution with per-image weights, LeakyReLU, and noise injection.

The basic block of the degradation network F (paper, section 3.1). For image n, output channel o and pixel p::

    z[n, o, p]   = sum over i, k of weight[n, o, i, k] * pad(x)[n, i, p + k]        (3x3 convolution, no bias)
    out[n, o, p] = (z if z > 0 else slope[n, o] * z) + noise[n, o, p]               (noise comes after the activation)

Slopes start at 1, where the block is linear, and the adversary may move them past 1 or below 0. So the sign of z cannot
be recovered from the output, and forward saves z, or its signs, for backward. The slope's gradient needs z only where
it is negative, where z = (out - noise) / slope: if no slope is near 0 (``smallest_slope``), z is not saved.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import degradation_block_reference as reference
from andfast.functional import dispatch, layout, triton_support
from andfast.kernels.degradation_block import saved as saved_buffer

OP = "degradation_block"
PADDINGS = ("replicate", "zeros")
_KERNEL = 3
_RECOVERED_FROM = 0.5
"""Slopes of at least this recover z from the result: the division at most doubles the rounding error."""

dispatch.register(
    OP,
    {"triton": triton_support.why_not, "reference": dispatch.everywhere},
    dtypes={"triton": triton_support.DTYPES},
    measured=(9,),
)


def degradation_block(
    x: Tensor,
    weight: Tensor,
    slope: Tensor | float,
    noise: Tensor | None = None,
    *,
    padding: str = "replicate",
    smallest_slope: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """``leaky_relu(conv2d(pad(x), weight), slope) + noise`` with per-image weights, slopes and noise.

    Differentiable once in x, weight, slope and noise. Under autocast, x and weight are cast to its dtype, except
    float64; slope and noise are not cast.

    Args:
        x: images or features, (N, Cin, H, W), floating point, H and W at least 1.
        weight: (N, Cout, Cin, 3, 3), per image, or (Cout, Cin, 3, 3), shared; x's dtype.
        slope: the LeakyReLU's negative slope, any real number: a float, a scalar tensor, (N,), or (N, Cout).
        noise: added after the activation; None, (N, Cout, H, W), or (N, 1, H, W) for one map broadcast over channels.
        padding: "replicate" (default) or "zeros", 1 pixel on each side.
        smallest_slope: a lower bound of every abs(slope), guaranteed by the caller; not checked, which would
            synchronize with the device. From 0.5, the slope's gradient saves the result and noise, which usually stay
            alive anyway, instead of z, and recovers z as (out - noise) / slope. If a slope is near 0 after all, its
            gradient is wrong. Where abs(noise) is much larger than abs(z), cancellation leaves z as exact as the
            rounding of the result.
        impl: "auto" or the name of an implementation, see :mod:`andfast.functional`.

    Returns:
        (N, Cout, H, W) of x's dtype and memory format.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit; the message names it.
        RuntimeError: ``impl`` asks for an implementation that is not available here.
    """
    checks.images("x", x)
    if not isinstance(slope, Tensor):
        if not isinstance(slope, int | float):
            raise TypeError(f"slope must be a number or a torch.Tensor, was {type(slope).__name__}")
        slope = torch.full((), slope, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    checks.tensor("weight", weight)
    amp = checks.autocast_dtype(x.device.type)
    if amp is not None:
        x, weight = layout.cast(x, amp), layout.cast(weight, amp)
    _check_arguments(x, weight, slope, noise, padding)
    checks.not_negative("smallest_slope", smallest_slope)
    chosen = dispatch.resolve(OP, impl, x.device.type, x.dtype)
    inputs = (x, weight, slope) if noise is None else (x, weight, slope, noise)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    save_z = slope.requires_grad and smallest_slope < _RECOVERED_FROM
    out: Tensor = torch.ops.andfast.degradation_block(x, weight, slope, noise, padding, save, chosen, save_z)[0]
    return out


def _check_arguments(x: Tensor, weight: Tensor, slope: Tensor, noise: Tensor | None, padding: str) -> None:
    n, c_in, height, width = x.shape
    checks.like("weight", weight, "x", x)
    ending = (c_in, _KERNEL, _KERNEL)
    per_image = weight.dim() == 5 and weight.shape[0] == n
    if tuple(weight.shape[-3:]) != ending or not (per_image or weight.dim() == 4):
        raise ValueError(
            f"weight must have shape (N, Cout, Cin, 3, 3) or (Cout, Cin, 3, 3), here ({n}, Cout, {c_in}, 3, 3) or "
            f"(Cout, {c_in}, 3, 3), was {checks.shape(weight)}"
        )
    if height < 1 or width < 1:
        raise ValueError(f"x must have H and W of at least 1, had shape {checks.shape(x)}")
    c_out = weight.shape[-4]
    checks.floating("slope", slope)
    checks.like("slope", slope, "x", x, dtype=False)
    checks.has_shape("slope", slope, (), (n,), (n, c_out), meaning="(), (N,) or (N, Cout)")
    if noise is not None:
        checks.images("noise", noise)
        checks.like("noise", noise, "x", x, dtype=False)
        allowed = ((n, c_out, height, width), (n, 1, height, width))
        checks.has_shape("noise", noise, *allowed, meaning="(N, Cout, H, W) or (N, 1, H, W)")
    checks.one_of("padding", padding, PADDINGS)


# ------------------------------------------------------------------------------------------------ the registered op


@torch.library.custom_op("andfast::degradation_block", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    noise: Tensor | None,
    padding: str,
    save: bool,
    impl: str,
    save_z: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the output, and if ``save``, what backward needs of z.

    The reference saves z, Triton its sign bits and z. Without ``save_z`` both save only signs, the reference as
    booleans; the slope's gradient is then computed from the output.
    """
    if impl == "triton":
        from andfast.kernels.degradation_block import forward as kernel  # noqa: PLC0415  (imports Triton)

        return kernel.forward(
            x,
            weight,
            slope,
            noise,
            replicate=padding == "replicate",
            save=saved_buffer.save_form(save, save_z),
            tf32=triton_support.tf32_allowed(),
            memory_format=layout.memory_format(x),
        )
    out, z = reference.forward(x, weight, slope, noise, padding)
    saved = z if save_z else z > 0
    return out, reference.in_format(saved, layout.memory_format(x)) if save else saved.new_empty(0)


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    noise: Tensor | None,
    padding: str,
    save: bool,
    impl: str,
    save_z: bool = True,
) -> tuple[Tensor, Tensor]:
    n, _, height, width = x.shape
    shape = (n, weight.shape[-4], height, width)
    if impl == "triton":
        form = saved_buffer.save_form(save, save_z)
        size = saved_buffer.saved_bytes(n * height * width, shape[1], x.element_size(), form)
        return _empty(x, shape, x.dtype), x.new_empty((size,), dtype=torch.uint8)
    dtype = x.dtype if save_z else torch.bool
    return _empty(x, shape, x.dtype), _empty(x, shape, dtype) if save else x.new_empty(0, dtype=dtype)


@torch.library.custom_op("andfast::degradation_block_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    saved: Tensor,
    noise_shape: Sequence[int],
    noise_dtype: torch.dtype,
    padding: str,
    needs_input_grad: Sequence[bool],
    impl: str,
    result: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients to x, weight, slope and noise; empty tensors where not needed.

    ``result`` and ``noise`` are read for the slope's gradient if only signs were saved.
    """
    need_x, need_weight, need_slope, need_noise = needs_input_grad
    grad_x: Tensor | None
    if impl == "triton":
        from andfast.kernels.degradation_block import backward as kernel  # noqa: PLC0415  (imports Triton)

        grad_x, grad_weight, over_pixels, grad_noise = kernel.backward(
            grad,
            x,
            weight,
            slope,
            saved,
            noise_shape=noise_shape,
            noise_dtype=noise_dtype,
            needs_input_grad=needs_input_grad,
            replicate=padding == "replicate",
            tf32=triton_support.tf32_allowed(),
            memory_format=layout.memory_format(x),
            result=result,
            noise=noise,
        )
        grad_slope = None if over_pixels is None else reference.reduce_slope(over_pixels, slope)
    else:
        needs = (need_x, need_weight, need_slope)
        grad_x, grad_weight, grad_slope = reference.backward(
            grad, x, weight, slope, saved, padding=padding, needs_input_grad=needs, result=result, noise=noise
        )
        grad_noise = None
        if need_noise:
            # A copy, as an op must not return its argument, with the strides of the fake implementation.
            grad_noise = _empty(x, noise_shape, noise_dtype).copy_(grad.sum_to_size(list(noise_shape)))
    grad_x, grad_weight, grad_slope, grad_noise = (
        grad.new_empty(0) if gradient is None else gradient
        for gradient in (grad_x, grad_weight, grad_slope, grad_noise)
    )
    return grad_x, grad_weight, grad_slope, grad_noise


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    saved: Tensor,
    noise_shape: Sequence[int],
    noise_dtype: torch.dtype,
    padding: str,
    needs_input_grad: Sequence[bool],
    impl: str,
    result: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_x, need_weight, need_slope, need_noise = needs_input_grad
    return (
        torch.empty_like(x, memory_format=layout.memory_format(x)) if need_x else grad.new_empty(0),
        weight.new_empty(weight.shape) if need_weight else grad.new_empty(0),
        slope.new_empty(slope.shape) if need_slope else grad.new_empty(0),
        _empty(x, noise_shape, noise_dtype) if need_noise else grad.new_empty(0),
    )


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, slope, noise, ctx.padding, _, ctx.impl, save_z = inputs
    ctx.noise = None if noise is None else (list(noise.shape), noise.dtype)
    recovers = ctx.needs_input_grad[2] and not save_z
    ctx.save_for_backward(x, weight, slope, output[1], *((output[0], noise) if recovers else (None, None)))
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, _grad_saved):  # type: ignore[no-untyped-def]
    if grad is None:
        return (None,) * 8
    x, weight, slope, saved, result, noise = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    noise_shape, noise_dtype = ctx.noise or ([0], grad.dtype)
    grad_noise = None
    if ctx.impl == "triton" and needs[3] and noise_shape == list(grad.shape) and noise_dtype == grad.dtype:
        grad_noise, needs[3] = grad, False  # equal; autograd may pass the tensor on, an op would have to copy it
    grads = torch.ops.andfast.degradation_block_backward(
        grad, x, weight, slope, saved, noise_shape, noise_dtype, ctx.padding, needs, ctx.impl, result, noise
    )
    grad_x, grad_weight, grad_slope, own = (dx if need else None for dx, need in zip(grads, needs, strict=True))
    return grad_x, grad_weight, grad_slope, own if grad_noise is None else grad_noise, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _empty(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialized tensor of that shape in x's memory format."""
    return torch.empty(list(shape), dtype=dtype, device=x.device, memory_format=layout.memory_format(x))


# ------------------------------------------------------------------------------------------------- operation counts


def _macs(x_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one convolution: N * Cout * Cin * 9 * H * W."""
    n, _, height, width = x_shape
    return n * height * width * math.prod(weight_shape[-4:])


@register_flop_formula(torch.ops.andfast.degradation_block)
def _flops_forward(x_shape, weight_shape, *_args, **_kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * _macs(x_shape, weight_shape)


@register_flop_formula(torch.ops.andfast.degradation_block_backward)
def _flops_backward(_grad, x_shape, weight_shape, _slope, _saved, _ns, _nd, _padding, needs, *_args, **_kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * _macs(x_shape, weight_shape) * sum(map(bool, needs[:2]))
