"""Bicubic downscaling, the clean degradation of classical SR benchmarks."""

import torch.nn.functional as F
from torch import Tensor


def bicubic_downscale(x: Tensor, scale: int) -> Tensor:
    """Antialiased bicubic downscaling of (N, C, H, W) by an integer factor, not clamped.

    Keys' cubic with a = -0.5, stretched by the factor, pixel centers aligned: Pillow's BICUBIC and MATLAB's imresize
    inside the image.
    """
    return F.interpolate(x, scale_factor=1 / scale, mode="bicubic", align_corners=False, antialias=True)
