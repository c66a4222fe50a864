"""Radii for a wanted quality of LR, as decibels say better than norms of theta how far an adversary may go."""

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final, NamedTuple

from andfast.adversary.ball import GROUPS, Ball

_WIDEST: Final = 2.0**20  # factors beyond this one, or below its inverse, are not tried


class Calibration(NamedTuple):
    """A factor on radii and what it was found to do.

    Attributes:
        factor: on the radii.
        quality: at this factor, in the unit of the target.
        tried: every (factor, quality) that was looked at, by factor.
    """

    factor: float
    quality: float
    tried: tuple[tuple[float, float], ...]


def scaled(ball: Ball, factor: float, groups: Collection[str] = GROUPS) -> Ball:
    """A ball with the radii of these groups times ``factor``; the groups not named stay at their identity.

    Raises:
        ValueError: a group's name is unknown, or none is named.
    """
    unknown = [name for name in groups if name not in GROUPS]
    if unknown or not groups:
        raise ValueError(f"groups must be among {', '.join(GROUPS)}, were {', '.join(unknown) or 'none'}")
    convolution, noise, slope = (
        radius * factor if name in groups else 0.0 for name, radius in zip(GROUPS, ball.radii, strict=True)
    )
    return replace(ball, convolution=convolution, noise=noise, slope=slope)


def find_factor(
    quality: Callable[[float], float],
    target: float,
    *,
    tolerance: float = 0.1,
    most: int = 30,
    report: Callable[[float, float], None] = lambda factor, found: None,
) -> Calibration:
    """Bisect the logarithm of a factor on radii until the quality, which falls with it, meets a target.

    The factor 1 is looked at first, then factors away from it, each the last one's square or its root, until the target
    lies between two.

    Args:
        quality: of a factor, such as the mean LR PSNR in dB under an adversary whose radii are that much larger.
        target: the quality that is wanted.
        tolerance: how far from the target is near enough.
        most: how many factors are looked at, at most.
        report: is told every factor and its quality, for a progress bar.

    Raises:
        ValueError: no factor reaches the target, or the tolerance is not met in ``most`` tries; the text says what the
            nearest is.
    """
    if not (math.isfinite(target) and tolerance > 0):
        raise ValueError(f"target must be finite and tolerance above 0, were {target} and {tolerance}")
    tried: dict[float, float] = {}

    def off(factor: float) -> float:
        """How much too good the quality is; what is not a number counts as destroyed."""
        found = quality(factor)
        tried[factor] = found
        report(factor, found)
        return -math.inf if math.isnan(found) else found - target

    low, high = 1.0, 1.0
    difference = off(1.0)
    stride = 2.0
    grows = difference > 0
    while abs(difference) > tolerance and (difference > 0) == grows:
        if len(tried) >= most or not 1 / _WIDEST <= high * stride <= _WIDEST or not low / stride >= 1 / _WIDEST:
            raise ValueError(f"no factor on the radii gives {target:g}: {_nearest(tried, target)}")
        low, high = (high, high * stride) if grows else (low / stride, low)
        difference = off(high if grows else low)
        stride *= 1.5
    while abs(difference) > tolerance:
        if len(tried) >= most:
            raise ValueError(f"{target:g} was not met within {tolerance:g} in {most} tries: {_nearest(tried, target)}")
        middle = math.sqrt(low * high)
        difference = off(middle)
        low, high = (middle, high) if difference > 0 else (low, middle)
    factor = min(tried, key=lambda one: math.inf if math.isnan(tried[one]) else abs(tried[one] - target))
    return Calibration(factor, tried[factor], tuple(sorted(tried.items())))


def _nearest(tried: dict[float, float], target: float) -> str:
    known = {factor: found for factor, found in tried.items() if not math.isnan(found)}
    if not known:
        return "nothing but NaN was found"
    factor = min(known, key=lambda one: abs(known[one] - target))
    return f"the nearest is {known[factor]:.4g}, at radii times {factor:.4g}"
