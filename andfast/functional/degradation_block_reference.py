"""The degradation block in plain PyTorch: the definition, and the reference implementation of the op."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.functional import layout


def degradation_block_reference(
    x: Tensor, weight: Tensor, slope: Tensor, noise: Tensor | None = None, padding: str = "replicate"
) -> Tensor:
    """The definition composed of differentiable PyTorch ops, image by image: the oracle of the tests."""
    mode = "replicate" if padding == "replicate" else "constant"
    padded = F.pad(x, (1, 1, 1, 1), mode=mode)
    kernels = weight if weight.dim() == 5 else weight.expand(x.shape[0], *weight.shape)
    z = torch.cat([F.conv2d(image[None], kernel) for image, kernel in zip(padded, kernels, strict=True)])
    out = torch.where(z > 0, z, z * _over_pixels(slope).to(z.dtype))
    return out if noise is None else out + noise.to(z.dtype)


def forward(x: Tensor, weight: Tensor, slope: Tensor, noise: Tensor | None, padding: str) -> tuple[Tensor, Tensor]:
    """Return the output and the pre-activation z, both in x's dtype."""
    z = _convolve(x, weight, padding).to(x.dtype)
    # Half types are activated in fp32: the slope keeps its precision, and there is one rounding less.
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    out = torch.where(wide > 0, wide, wide * _over_pixels(slope).to(wide.dtype))
    if noise is not None:
        out = out + noise.to(out.dtype)
    return in_format(out.to(x.dtype), layout.memory_format(x)), z


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    saved: Tensor,
    *,
    padding: str,
    needs_input_grad: Sequence[bool],
    result: Tensor | None,
    noise: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients to x, weight and slope, None where not needed; ``saved`` is z, or z > 0."""
    need_x, need_weight, need_slope = needs_input_grad
    grad_x = grad_weight = grad_slope = None
    wide = torch.promote_types(grad.dtype, torch.float32)
    negative = ~(saved > 0)
    if need_slope:
        z = saved
        if saved.dtype == torch.bool:
            if result is None:
                raise ValueError("the slope's gradient needs z or the result, and only signs were saved")
            z = result.to(wide) if noise is None else result.to(wide) - noise.to(wide)  # times the slope
        over_pixels = (torch.where(negative, z, 0).to(wide) * grad.to(wide)).sum((2, 3))
        if saved.dtype == torch.bool:
            over_pixels = over_pixels / slope.reshape(tuple(slope.shape) + (1,) * (2 - slope.dim())).to(wide)
        grad_slope = reduce_slope(over_pixels, slope)
    if need_x or need_weight:
        grad_z = torch.where(negative, grad.to(wide) * _over_pixels(slope).to(wide), grad.to(wide)).to(x.dtype)
        grad_x, grad_weight = _convolve_backward(grad_z, x, weight, padding, need_x, need_weight)
    return grad_x, grad_weight, grad_slope


def in_format(value: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``value`` with exactly the strides of a new tensor in that format, also in dimensions of size 1."""
    strides = torch.empty(value.shape, device="meta", memory_format=memory_format).stride()
    if value.stride() == strides:
        return value
    return torch.empty(value.shape, dtype=value.dtype, device=value.device, memory_format=memory_format).copy_(value)


def _over_pixels(slope: Tensor) -> Tensor:
    """Slopes (), (N,) or (N, C), reshaped to broadcast over (N, C, H, W)."""
    return slope.reshape(tuple(slope.shape) + (1,) * (4 - slope.dim())) if slope.dim() else slope


def reduce_slope(over_pixels: Tensor, slope: Tensor) -> Tensor:
    """Sum (N, C) contributions to the shape of slope: (), (N,) or (N, C)."""
    dims = list(range(slope.dim(), 2))
    return (over_pixels.sum(dims) if dims else over_pixels).to(slope.dtype)


def _computable(x: Tensor) -> Tensor:
    """Half types in fp32 on the CPU, whose half-precision convolutions are incomplete and inaccurate."""
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
        z = F.conv2d(stacked, weight.reshape(n * c_out, c_in, 3, 3), groups=n)
        z = z.reshape(n, c_out, height, width)
    return z.contiguous(memory_format=memory_format)


def _convolve_backward(
    grad_z: Tensor,
    x: Tensor,
    weight: Tensor,
    padding: str,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`_convolve` to x and weight; None where not needed."""
    n, c_in, height, width = x.shape
    c_out = weight.shape[-4]
    dtype, memory_format = x.dtype, layout.memory_format(x)
    if x.numel() == 0 or weight.numel() == 0:
        zero_x = torch.zeros_like(x, memory_format=memory_format) if need_x else None
        return zero_x, weight.new_zeros(weight.shape) if need_weight else None
    grad_z, x, weight = _computable(grad_z), _computable(x), _computable(weight)
    padded = _pad(x, padding)
    groups, kernels, stacked = 1, weight, padded
    if weight.dim() == 5:
        groups = n
        kernels = weight.reshape(n * c_out, c_in, 3, 3)
        stacked = padded.reshape(1, n * c_in, height + 2, width + 2)
        grad_z = grad_z.reshape(1, n * c_out, height, width)
    grad_padded, grad_kernels, _ = torch.ops.aten.convolution_backward(
        grad_z, stacked, kernels, None, [1, 1], [0, 0], [1, 1], False, [0, 0], groups, [need_x, need_weight, False]
    )
    grad_x = grad_weight = None
    if need_x:
        grad_padded = grad_padded.reshape(padded.shape)
        if padding == "replicate":  # folds the padding back onto the border pixels
            grad_x = torch.ops.aten.replication_pad2d_backward(grad_padded, x, [1, 1, 1, 1])
        else:
            grad_x = grad_padded[:, :, 1:-1, 1:-1]
        grad_x = grad_x.to(dtype, copy=True, memory_format=memory_format)
    if need_weight:
        grad_weight = in_format(grad_kernels.reshape(weight.shape).to(dtype), torch.contiguous_format)
    return grad_x, grad_weight
