"""SSIM on the Y channel (Wang et al. 2004)."""

import math

import torch
from torch import Tensor

from andfast.metrics.color import PEAK, YRange, luma_pair

WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * PEAK) ** 2
_C2 = (0.03 * PEAK) ** 2


def ssim_y(
    sr: Tensor, hr: Tensor, *, crop_border: int = 0, y_range: YRange = "studio", rounded: bool = False
) -> Tensor:
    """Mean SSIM of the Y channel, per image.

    The authors' settings: 11 x 11 Gaussian window with sigma 1.5, K1 0.01, K2 0.03, L 255, population moments, valid
    windows only.

    Args:
        sr, hr: equal shapes, (N, 3, H, W) or (3, H, W), RGB, each uint8 or floating point in [0, 1]; at least
            11 pixels high and wide after cropping.
        crop_border, y_range, rounded: as for `psnr_y`.

    Returns:
        (N,), float64, on the inputs' device; (1,) for a single image.

    Raises:
        TypeError, ValueError: invalid images, mismatched shapes or devices.
    """
    a, b = luma_pair(sr, hr, crop_border=crop_border, y_range=y_range, rounded=rounded, min_size=WINDOW)
    maps = torch.stack((a, b, a * a, b * b, a * b))  # (5, N, 1, h, w)
    maps = _gaussian_filter(_gaussian_filter(maps, -2), -1)
    mean_a, mean_b, aa, bb, ab = maps.unbind()

    variance_a = aa - mean_a * mean_a
    variance_b = bb - mean_b * mean_b
    covariance = ab - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a * mean_a + mean_b * mean_b + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _gaussian_filter(maps: Tensor, axis: int) -> Tensor:
    """Gaussian-weighted mean over the valid windows along one axis, which shrinks by WINDOW - 1."""
    weights = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for i in range(WINDOW)]
    length = maps.shape[axis] - WINDOW + 1
    # A sum of shifted copies: float64 convolutions are several times slower on a CPU.
    total = maps.narrow(axis, 0, length) * (weights[0] / sum(weights))
    for shift in range(1, WINDOW):
        total.add_(maps.narrow(axis, shift, length), alpha=weights[shift] / sum(weights))
    return total
