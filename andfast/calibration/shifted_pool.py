"""Clean LR of HR that is shifted by parts of a pixel: HR interpolated and pooled in one pass."""

import math
from typing import Final

import torch
from torch import Tensor

from andfast.functional.blur_pool import binomial_taps

_REACH: Final = 6  # HR pixels on either side that the interpolation reads
_BETA: Final = 8.0  # of the Kaiser window
_DIFFERENCE: Final = 1e-3  # HR pixels, of the central difference


def shifted_pool(
    hr: Tensor, scale: int, shift: tuple[float, float], rows: tuple[int, int], columns: tuple[int, int]
) -> Tensor:
    """A window of ``blur_pool(hr, scale)``, its content shifted, and its derivatives with respect to the shift.

    Interpolation is a sinc within a Kaiser window over 12 pixels; pooling removes the frequencies near HR's Nyquist
    that it would change. Beyond its border HR is reflected, so a window may leave the image.

    Args:
        hr: (C, H, W), float64.
        scale: of the pooling.
        shift: (down, right) of the content, in HR pixels.
        rows, columns: the window, (start, stop) in LR pixels.

    Returns:
        (3, C, rows, columns), float64: the window, its derivative with respect to down, and to right.
    """
    (down, down_slope, top), (right, right_slope, left) = (_taps(scale, side) for side in shift)
    y = _indices(hr.shape[1], scale, rows, top, len(down), hr.device)
    x = _indices(hr.shape[2], scale, columns, left, len(right), hr.device)
    part = hr[:, y][:, :, x]
    rows_matrix, rows_slope = (_banded(taps, scale, rows) for taps in (down, down_slope))
    columns_matrix, columns_slope = (_banded(taps, scale, columns).T for taps in (right, right_slope))
    tall = rows_matrix @ part
    return torch.stack([tall @ columns_matrix, rows_slope @ part @ columns_matrix, tall @ columns_slope])


def _banded(taps: Tensor, scale: int, window: tuple[int, int]) -> Tensor:
    """Filtering and subsampling by the scale as a matrix: a row per LR pixel."""
    count = window[1] - window[0]
    matrix = torch.zeros(count, scale * (count - 1) + len(taps), dtype=taps.dtype)
    columns = scale * torch.arange(count)[:, None] + torch.arange(len(taps))
    return matrix.scatter_(1, columns, taps.expand(count, -1))


def _taps(scale: int, shift: float) -> tuple[Tensor, Tensor, int]:
    """Taps of pooling and interpolation, their derivative to the shift, and the first one's HR index for LR pixel 0."""
    pool = torch.tensor(binomial_taps(scale), dtype=torch.float64)
    whole = math.floor(-shift)
    fraction = -shift - whole
    before, here, after = (
        torch.nn.functional.conv1d(
            pool[None, None], _interpolation(fraction + step).flip(0)[None, None], padding=2 * _REACH - 1
        )[0, 0]
        for step in (-_DIFFERENCE, 0.0, _DIFFERENCE)
    )
    first = -((len(pool) - scale) // 2) + whole - (_REACH - 1)
    return here, (before - after) / (2 * _DIFFERENCE), first


def _interpolation(fraction: float) -> Tensor:
    """Weights of the pixels from 1 - _REACH to _REACH for the value at ``fraction``; they sum to 1."""
    u = torch.arange(1 - _REACH, _REACH + 1, dtype=torch.float64) - fraction
    window = torch.special.i0(_BETA * (1 - (u / _REACH).square()).clamp_min(0).sqrt())
    weights = torch.sinc(u) * torch.where(u.abs() <= _REACH, window, 0)
    return weights / weights.sum()


def _indices(size: int, scale: int, window: tuple[int, int], first: int, taps: int, device: torch.device) -> Tensor:
    """HR indices that a window reads, reflected into the image."""
    start, stop = window
    index = torch.arange(scale * start + first, scale * (stop - 1) + first + taps, device=device)
    period = max(2 * (size - 1), 1)
    index = index % period
    return torch.minimum(index, period - index) if size > 1 else index * 0
