"""The degradation block: 3x3 convolution, LeakyReLU and noise injection, each image with weights of its own.

The basic block of the degradation network F (paper, section 3.1). For image n, output channel o and pixel p::

    z[n, o, p]   = sum over i, k of weight[n, o, i, k] * pad(x)[n, i, p + k]        (3x3 convolution, no bias)
    out[n, o, p] = (z if z > 0 else slope[n, o] * z) + noise[n, o, p]               (noise comes after the activation)

Slopes start at 1, where the block is linear, and the adversary moves them past 1 or below 0. So the sign of the output
does not tell the sign of z, and the forward pass keeps z, or its signs, for the backward pass. The slope's gradient
needs z where it is below 0, where it is (out - noise) / slope: no z is kept if no slope is near 0 (``smallest_slope``).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from andfast import checks
from andfast.functional import dispatch, layout
from andfast.functional import triton_support as _triton
from andfast.kernels.degradation_block import launch as _degradation_block_triton

OP = "degradation_block"
PADDINGS = ("replicate", "zeros")
_KERNEL = 3
_RECOVERED_FROM = 0.5
"""With slopes of at least this, z is recovered from the result: what that rounds is at most doubled by the division."""

dispatch.register(
    OP,
    {"triton": _triton.why_not, "reference": dispatch.everywhere},
    dtypes={"triton": _triton.DTYPES},
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
    """``leaky_relu(conv2d(pad(x), weight), slope) + noise``, with weights, slopes and noise of every image's own.

    Differentiable once in x, weight, slope and noise. Inside an autocast region x and weight are cast to its dtype
    (but for float64); slope and noise are read as they are.

    Args:
        x: images or features, (N, Cin, H, W), floating point, H and W at least 1.
        weight: (N, Cout, Cin, 3, 3), every image its own, or (Cout, Cin, 3, 3), shared; x's dtype.
        slope: the LeakyReLU's negative slope, any real number: a float, a scalar tensor, (N,), or (N, Cout).
        noise: added after the activation; None, (N, Cout, H, W), or (N, 1, H, W) for one map broadcast over channels.
        padding: "replicate" (default) or "zeros", one pixel on each side.
        smallest_slope: a lower bound of every abs(slope) that the caller vouches for; it is not checked, as the host
            would wait for the device. From 0.5 on a slope's gradient keeps no z, as large as the result, but the result
            itself and noise, which are mostly alive anyway: z is (out - noise) / slope. With a slope near 0 that
            gradient is then wrong. Where abs(noise) is much larger than abs(z) their digits cancel: z is as exact as
            the rounding of the result.
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
        x, weight = (one if one.dtype == torch.float64 else one.to(amp) for one in (x, weight))
    _check_arguments(x, weight, slope, noise, padding)
    checks.not_negative("smallest_slope", smallest_slope)
    chosen = dispatch.resolve(OP, impl, x.device.type, x.dtype)
    inputs = (x, weight, slope) if noise is None else (x, weight, slope, noise)
    save = torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
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


