"""Reading a pair, and whether it is one: sizes that fit the scale, and no shift of a pixel or more."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from andfast.data.images import UnusableImageError, decode
from andfast.evaluation.layouts import PairFiles
from andfast.metrics import luma
from andfast.training.validation import bicubic

_LARGEST_WINDOW = 1024  # HR pixels of the middle that the shift is estimated on
ACCURACY = 0.1
"""HR pixels that the estimate of a shift may be off."""
_GAIN = 0.95  # a shift is one if undoing it leaves less than this part of the squared error


class UnfitPairError(ValueError):
    """Two pictures that are no pair, or a picture that cannot be read; the message is the reason, in one line."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A pair as it is judged.

    Attributes:
        hr: (3, H, W), uint8.
        lr: (3, H/scale, W/scale), uint8, what restorers are given.
        reduced: LR came in HR's size (RealSR versions 1 and 2) and was reduced by the scale here; HR lost the
            rows and columns beyond a multiple of the scale.
    """

    hr: Tensor
    lr: Tensor
    reduced: bool


def read_pair(files: PairFiles, scale: int) -> Pair:
    """Decode a pair.

    Raises:
        UnfitPairError: a picture cannot be read, or HR is neither scale times LR's size nor of LR's size.
    """
    hr, lr = (read_picture(path, role) for path, role in ((files.hr, "HR"), (files.lr, "LR")))
    if hr.shape[1:] == tuple(scale * side for side in lr.shape[1:]):
        return Pair(hr, lr, reduced=False)
    if hr.shape != lr.shape or min(hr.shape[1:]) < scale:
        raise UnfitPairError(
            f"HR must be {scale} times LR's size (or of its size), was {hr.shape[2]}x{hr.shape[1]} "
            f"and {lr.shape[2]}x{lr.shape[1]}"
        )
    height, width = (side // scale * scale for side in hr.shape[1:])
    return Pair(hr[:, :height, :width].contiguous(), reduce(lr[:, :height, :width], scale), reduced=scale > 1)


def read_picture(path: Path, role: str) -> Tensor:
    """(3, H, W) uint8, or UnfitPairError."""
    try:
        return torch.from_numpy(decode(path).transpose(2, 0, 1).copy())
    except UnusableImageError as error:
        raise UnfitPairError(f"{role} picture {path.name} cannot be used: {error}") from error


def reduce(picture: Tensor, scale: int) -> Tensor:
    """A (3, H, W) uint8 picture reduced by the scale, antialiased bicubic with a = -0.5, rounded to uint8."""
    small = F.interpolate(
        picture[None].double() / 255, scale_factor=1 / scale, mode="bicubic", align_corners=False, antialias=True
    )
    return (small[0].clamp(0, 1) * 255).round().to(torch.uint8)


def shift_of(pair: Pair, scale: int) -> tuple[float, float] | None:
    """How far LR's content lies below and to the right of HR's, in HR pixels; None where nothing tells.

    Phase correlation of Y of HR and of LR, bicubically enlarged, over the frequencies that LR can hold, on the middle
    of the pictures; good to a tenth of a pixel on photographs. A shift of a pixel or more is believed only if undoing
    it brings the pictures closer: repetitive and featureless scenes have peaks anywhere.
    """
    tall, wide = (min(side, _LARGEST_WINDOW // scale * scale) for side in pair.hr.shape[1:])
    top, left = ((side - cut) // 2 // scale * scale for side, cut in zip(pair.hr.shape[1:], (tall, wide), strict=True))
    hr = pair.hr[:, top : top + tall, left : left + wide]
    lr = pair.lr[:, top // scale : (top + tall) // scale, left // scale : (left + wide) // scale]
    a = luma(hr[None])[0, 0].numpy()
    b = luma(bicubic(lr[None], scale))[0, 0].numpy()
    window = np.hanning(tall + 2)[1:-1, None] * np.hanning(wide + 2)[None, 1:-1]
    if min(a.std(), b.std()) < 0.5:
        return None

    spectrum = np.fft.rfft2((b - b.mean()) * window) * np.fft.rfft2((a - a.mean()) * window).conj()
    frequencies = np.hypot(np.fft.fftfreq(tall)[:, None], np.fft.rfftfreq(wide)[None])
    # A Gaussian that is small at LR's Nyquist frequency: a smooth peak, little weight to what only HR has.
    weight = np.exp(-0.5 * (frequencies * 4 * scale) ** 2)
    magnitude = np.abs(spectrum)
    peak = np.fft.irfft2(spectrum / np.maximum(magnitude, 1e-9 * magnitude.max()) * weight, s=(tall, wide))
    row, column = (int(place) for place in np.unravel_index(peak.argmax(), peak.shape))
    found = tuple(_refined(line, at) for line, at in ((peak[:, column], row), (peak[row], column)))
    if max(map(abs, found)) >= 1 - ACCURACY and not _closer(a, b, round(found[0]), round(found[1])):
        return None
    return found[0], found[1]


def check_shift(pair: Pair, scale: int, limit: float) -> None:
    """Refuse a pair whose pictures are shifted by `limit` HR pixels or more, less the estimate's own error.

    Raises:
        UnfitPairError: it is.
    """
    shift = shift_of(pair, scale)
    if shift is not None and max(map(abs, shift)) >= limit - ACCURACY:
        raise UnfitPairError(
            f"LR is shifted against HR by {shift[0]:+.1f} pixels down and {shift[1]:+.1f} right (limit {limit:g})"
        )


def _refined(line: NDArray[np.float64], at: int) -> float:
    """The top of the parabola through a cyclic line's largest entry and its neighbours, as a signed shift."""
    before, top, after = (line[(at + step) % len(line)] for step in (-1, 0, 1))
    bend = before - 2 * top + after
    place = at + (0.5 * (before - after) / bend if bend < 0 else 0.0)
    return float(place - len(line) if place > len(line) / 2 else place)


def _closer(a: NDArray[np.float64], b: NDArray[np.float64], down: int, right: int) -> bool:
    """Whether b is closer to a once it is moved back by that much."""
    tall, wide = a.shape
    if abs(down) > tall // 2 or abs(right) > wide // 2:
        return False
    rows, columns = slice(max(0, -down), tall - max(0, down)), slice(max(0, -right), wide - max(0, right))
    there = a[rows, columns]
    moved = b[rows.start + down : rows.stop + down, columns.start + right : columns.stop + right]
    return float(((there - moved) ** 2).mean()) < _GAIN * float(((there - b[rows, columns]) ** 2).mean())
