"""Bicubic resampling: Keys' cubic convolution with a = -0.5 and pixel centers aligned.

Equals Pillow's BICUBIC and MATLAB's imresize inside the image, without their rounding and clamping.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast import checks


def bicubic_upscale(x: Tensor, scale: int) -> Tensor:
    """Upscale (N, C, H, W), uint8 or floating point in [0, 1], to (N, C, H * scale, W * scale), fp32, not clamped.

    Raises:
        TypeError: ``x`` is not a tensor, or ``scale`` not an integer.
        ValueError: ``x`` does not have 4 dimensions, or ``scale`` is below 1.
    """
    _check(x, scale)
    # When upscaling, antialias=True only selects a = -0.5; PyTorch's default cubic has a = -0.75.
    return _interpolate(x.float() / 255 if x.dtype == torch.uint8 else x.float(), float(scale))


def bicubic_downscale(x: Tensor, scale: int) -> Tensor:
    """Downscale floating-point (N, C, H, W) by ``scale``, with the kernel stretched against aliasing; not clamped.

    The clean degradation of classical SR benchmarks. The dtype is that of ``x``.

    Raises:
        TypeError: ``x`` is not a floating-point tensor, or ``scale`` not an integer.
        ValueError: ``x`` does not have 4 dimensions, or ``scale`` is below 1.
    """
    _check(x, scale)
    checks.floating("x", x)
    return _interpolate(x, 1 / scale)


def cubic(distance: Tensor) -> Tensor:
    """Weight of a pixel at a distance in pixels, 0 or more; 0 from 2 on."""
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


def _interpolate(x: Tensor, factor: float) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False, antialias=True)


def _check(x: Tensor, scale: int) -> None:
    checks.tensor("x", x)
    checks.positive_int("scale", scale)
    if x.dim() != 4:
        raise ValueError(f"x must have shape (N, C, H, W), was {checks.shape(x)}")
