"""Color shift of an upscaled image against its LR image, without HR: the difference of the mean colors.

Pooling SR to LR's size by its mean and averaging the difference over the pixels gives the difference of the means, so
neither image is held. Restoration should keep mean colors: a shift shows weights that tint.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LIMIT: Final = 2.0
"""Levels of 255 above which :meth:`ColorShift.warning` warns."""

_NAMES: Final = {1: ("grey",), 3: ("R", "G", "B")}
_ROWS: Final = 256  # converted to floating point at a time


class ColorShift:
    """Accumulates the rows of SR.

    Pixels are weighted by their alpha: hidden colors do not count.

    Args:
        lr: (H, W, C) uint8 or uint16 samples; C is 1, 2, 3 or 4, with alpha last if even.
    """

    def __init__(self, lr: NDArray[Any]) -> None:
        self._lr = _Mean()
        self._sr = _Mean()
        for start in range(0, len(lr), _ROWS):
            self._lr.add(lr[start : start + _ROWS])

    def add(self, rows: NDArray[Any]) -> None:
        """Add rows of SR, (n, W * scale, C), uint8 or uint16."""
        self._sr.add(rows)

    @property
    def levels(self) -> NDArray[np.float64]:
        """Mean of SR minus mean of LR per color channel, in levels of 255."""
        return self._sr.value() - self._lr.value()

    def warning(self) -> str | None:
        """A warning if a channel is shifted by more than :data:`LIMIT` levels, else None."""
        levels = self.levels
        if not np.abs(levels).max() > LIMIT:
            return None
        shifts = ", ".join(f"{name} {level:+.1f}" for name, level in zip(_NAMES[len(levels)], levels, strict=True))
        return f"the mean color is shifted by more than {LIMIT:g} of 255 levels: {shifts}"


class _Mean:
    """Alpha-weighted mean color in levels of 255."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | float = 0.0
        self._weight = 0.0

    def add(self, rows: NDArray[Any]) -> None:
        top = float(np.iinfo(rows.dtype).max)
        alpha = rows[..., -1:].astype(np.float64) / top if rows.shape[2] % 2 == 0 else None
        colors = rows if alpha is None else rows[..., :-1]
        total = colors.sum((0, 1), dtype=np.float64) if alpha is None else (colors * alpha).sum((0, 1))
        self._sum = self._sum + total * (255 / top)
        self._weight += rows.shape[0] * rows.shape[1] if alpha is None else float(alpha.sum())

    def value(self) -> NDArray[np.float64]:
        return np.asarray(self._sum) / max(self._weight, 1e-12)
