"""Presets of the attack's radii and step size; docs/method.md says how they were chosen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from andfast.adversary.ball import Ball, ConvolutionRadii

REFERENCE_SIZE: Final = 256
"""HR height and width that the presets' radii are given for: the paper's patch size."""
REFERENCE_CHANNELS: Final = 64
"""Channels of F that the presets' radii are given for: the paper's."""


@dataclass(frozen=True)
class Preset:
    """A ball for HR of 256x256 and F of 64 channels, and its step size as a fraction of the radius.

    Attributes:
        ball, step_size: see :func:`andfast.adversary.ascend`.
        image_radius: "fixed", or "uniform" for a factor per network on all radii, uniform in [0, 1).
    """

    ball: Ball
    step_size: float
    image_radius: str = "fixed"

    def ball_for(self, height: int, width: int, channels: int = REFERENCE_CHANNELS) -> Ball:
        """The ball of equal strength for another HR size; a joint ball is kept to the letter.

        At equal strength the L2 norm of noise maps grows with the square root of the number of pixels; the norms of
        kernels and slopes do not depend on the size.

        Args:
            height, width: of HR.
            channels: of F. In a ball with parts the radii of noise and rest grow with their square root, as measured
                (docs/method.md); others do not depend on them.
        """
        if self.ball.joint:
            return self.ball
        ball = resized(self.ball, (REFERENCE_SIZE, REFERENCE_SIZE), (height, width))
        if not isinstance(ball.convolution, ConvolutionRadii):
            return ball
        factor = math.sqrt(channels / REFERENCE_CHANNELS)
        return ball.with_radii({"rest": ball.convolution.rest * factor, "noise": ball.noise * factor})


def resized(ball: Ball, before: tuple[int, int], after: tuple[int, int]) -> Ball:
    """A ball of equal strength for HR of another (height, width)."""
    return replace(ball, noise=ball.noise * math.sqrt(math.prod(after) / math.prod(before)))


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        # Without color, brightness and shift; kernel and rest as strong as in real pairs, noise twice (docs/method.md).
        "symmetric": Preset(
            Ball(ConvolutionRadii(color=0.0, kernel=0.8, rest=0.06), noise=0.53, slope=0.0, zero_mean_noise=True),
            step_size=0.3,
            image_radius="uniform",
        ),
        # Each group alone takes LR to 30 dB, or 25 dB, of the clean LR on photographs, with F of 64 channels at x4.
        "calibrated": Preset(Ball(convolution=0.0018, noise=0.65, slope=0.032), step_size=0.3),
        "strong": Preset(Ball(convolution=0.003, noise=1.2, slope=0.057), step_size=0.3),
        # Section 4.3 to the letter (epsilon 20, step 6, factors 1, 10, 50), which destroys the image.
        "paper": Preset(Ball(convolution=20 / 1, noise=20 / 10, slope=20 / 50, joint=True), step_size=6 / 20),
    }
)
