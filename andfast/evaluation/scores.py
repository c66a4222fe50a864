"""Metrics of one image, the paper's four (section 4.2) and two of color, under a protocol that every result states."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Final

from torch import Tensor

from andfast.inference.padding import MARGIN
from andfast.metrics import color_shift, protocol, psnr_rgb, psnr_y, ssim_y
from andfast.metrics.color import YRange
from andfast.metrics.lpips import LPIPS
from andfast.metrics.niqe import BLOCK, NIQE

METRICS: Final = ("psnr", "ssim", "psnr_rgb", "color_shift", "lpips", "niqe")
LABELS: Final = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "psnr_rgb": "PSNR-RGB",
    "color_shift": "SHIFT",
    "lpips": "LPIPS",
    "niqe": "NIQE",
}
HIGHER_IS_BETTER: Final = {
    "psnr": True,
    "ssim": True,
    "psnr_rgb": True,
    "color_shift": False,
    "lpips": False,
    "niqe": False,
}
DECIMALS: Final = {"psnr": 2, "ssim": 4, "psnr_rgb": 2, "color_shift": 2, "lpips": 4, "niqe": 3}

PROTOCOLS: Final[dict[str, tuple[YRange, bool]]] = {
    "studio": ("studio", False),
    "studio-rounded": ("studio", True),
    "full": ("full", False),
    "full-rounded": ("full", True),
}
"""Y range, and whether Y is rounded to integers, by protocol name."""


@dataclass(frozen=True)
class Score:
    """Metrics of one image.

    Attributes:
        name: of the pair.
        values: by metric; None if undefined.
        reasons: by metric, why it is undefined.
        color_offset: mean SR - HR of R, G and B in levels of 255, if "color_shift" is among the metrics.
    """

    name: str
    values: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    color_offset: list[float] | None = None


class Scorer:
    """Computes metrics of SR images under one protocol.

    Args:
        metrics: from METRICS.
        protocol: from PROTOCOLS.
        crop_border: pixels excluded on each side, in all metrics.
        lpips: required if "lpips" is among the metrics.
        niqe: required if "niqe" is.
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
        """The protocol as a JSON record."""
        record: dict[str, Any] = {
            "name": self.protocol,
            "y_range": self.y_range,
            "y_rounded": self.rounded,
            "y": f"BT.601, {'16 to 235' if self.y_range == 'studio' else '0 to 255'}, peak 255, float64",
            "lr_padding": f"{MARGIN} replicated LR pixels around the input of networks, cropped from SR",
            "sr": "clamped to [0, 1] and rounded to 8 bits",
            "crop_border": self.crop_border,
            "bicubic": "Keys' cubic, a = -0.5, pixel centres aligned",
        }
        if "ssim" in self.metrics:
            record["ssim"] = "11x11 Gaussian window, sigma 1.5, valid windows, K 0.01 and 0.03"
        if "psnr_rgb" in self.metrics:
            record["psnr_rgb"] = "R, G and B, peak 255, float64"
        if "color_shift" in self.metrics:
            record["color_shift"] = "largest absolute mean of SR - HR over R, G and B, in levels of 255"
        if self._lpips is not None:
            record["lpips"] = {"version": self._lpips.version, "net": self._lpips.net, "weights": self._lpips.weights}
        if self._niqe is not None:
            record["niqe"] = {
                "parameters": self._niqe.parameters.source,
                "block": BLOCK,
                "y_rounded": True,
                "y_range": self.y_range,
            }
        return record

    def summary(self) -> str:
        """The protocol in one line."""
        y = protocol(crop_border=self.crop_border, y_range=self.y_range, rounded=self.rounded)
        parts = [f"{y}, SR rounded to 8 bits"]
        if self._lpips is not None:
            parts.append(f"LPIPS v{self._lpips.version} ({self._lpips.net})")
        if self._niqe is not None:
            parts.append(f"NIQE with {self._niqe.parameters.source}, Y rounded")
        return "; ".join(parts)

    def score(self, name: str, sr: Tensor, hr: Tensor) -> Score:
        """Score one image, (3, H, W) uint8, against HR of the same size."""
        values: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for metric in self.metrics:
            compute: Callable[[Tensor, Tensor], float] = getattr(self, f"_{metric}_value")
            values[metric] = None
            try:
                value = compute(sr, hr)
            except ValueError as error:  # too small for this metric, or flat
                reasons[metric] = str(error)
            else:
                if math.isfinite(value):
                    values[metric] = value
                else:
                    reasons[metric] = "infinite: SR equals HR" if value > 0 else "not a number"
        offset = None
        if values.get("color_shift") is not None:
            offset = color_shift(sr, hr, crop_border=self.crop_border)[0].tolist()
        return Score(name, values, reasons, offset)

    def _psnr_value(self, sr: Tensor, hr: Tensor) -> float:
        return psnr_y(sr, hr, crop_border=self.crop_border, y_range=self.y_range, rounded=self.rounded).item()

    def _ssim_value(self, sr: Tensor, hr: Tensor) -> float:
        return ssim_y(sr, hr, crop_border=self.crop_border, y_range=self.y_range, rounded=self.rounded).item()

    def _psnr_rgb_value(self, sr: Tensor, hr: Tensor) -> float:
        return psnr_rgb(sr, hr, crop_border=self.crop_border).item()

    def _color_shift_value(self, sr: Tensor, hr: Tensor) -> float:
        return color_shift(sr, hr, crop_border=self.crop_border).abs().max().item()

    def _lpips_value(self, sr: Tensor, hr: Tensor) -> float:
        assert self._lpips is not None
        return self._lpips(sr, hr, crop_border=self.crop_border).item()

    def _niqe_value(self, sr: Tensor, hr: Tensor) -> float:
        assert self._niqe is not None
        return self._niqe(sr, crop_border=self.crop_border, y_range=self.y_range)


@dataclass(frozen=True)
class Summary:
    """Statistics over the images for which a metric is defined; ``left_out`` counts the others."""

    mean: dict[str, float | None]
    median: dict[str, float | None]
    left_out: dict[str, int]


def summarize(scores: Sequence[Score], metrics: Sequence[str]) -> Summary:
    """Mean and median of each metric over the images for which it is defined."""
    columns = {m: [v for score in scores if (v := score.values[m]) is not None] for m in metrics}
    return Summary(
        {m: fmean(column) if column else None for m, column in columns.items()},
        {m: median(column) if column else None for m, column in columns.items()},
        {m: len(scores) - len(column) for m, column in columns.items()},
    )
