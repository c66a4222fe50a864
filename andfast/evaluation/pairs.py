"""Reading pairs and validating them: sizes that match the scale, and no shift of a pixel or more."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from andfast.data.images import UnusableImageError, decode
from andfast.evaluation.layouts import PairFiles
from andfast.metrics import luma
from andfast.resize import bicubic_downscale, bicubic_upscale

SHIFT_ACCURACY = 0.1
"""Error of the shift estimate, in HR pixels."""
_MAX_WINDOW = 1024  # side of the central HR window that the shift is estimated on
_MAX_ERROR_RATIO = 0.95  # accept a shift only if undoing it reduces the squared error to less than this


class InvalidPairError(ValueError):
    """A pair that cannot be evaluated: mismatched or unreadable images. The message is one line."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A decoded pair.

    Attributes:
        hr: (3, H, W), uint8.
        lr: (3, H / scale, W / scale), uint8; the restorers' input.
        downscaled: LR was stored at HR size (RealSR versions 1 and 2) and has been downscaled by the scale.
        cropped: HR was cropped to a multiple of the scale, at the bottom and right.
    """

    hr: Tensor
    lr: Tensor
    downscaled: bool
    cropped: bool = False


def read_pair(files: PairFiles, scale: int, *, modcrop: bool = False) -> Pair:
    """Decode a pair.

    Args:
        files: the two files.
        scale: HR size over LR size.
        modcrop: crop HR to a multiple of the scale if LR has the rounded-down size. LR at HR size is always cropped.

    Raises:
        InvalidPairError: an image cannot be read, or HR has neither scale times LR's size nor LR's size.
    """
    hr, lr = (read_image(path, role) for path, role in ((files.hr, "HR"), (files.lr, "LR")))
    if hr.shape[1:] == tuple(scale * side for side in lr.shape[1:]):
        return Pair(hr, lr, downscaled=False)
    height, width = (side // scale * scale for side in hr.shape[1:])
    cropped = hr[:, :height, :width].contiguous()
    rounded_down = lr.shape[1:] == (height // scale, width // scale)
    if rounded_down and modcrop and min(height, width) > 0:
        return Pair(cropped, lr, downscaled=False, cropped=True)
    if hr.shape != lr.shape or min(hr.shape[1:]) < scale:
        hint = "; --modcrop crops HR" if rounded_down else ""
        raise InvalidPairError(
            f"HR must have {scale} times LR's size (or LR's size), was {hr.shape[2]}x{hr.shape[1]} "
            f"and {lr.shape[2]}x{lr.shape[1]}{hint}"
        )
    small = downscale(lr[:, :height, :width], scale)
    return Pair(cropped, small, downscaled=scale > 1, cropped=cropped.shape != hr.shape)


def read_image(path: Path, role: str) -> Tensor:
    """Decode a file to (3, H, W) uint8.

    Raises:
        InvalidPairError: it cannot be read; ``role`` ("HR", "LR" or a method's name) begins the message.
    """
    try:
        return torch.from_numpy(decode(path).transpose(2, 0, 1).copy())
    except UnusableImageError as error:
        raise InvalidPairError(f"{role} image {path.name} cannot be read: {error}") from error


def downscale(image: Tensor, scale: int) -> Tensor:
    """Downscale (3, H, W) uint8 by the scale: antialiased bicubic with a = -0.5, rounded to uint8."""
    small = bicubic_downscale(image[None].double() / 255, scale)
    return (small[0].clamp(0, 1) * 255).round().to(torch.uint8)


def estimate_shift(pair: Pair, scale: int) -> tuple[float, float] | None:
    """Shift (down, right) of LR's content relative to HR's, in HR pixels; None if it cannot be determined.

    Phase correlation of the Y channels of HR and bicubically upscaled LR, restricted to the frequencies that LR can
    hold, on the central window. Accurate to a tenth of a pixel on photographs. A shift of a pixel or more is accepted
    only if undoing it reduces the error: repetitive and featureless scenes have spurious peaks.
    """
    tall, wide = (min(side, _MAX_WINDOW // scale * scale) for side in pair.hr.shape[1:])
    top, left = ((side - cut) // 2 // scale * scale for side, cut in zip(pair.hr.shape[1:], (tall, wide), strict=True))
    hr = pair.hr[:, top : top + tall, left : left + wide]
    lr = pair.lr[:, top // scale : (top + tall) // scale, left // scale : (left + wide) // scale]
    a = luma(hr[None])[0, 0].numpy()
    b = luma(bicubic_upscale(lr[None], scale).clamp(0, 1))[0, 0].numpy()
    window = np.hanning(tall + 2)[1:-1, None] * np.hanning(wide + 2)[None, 1:-1]
    if min(a.std(), b.std()) < 0.5:
        return None

    spectrum = np.fft.rfft2((b - b.mean()) * window) * np.fft.rfft2((a - a.mean()) * window).conj()
    frequencies = np.hypot(np.fft.fftfreq(tall)[:, None], np.fft.rfftfreq(wide)[None])
    # A Gaussian that is small at LR's Nyquist frequency: smooth peak, little weight on frequencies only HR has.
    weight = np.exp(-0.5 * (frequencies * 4 * scale) ** 2)
    magnitude = np.abs(spectrum)
    correlation = np.fft.irfft2(spectrum / np.maximum(magnitude, 1e-9 * magnitude.max()) * weight, s=(tall, wide))
    row, column = (int(index) for index in np.unravel_index(correlation.argmax(), correlation.shape))
    down, right = _subpixel_peak(correlation[:, column], row), _subpixel_peak(correlation[row], column)
    if max(abs(down), abs(right)) >= 1 - SHIFT_ACCURACY and not _reduces_error(a, b, round(down), round(right)):
        return None
    return down, right


def check_shift(pair: Pair, scale: int, limit: float) -> None:
    """Raise if the images are shifted by ``limit`` HR pixels or more, allowing for the estimate's error.

    Raises:
        InvalidPairError: they are.
    """
    shift = estimate_shift(pair, scale)
    if shift is not None and max(map(abs, shift)) >= limit - SHIFT_ACCURACY:
        raise InvalidPairError(
            f"LR is shifted relative to HR by {shift[0]:+.1f} pixels down and {shift[1]:+.1f} right (limit {limit:g})"
        )


def _subpixel_peak(line: NDArray[np.float64], index: int) -> float:
    """Vertex of the parabola through a cyclic line's maximum and its neighbours, as a signed shift."""
    before, peak, after = (line[(index + step) % len(line)] for step in (-1, 0, 1))
    curvature = before - 2 * peak + after
    position = index + (0.5 * (before - after) / curvature if curvature < 0 else 0.0)
    return float(position - len(line) if position > len(line) / 2 else position)


def _reduces_error(a: NDArray[np.float64], b: NDArray[np.float64], down: int, right: int) -> bool:
    """Whether moving b back by the shift brings it closer to a."""
    tall, wide = a.shape
    if abs(down) > tall // 2 or abs(right) > wide // 2:
        return False
    rows, columns = slice(max(0, -down), tall - max(0, down)), slice(max(0, -right), wide - max(0, right))
    target = a[rows, columns]
    aligned = b[rows.start + down : rows.stop + down, columns.start + right : columns.stop + right]
    error, original = (float(((target - image) ** 2).mean()) for image in (aligned, b[rows, columns]))
    return error < _MAX_ERROR_RATIO * original