def degradation_block_reference(
    x: Tensor, weight: Tensor, slope: Tensor, noise: Tensor | None = None, padding: str = "replicate"
) -> Tensor:
    """The definition composed of differentiable PyTorch ops, one image at a time: the oracle of the tests."""
    mode = "replicate" if padding == "replicate" else "constant"
    padded = F.pad(x, (1, 1, 1, 1), mode=mode)
    kernels = weight if weight.dim() == 5 else weight.expand(x.shape[0], *weight.shape)
    z = torch.cat([F.conv2d(one[None], kernel) for one, kernel in zip(padded, kernels, strict=True)])
    out = torch.where(z > 0, z, z * _over_pixels(slope).to(z.dtype))
    return out if noise is None else out + noise.to(z.dtype)


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
    """Return the output, and if ``save`` what the backward pass needs of the activation.

    The reference keeps z, Triton its signs and z. Without ``save_z`` both keep the signs alone, the reference as
    booleans; a slope's gradient is then taken from the output, for slopes away from 0.
    """
    if impl == "triton":
        return _degradation_block_triton.forward(
            x, weight, slope, noise, padding, save, save_z, memory_format=layout.memory_format(x)
        )
    z = _convolve(x, weight, padding).to(x.dtype)
    # Half types are activated in fp32: the slope keeps its precision, and there is one rounding less.
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    out = torch.where(wide > 0, wide, wide * _over_pixels(slope).to(wide.dtype))
    if noise is not None:
        out = out + noise.to(out.dtype)
    memory_format = layout.memory_format(x)
    saved = z if save_z else z > 0
    return _in_format(out.to(x.dtype), memory_format), _in_format(saved, memory_format) if save else saved.new_empty(0)


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
        size = _degradation_block_triton.saved_shape(x, weight, save, save_z)
        return _empty(x, shape, x.dtype), x.new_empty(size, dtype=torch.uint8)
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
    wanted: Sequence[bool],
    impl: str,
    result: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients to x, weight, slope and noise; those not wanted are empty and cost nothing.

    ``result`` and ``noise`` are read for the slope's, where only signs were saved.
    """
    want_x, want_weight, want_slope, want_noise = wanted
    empty = [grad.new_empty(0) for _ in range(4)]
    grad_x, grad_weight, grad_slope, grad_noise = empty
    if impl == "triton":
        made = _degradation_block_triton.backward(
            grad,
            x,
            weight,
            slope,
            saved,
            noise_shape,
            noise_dtype,
            padding,
            wanted,
            layout.memory_format(x),
            result,
            noise,
        )
        grad_x, grad_weight, over, grad_noise = (
            none if one is None else one for one, none in zip(made, empty, strict=True)
        )
        return grad_x, grad_weight, _reduce_slope(over, slope) if want_slope else empty[2], grad_noise
    wide = torch.promote_types(grad.dtype, torch.float32)
    if want_noise:
        # A copy, as an op's result must not be one of its arguments, of strides that the fake below can foretell.
        grad_noise = _empty(x, noise_shape, noise_dtype).copy_(grad.sum_to_size(list(noise_shape)))
    negative = ~(saved > 0)
    if want_slope:
        z = saved
        if saved.dtype == torch.bool:
            if result is None:
                raise ValueError("the slope's gradient needs z or the result, and only signs were saved")
            z = result.to(wide) if noise is None else result.to(wide) - noise.to(wide)  # times the slope
        over_pixels = (torch.where(negative, z, 0).to(wide) * grad.to(wide)).sum((2, 3))
        if saved.dtype == torch.bool:
            over_pixels = over_pixels / slope.reshape(tuple(slope.shape) + (1,) * (2 - slope.dim())).to(wide)
        grad_slope = _reduce_slope(over_pixels, slope)
    if want_x or want_weight:
        grad_z = torch.where(negative, grad.to(wide) * _over_pixels(slope).to(wide), grad.to(wide)).to(x.dtype)
        grad_x, grad_weight = _convolve_backward(grad_z, x, weight, padding, want_x, want_weight, empty)
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
    wanted: Sequence[bool],
    impl: str,
    result: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    want_x, want_weight, want_slope, want_noise = wanted
    return (
        torch.empty_like(x, memory_format=layout.memory_format(x)) if want_x else grad.new_empty(0),
        weight.new_empty(weight.shape) if want_weight else grad.new_empty(0),
        slope.new_empty(slope.shape) if want_slope else grad.new_empty(0),
        _empty(x, noise_shape, noise_dtype) if want_noise else grad.new_empty(0),
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
    wanted = list(ctx.needs_input_grad[:4])
    noise_shape, noise_dtype = ctx.noise or ([0], grad.dtype)
    grad_noise = None
    if ctx.impl == "triton" and wanted[3] and noise_shape == list(grad.shape) and noise_dtype == grad.dtype:
        grad_noise, wanted[3] = grad, False  # they are equal: autograd may hand it on, where an op would have to copy
    grads = torch.ops.andfast.degradation_block_backward(
        grad, x, weight, slope, saved, noise_shape, noise_dtype, ctx.padding, wanted, ctx.impl, result, noise
    )
    grad_x, grad_weight, grad_slope, made = (one if want else None for one, want in zip(grads, wanted, strict=True))
    return grad_x, grad_weight, grad_slope, made if grad_noise is None else grad_noise, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


# ------------------------------------------------------------------------------------------- pieces of the reference


def _empty(x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of that shape in x's memory format."""
    return torch.empty(list(shape), dtype=dtype, device=x.device, memory_format=layout.memory_format(x))


def _in_format(value: Tensor, memory_format: torch.memory_format) -> Tensor:
    """The values in that format, with its strides also where a size of one leaves a stride free."""
    wanted = torch.empty(value.shape, device="meta", memory_format=memory_format).stride()
    if value.stride() == wanted:
        return value
    return torch.empty(value.shape, dtype=value.dtype, device=value.device, memory_format=memory_format).copy_(value)


