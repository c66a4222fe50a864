"""Radii of the ball's parts for which the attack on a G takes LR as far as real LR is."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from andfast.adversary import Attack, Ball, ConvolutionRadii, seeded_generator
from andfast.adversary.calibration import AttackedImage, attacked_lr_psnr, calibrate
from andfast.calibration.measure import PARTS

NEGLIGIBLE: Final = 20 * math.log10(255 * math.sqrt(12))
"""dB of rounding LR to 8 bits, 58.9: a part that is no larger gets radius 0."""
TOLERANCE: Final = 0.2
"""dB."""
_FIRST_COLOR: Final = 0.0006
"""Radius of color that the search starts from where the ball's is 0."""
_SEED: Final = 2**30 + 1  # a step that no training reaches


@dataclass(frozen=True)
class PartRadius:
    """The radius of a part.

    Attributes:
        radius: at the attack's patch size; 0 where the part is negligible.
        target: dB, the median over pairs.
        lr_psnr: dB that the attack with this part alone reaches; None where it is negligible.
    """

    radius: float
    target: float
    lr_psnr: float | None


def check_ball(ball: Ball) -> None:
    """Check that a ball has a radius for each part to start from; color has a start of its own.

    Raises:
        ValueError: it has no parts, or one is empty.
    """
    if not isinstance(ball.convolution, ConvolutionRadii):
        raise ValueError(
            f"adversary.preset must be 'symmetric', whose ball has {', '.join(PARTS)}, had {', '.join(ball.names)}"
        )
    for name, radius in zip(ball.names, ball.radii, strict=True):
        if name in PARTS and name != "color" and radius == 0:
            raise ValueError(f"adversary.radius_{name} must be above 0, where the search starts, was 0")


def attacked_images(attack: Attack, images: Sequence[Tensor], seed: int) -> list[AttackedImage]:
    """Draw an identity network for each image (1, 3, H, W)."""
    result = []
    for number, hr in enumerate(images):
        generator = seeded_generator(hr.device, seed, number, _SEED)
        result.append(AttackedImage(hr, attack.sample(hr, generator)))
    return result


def find_radii(
    attack: Attack,
    images: Sequence[AttackedImage],
    targets: Mapping[str, float],
    report: Callable[[str, float, float], None],
) -> tuple[Ball, dict[str, PartRadius]]:
    """Find the radius of each part, alone; the slope's stays.

    Args:
        attack: its ball has parts, see :func:`check_ball`.
        images: to average over.
        targets: dB of each part of PARTS.
        report: called with a part, a factor on its radius and the LR PSNR.

    Raises:
        ValueError: no radius gives a part's target.
    """
    ball = attack.settings.ball
    assert isinstance(ball.convolution, ConvolutionRadii)
    start = ball if ball.convolution.color else ball.with_radii({"color": _FIRST_COLOR})
    attack = replace(attack, settings=replace(attack.settings, ball=start))
    radii: dict[str, PartRadius] = {}
    for part in PARTS:
        target = targets[part]
        if target >= NEGLIGIBLE:
            radii[part] = PartRadius(0.0, target, None)
            continue
        try:
            reached, calibration = calibrate(
                attack,
                images,
                target,
                [part],
                tolerance=TOLERANCE,
                report=lambda factor, lr_psnr, part=part: report(part, factor, lr_psnr),  # type: ignore[misc]
            )
        except ValueError as error:
            raise ValueError(f"radius of {part}: {error}") from error
        radius = dict(zip(reached.names, reached.radii, strict=True))[part]
        radii[part] = PartRadius(radius, target, calibration.quality)
    return ball.with_radii({name: part_radius.radius for name, part_radius in radii.items()}), radii


def record(attack: Attack, ball: Ball, radii: Mapping[str, PartRadius], together: float) -> dict[str, Any]:
    """For JSON."""
    return {
        "radii": dict(zip(ball.names, ball.radii, strict=True)),
        "patch_size": attack.settings.patch_size,
        "channels": attack.settings.channels,
        "steps": attack.settings.steps,
        "step_size": attack.settings.step_size,
        "parts": {name: {"target_psnr": part.target, "lr_psnr": part.lr_psnr} for name, part in radii.items()},
        "lr_psnr_of_all": together,
    }


def together(attack: Attack, images: Sequence[AttackedImage], ball: Ball) -> float:
    """LR PSNR in dB of the attack with all radii at once."""
    with torch.no_grad():
        return attacked_lr_psnr(attack, images, ball)
