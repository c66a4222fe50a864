"""The four metrics of the paper (section 4.2) on one picture, under a protocol that is stated with the result."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Final

from torch import Tensor

from andfast.metrics import psnr_y, ssim_y
from andfast.metrics.color import YRange
from andfast.metrics.lpips import LPIPS
from andfast.metrics.niqe import BLOCK, NIQE

METRICS: Final = ("psnr", "ssim", "lpips", "niqe")
HIGHER_IS_BETTER: Final = {"psnr": True, "ssim": True, "lpips": False, "niqe": False}
DECIMALS: Final = {"psnr": 2, "ssim": 4, "lpips": 4, "niqe": 3}

PROTOCOLS: Final[dict[str, tuple[YRange, bool]]] = {
    "studio": ("studio", False),
    "studio-rounded": ("studio", True),
    "full": ("full", False),
    "full-rounded": ("full", True),
}
"""Range of Y, and whether it is rounded to whole numbers, by name."""


@dataclass(frozen=True)
class Score:
    """One picture's values.

    Attributes:
        name: of the pair.
        values: by metric; None where it has none.
        reasons: why a metric has none.
    """

    name: str
    values: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)


class Judge:
    """Takes metrics of SR pictures.

    Args:
        metrics: of METRICS.
        protocol: of PROTOCOLS.
        crop_border: pixels that every metric leaves out on every side.
        lpips: where "lpips" is among the metrics.
        niqe: where "niqe" is.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        *,
        protocol: str = "studio",
        crop_border: int = 0,
        lpips: LPIPS | None = None,
        niqe: NIQE | None = None,
    ) -> None:
        self.metrics = tuple(metric for metric in METRICS if metric in metrics)
        self.protocol = protocol
        self.y_range, self.rounded = PROTOCOLS[protocol]
        self.crop_border = crop_border
        self._lpips = lpips
        self._niqe = niqe

    def describe(self) -> dict[str, Any]:
        """The protocol, for beside the results."""
        found: dict[str, Any] = {
            "name": self.protocol,
            "y_range": self.y_range,
            "y_rounded": self.rounded,
            "y": f"BT.601, {'16 to 235' if self.y_range == 'studio' else '0 to 255'}, peak 255, float64",
            "sr": "clamped to [0, 1] and rounded to 8 bits",
            "crop_border": self.crop_border,
            "bicubic": "Keys' cubic, a = -0.5, pixel centres aligned",
        }
        if "ssim" in self.metrics:
            found["ssim"] = "11x11 Gaussian window, sigma 1.5, valid windows, K 0.01 and 0.03"
        if self._lpips is not None:
            found["lpips"] = {"version": self._lpips.version, "net": self._lpips.net, "weights": self._lpips.weights}
        if self._niqe is not None:
            found["niqe"] = {
                "parameters": self._niqe.parameters.source,
                "block": BLOCK,
                "y_rounded": True,
                "y_range": self.y_range,
            }
        return found

    def sentence(self) -> str:
        """The protocol in one line."""
        y = f"Y of {self.y_range}-range BT.601, {'rounded' if self.rounded else 'unrounded'}"
        parts = [f"{y}, border {self.crop_border}, SR rounded to 8 bits"]
        if self._lpips is not None:
            parts.append(f"LPIPS v{self._lpips.version} ({self._lpips.net})")
        if self._niqe is not None:
            parts.append(f"NIQE with {self._niqe.parameters.source}, Y rounded")
        return "; ".join(parts)

    def score(self, name: str, sr: Tensor, hr: Tensor) -> Score:
        """Judge one picture, (3, H, W) uint8, against HR of its size."""
        values: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for metric in self.metrics:
            take: Callable[[Tensor, Tensor], float] = getattr(self, f"_take_{metric}")
            values[metric] = None
            try:
                value = take(sr, hr)
            except ValueError as error:  # too small for this metric, or flat
                reasons[metric] = str(error)
            else:
                if math.isfinite(value):
                    values[metric] = value
                else:
                    reasons[metric] = "infinite: SR equals HR" if value > 0 else "not a number"
        return Score(name, values, reasons)

    def _take_psnr(self, sr: Tensor, hr: Tensor) -> float:
        return psnr_y(sr, hr, crop_border=self.crop_border, y_range=self.y_range, rounded=self.rounded).item()

    def _take_ssim(self, sr: Tensor, hr: Tensor) -> float:
        return ssim_y(sr, hr, crop_border=self.crop_border, y_range=self.y_range, rounded=self.rounded).item()

    def _take_lpips(self, sr: Tensor, hr: Tensor) -> float:
        assert self._lpips is not None
        return self._lpips(sr, hr, crop_border=self.crop_border).item()

    def _take_niqe(self, sr: Tensor, hr: Tensor) -> float:
        assert self._niqe is not None
        return self._niqe(sr, crop_border=self.crop_border, y_range=self.y_range)


@dataclass(frozen=True)
class Summary:
    """A method's values over all pictures; what has no value is left out and counted."""

    mean: dict[str, float | None]
    median: dict[str, float | None]
    left_out: dict[str, int]


def summarise(scores: Sequence[Score], metrics: Sequence[str]) -> Summary:
    """Means and medians over the pictures that have a value."""
    columns = {m: [v for score in scores if (v := score.values[m]) is not None] for m in metrics}
    return Summary(
        {m: fmean(column) if column else None for m, column in columns.items()},
        {m: median(column) if column else None for m, column in columns.items()},
        {m: len(scores) - len(column) for m, column in columns.items()},
    )
