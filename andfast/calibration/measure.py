"""Measure all pairs of a listing: numbers per pair, quantiles over pairs, a table."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import torch

from andfast.calibration.fit import PairFit, fit_pair
from andfast.evaluation.layouts import Listing
from andfast.evaluation.pairs import Pair, estimate_shift, read_pair

MIN_PAIRS: Final = 3
"""Fewest registered pairs that quantiles are taken of."""
QUANTILES: Final = (0.1, 0.5, 0.9)
PARTS: Final = ("color", "kernel", "rest", "noise")
"""Parts of the ball that are measured; noise is that of flat places."""
_MAX_PSNR: Final = 200.0
_ROWS: Final = (
    ("LR against pooled HR, dB", "", None),
    ("  as it is", "psnr", 2),
    ("  after registration", "psnr_registered", 2),
    ("  after gain and offset", "psnr_affine", 2),
    ("  after the kernel too", "psnr_kernel", 2),
    ("  after the rest too", "psnr_rest", 2),
    ("size of each part, dB", "", None),
    ("  color: gain and offset", "psnr_of_color", 2),
    ("  kernel", "psnr_of_kernel", 2),
    ("  rest", "psnr_of_rest", 2),
    ("  noise in flat places", "psnr_of_noise", 2),
    ("the same in levels of 255, rms", "", None),
    ("  color: gain and offset", "color", 2),
    ("  kernel", "kernel", 2),
    ("  rest", "rest", 2),
    ("  noise in flat places", "noise_flat", 2),
    ("  noise in textured places", "noise_textured", 2),
    ("  noise everywhere", "noise", 2),
    ("details", "", None),
    ("  gain, red", "gain_red", 3),
    ("  gain, green", "gain_green", 3),
    ("  gain, blue", "gain_blue", 3),
    ("  offset, red, levels", "offset_red", 1),
    ("  offset, green, levels", "offset_green", 1),
    ("  offset, blue, levels", "offset_blue", 1),
    ("  kernel at 1/8 cycle per LR pixel", "kernel_eighth", 3),
    ("  kernel at 1/4 cycle per LR pixel", "kernel_quarter", 3),
    ("  shift of the pair, HR pixels", "shift", 2),
    ("  shift of blocks from it, HR pixels", "block_shift", 2),
)


def psnr(rms: float) -> float:
    """PSNR in dB of a root mean square difference in levels of 255; at most 200."""
    return min(20 * math.log10(255 / rms), _MAX_PSNR) if rms > 0 else _MAX_PSNR


@dataclass
class Measurements:
    """Measured pairs.

    Attributes:
        scale: HR size over LR size.
        pairs: {name: numbers}, see :func:`numbers_of`.
        kernels: {name: 7x7 kernel}.
        misregistered: {name: reason} of pairs left out because they are shifted.
        unusable: {name: reason} of pairs left out because they are too small or saturated.
    """

    scale: int
    pairs: dict[str, dict[str, float]] = field(default_factory=dict)
    kernels: dict[str, list[list[float]]] = field(default_factory=dict)
    misregistered: dict[str, str] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)

    @property
    def quantiles(self) -> dict[str, list[float]]:
        """The 10%, 50% and 90% quantiles over pairs, by name of the number."""
        names = next(iter(self.pairs.values()))
        at = torch.tensor(QUANTILES, dtype=torch.float64)
        return {
            name: torch.tensor([pair[name] for pair in self.pairs.values()], dtype=torch.float64).quantile(at).tolist()
            for name in names
        }

    def typical_pair(self) -> str:
        """Name of the pair whose PSNR after registration is nearest to the median."""
        middle = median(pair["psnr_registered"] for pair in self.pairs.values())
        return min(self.pairs, key=lambda name: abs(self.pairs[name]["psnr_registered"] - middle))

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "scale": self.scale,
            "quantiles": {"at": list(QUANTILES), **self.quantiles},
            "pairs": {name: {**numbers, "kernel_taps": self.kernels[name]} for name, numbers in self.pairs.items()},
            "misregistered": self.misregistered,
            "unusable": self.unusable,
        }


def fit_files(pair: Pair, scale: int) -> PairFit:
    """Fit a decoded pair; see :func:`andfast.calibration.fit.fit_pair`."""
    return fit_pair(pair.hr.double(), pair.lr.double(), scale, estimate_shift(pair, scale) or (0.0, 0.0))


def measure(listing: Listing, *, max_shift: float, modcrop: bool, report: Callable[[], None]) -> Measurements:
    """Measure the pairs of a listing, one at a time.

    Args:
        listing: readable pairs whose sizes fit.
        max_shift: HR pixels from which a pair is misregistered and left out.
        modcrop: see :func:`andfast.evaluation.pairs.read_pair`.
        report: called after each pair.

    Raises:
        ValueError: fewer than MIN_PAIRS pairs are left.
    """
    result = Measurements(listing.scale)
    for files in listing.pairs:
        pair = read_pair(files, listing.scale, modcrop=modcrop)
        try:
            fit = fit_files(pair, listing.scale)
        except ValueError as error:
            result.unusable[files.name] = str(error)
        else:
            if max(map(abs, fit.shift)) >= max_shift:
                result.misregistered[files.name] = (
                    f"LR is shifted relative to HR by {fit.shift[0]:+.2f} pixels down and {fit.shift[1]:+.2f} right "
                    f"(limit {max_shift:g})"
                )
            else:
                result.pairs[files.name] = numbers_of(fit)
                result.kernels[files.name] = fit.model.kernel.tolist()
        report()
    if len(result.pairs) < MIN_PAIRS:
        raise ValueError(
            f"at least {MIN_PAIRS} registered pairs are needed, were {len(result.pairs)} of {len(listing.pairs)}"
            + _reason(result)
        )
    return result


def _reason(result: Measurements) -> str:
    left_out = {**result.unusable, **result.misregistered}
    return "".join(f"; {name}: {reason}" for name, reason in list(left_out.items())[:1])


def numbers_of(fit: PairFit) -> dict[str, float]:
    """The numbers of a pair: PSNR in dB, sizes of parts in dB and levels, gain, offset, kernel and shift."""
    model, sizes = fit.model, fit.distances
    colors = ("red", "green", "blue")
    return {
        "psnr": psnr(fit.distance(fit.clean)),
        "psnr_registered": psnr(fit.distance(fit.registered)),
        "psnr_affine": psnr(fit.distance(fit.affine)),
        "psnr_kernel": psnr(fit.distance(fit.fitted)),
        "psnr_rest": psnr(fit.distance(fit.fitted_rest)),
        **{f"psnr_of_{part}": psnr(sizes[part]) for part in ("color", "kernel", "rest")},
        "psnr_of_noise": psnr(sizes["noise_flat"]),
        **sizes,
        **{f"gain_{color}": float(gain) for color, gain in zip(colors, model.gain, strict=True)},
        **{f"offset_{color}": float(offset) for color, offset in zip(colors, model.offset, strict=True)},
        "kernel_eighth": model.response(1 / 8),
        "kernel_quarter": model.response(1 / 4),
        "shift": math.hypot(*fit.shift),
        "shift_down": fit.shift[0],
        "shift_right": fit.shift[1],
        "block_shift": fit.block_shift,
    }


def table(quantiles: Mapping[str, Sequence[float]]) -> str:
    """Quantiles as text."""
    lines = [f"{'quantile over pairs':<38}" + "".join(f"{at:>9.0%}" for at in QUANTILES)]
    for title, name, decimals in _ROWS:
        values = "" if decimals is None else "".join(f"{value:>9.{decimals}f}" for value in quantiles[name])
        lines.append(f"{title:<38}{values}".rstrip())
    return "\n".join(lines)