def _over_pixels(slope: Tensor) -> Tensor:
    """Slopes (), (N,) or (N, C) shaped so that they broadcast over (N, C, H, W)."""
    return slope.reshape(tuple(slope.shape) + (1,) * (4 - slope.dim())) if slope.dim() else slope


def _reduce_slope(over_pixels: Tensor, slope: Tensor) -> Tensor:
    """Sum (N, C) contributions to the shape of slope: (), (N,) or (N, C)."""
    dims = list(range(slope.dim(), 2))
    return (over_pixels.sum(dims) if dims else over_pixels).to(slope.dtype)


def _computable(x: Tensor) -> Tensor:
    """Half types in fp32 on the CPU, where not every convolution, and no accurate one, exists for them."""
    half = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    return x.float() if half else x


def _pad(x: Tensor, padding: str) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="replicate" if padding == "replicate" else "constant")


def _convolve(x: Tensor, weight: Tensor, padding: str) -> Tensor:
    """3x3 convolution, stride 1, per-image weights as one grouped convolution."""
    n, c_in, height, width = x.shape
    c_out = weight.shape[-4]
    memory_format = layout.memory_format(x)
    if x.numel() == 0 or weight.numel() == 0:
        return x.new_zeros((n, c_out, height, width)).to(memory_format=memory_format)
    x, weight = _computable(x), _computable(weight)
    padded = _pad(x, padding)
    if weight.dim() == 4:
        z = F.conv2d(padded, weight)
    else:
        stacked = padded.reshape(1, n * c_in, height + 2, width + 2)
        z = F.conv2d(stacked, weight.reshape(n * c_out, c_in, _KERNEL, _KERNEL), groups=n)
        z = z.reshape(n, c_out, height, width)
    return z.contiguous(memory_format=memory_format)


def _convolve_backward(
    grad_z: Tensor,
    x: Tensor,
    weight: Tensor,
    padding: str,
    want_x: bool,
    want_weight: bool,
    empty: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`_convolve` to x and weight; one that is not wanted is not computed."""
    n, c_in, height, width = x.shape
    c_out = weight.shape[-4]
    dtype, memory_format = x.dtype, layout.memory_format(x)
    if x.numel() == 0 or weight.numel() == 0:
        no_x = torch.zeros_like(x, memory_format=memory_format) if want_x else empty[0]
        return no_x, weight.new_zeros(weight.shape) if want_weight else empty[1]
    grad_z, x, weight = _computable(grad_z), _computable(x), _computable(weight)
    padded = _pad(x, padding)
    groups, kernels, stacked = 1, weight, padded
    if weight.dim() == 5:
        groups = n
        kernels = weight.reshape(n * c_out, c_in, _KERNEL, _KERNEL)
        stacked = padded.reshape(1, n * c_in, height + 2, width + 2)
        grad_z = grad_z.reshape(1, n * c_out, height, width)
    one, none = [1, 1], [0, 0]
    grad_padded, grad_kernels, _ = torch.ops.aten.convolution_backward(
        grad_z, stacked, kernels, None, one, none, one, False, none, groups, [want_x, want_weight, False]
    )
    grad_x, grad_weight = empty[:2]
    if want_x:
        grad_padded = grad_padded.reshape(padded.shape)
        if padding == "replicate":  # folds the frame back onto the border pixels
            grad_x = torch.ops.aten.replication_pad2d_backward(grad_padded, x, [1, 1, 1, 1])
        else:
            grad_x = grad_padded[:, :, 1:-1, 1:-1]
        grad_x = grad_x.to(dtype, copy=True, memory_format=memory_format)
    if want_weight:
        grad_weight = _in_format(grad_kernels.reshape(weight.shape).to(dtype), torch.contiguous_format)
    return grad_x, grad_weight


# ------------------------------------------------------------------------------------------------- operation counts


def _macs(x_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one convolution: N * Cout * Cin * 9 * H * W."""
    n, _, height, width = x_shape
    return n * height * width * math.prod(weight_shape[-4:])


@register_flop_formula(torch.ops.andfast.degradation_block)
def _flops_forward(x_shape, weight_shape, *_args, **_kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * _macs(x_shape, weight_shape)


@register_flop_formula(torch.ops.andfast.degradation_block_backward)
def _flops_backward(_grad, x_shape, weight_shape, _slope, _saved, _ns, _nd, _padding, wanted, *_args, **_kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * _macs(x_shape, weight_shape) * sum(bool(one) for one in wanted[:2])
