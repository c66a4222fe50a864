"""Radii for a target quality of LR: decibels describe the strength of an attack better than norms of theta."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import torch
from torch import Tensor

from andfast.adversary.attack import Attack
from andfast.adversary.ball import Ball
from andfast.metrics.psnr import mean_psnr
from andfast.nn import Theta

_WIDEST: Final = 2.0**20  # factors above it, or below its inverse, are not tried


class Calibration(NamedTuple):
    """Result of :func:`find_factor`.

    Attributes:
        factor: of the radii.
        quality: at this factor, in the unit of the target.
        tried: all (factor, quality) evaluated, sorted by factor.
    """

    factor: float
    quality: float
    tried: tuple[tuple[float, float], ...]


class AttackedImage(NamedTuple):
    """An image and the identity network that the attack on it starts from.

    Attributes:
        hr: (1, 3, H, W) in [0, 1].
        identity: one network for it, see :meth:`andfast.adversary.Attack.sample`.
    """

    hr: Tensor
    identity: Theta


def attacked_lr_psnr(attack: Attack, images: Sequence[AttackedImage], ball: Ball) -> float:
    """Mean PSNR in dB of attacked LR against clean LR; radii are not multiplied by factors per image.

    Args:
        attack: its own ball is not read.
        images: attacked one after the other.
        ball: for HR of the attack's ``patch_size``.
    """
    qualities = []
    for hr, identity in images:
        settings = replace(attack.settings, ball=ball).for_size(hr.shape[2], hr.shape[3])
        theta = replace(attack, settings=settings).search(hr, identity)[1].theta
        qualities.append(mean_psnr(*attack.degrade(hr, theta)))
    return float(torch.stack(qualities).mean())


def calibrate(
    attack: Attack,
    images: Sequence[AttackedImage],
    target: float,
    groups: Collection[str] | None = None,
    *,
    tolerance: float = 0.1,
    report: Callable[[float, float], None] = lambda factor, lr_psnr: None,
) -> tuple[Ball, Calibration]:
    """Radii at ``patch_size`` under which the attack takes LR to a PSNR, on average over images.

    Args:
        attack: the radii to scale are those of its ball.
        images: to average over.
        target: dB against the clean LR.
        groups: names of the radii that count (None: all); the others are 0.
        tolerance: dB.
        report: called with every factor and its PSNR.

    Returns:
        The attack's ball with these groups' radii times the resulting factor, and that factor.

    Raises:
        ValueError: no factor gives this PSNR, or a group's name is unknown.
    """
    ball = attack.settings.ball

    def quality(factor: float) -> float:
        return attacked_lr_psnr(attack, images, scaled(ball, factor, groups))

    calibration = find_factor(quality, target, tolerance=tolerance, report=report)
    return scaled(ball, calibration.factor, groups), calibration


def scaled(ball: Ball, factor: float, groups: Collection[str] | None = None) -> Ball:
    """A ball with the radii of ``groups`` (None: all) times ``factor``, and radius 0 for the other groups.

    Raises:
        ValueError: ``groups`` is empty or has an unknown name.
    """
    groups = ball.names if groups is None else groups
    unknown = [name for name in groups if name not in ball.names]
    if unknown or not groups:
        raise ValueError(f"groups must be among {', '.join(ball.names)}, were {', '.join(unknown) or 'none'}")
    radii = zip(ball.names, ball.radii, strict=True)
    return ball.with_radii({name: radius * factor if name in groups else 0.0 for name, radius in radii})


def find_factor(
    quality: Callable[[float], float],
    target: float,
    *,
    tolerance: float = 0.1,
    max_tries: int = 30,
    report: Callable[[float, float], None] = lambda factor, quality: None,
) -> Calibration:
    """Bisect the logarithm of a factor of the radii until the quality, which decreases with it, meets a target.

    Starts at factor 1 and moves away from it with growing strides until the target is bracketed.

    Args:
        quality: as a function of the factor, such as the mean LR PSNR in dB under an attack with these radii.
        target: quality to reach.
        tolerance: largest accepted distance from the target.
        max_tries: largest number of factors to evaluate.
        report: called with each factor and its quality, for a progress bar.

    Raises:
        ValueError: no factor reaches the target, or not within ``max_tries``; the message has the nearest quality.
    """
    if not (math.isfinite(target) and tolerance > 0):
        raise ValueError(f"target must be finite and tolerance above 0, were {target} and {tolerance}")
    tried: dict[float, float] = {}

    def excess(factor: float) -> float:
        """Quality above the target; NaN counts as the worst quality."""
        value = quality(factor)
        tried[factor] = value
        report(factor, value)
        return -math.inf if math.isnan(value) else value - target

    low, high = 1.0, 1.0
    difference = excess(1.0)
    stride = 2.0
    grows = difference > 0
    while abs(difference) > tolerance and (difference > 0) == grows:
        if len(tried) >= max_tries or not 1 / _WIDEST <= high * stride <= _WIDEST or not low / stride >= 1 / _WIDEST:
            raise ValueError(f"no factor on the radii gives {target:g}: {_nearest(tried, target)}")
        low, high = (high, high * stride) if grows else (low / stride, low)
        difference = excess(high if grows else low)
        stride *= 1.5
    while abs(difference) > tolerance:
        if len(tried) >= max_tries:
            raise ValueError(
                f"{target:g} was not met within {tolerance:g} in {max_tries} tries: {_nearest(tried, target)}"
            )
        middle = math.sqrt(low * high)
        difference = excess(middle)
        low, high = (middle, high) if difference > 0 else (low, middle)
    factor = min(tried, key=lambda tried_factor: _distance(tried[tried_factor], target))
    return Calibration(factor, tried[factor], tuple(sorted(tried.items())))


def _nearest(tried: dict[float, float], target: float) -> str:
    factor, value = min(tried.items(), key=lambda item: _distance(item[1], target))
    if math.isnan(value):
        return "all qualities were NaN"
    return f"the nearest is {value:.4g}, at radii times {factor:.4g}"


def _distance(value: float, target: float) -> float:
    return math.inf if math.isnan(value) else abs(value - target)
