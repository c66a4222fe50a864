"""The set S of equation 1: how far theta may go from its identity, group by group (paper, sections 3.4 and 4.3).

The three groups of theta, convolution, noise and slope, have radii of their own. In the coordinates u = (theta -
theta_id) / radius of a group, S is either three unit balls, one a group, or one joint unit ball for all three. The
paper's literal reading is a joint ball of radius 20 with scale factors 1, 10 and 50 on the groups: radii 20 / factor.
"""

import math
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from andfast.functional.ascent_step import ascent_step, move, relative_norms
from andfast.functional.ascent_step import project as project_groups
from andfast.nn.degradation_network import Theta

GROUPS: Final = ("convolution", "noise", "slope")
"""The groups of theta, in the order of its fields: weights, noises, slopes."""


@dataclass(frozen=True)
class Ball:
    """The radii of the three groups in the L2 norm, an image at a time, and how they combine.

    Attributes:
        convolution, noise, slope: radii, 0 or more; a radius of 0 keeps the group at its identity.
        joint: one ball sqrt(sum of squares of the three relative norms) <= 1, not three.
    """

    convolution: float
    noise: float
    slope: float
    joint: bool = False

    def __post_init__(self) -> None:
        for name, radius in zip(GROUPS, self.radii, strict=True):
            if not (math.isfinite(radius) and radius >= 0):
                raise ValueError(f"{name} (a radius) must be finite and 0 or more, was {radius}")

    @property
    def radii(self) -> tuple[float, float, float]:
        return self.convolution, self.noise, self.slope

    @property
    def smallest_slope(self) -> float:
        """A lower bound of all slopes in the ball: each starts at 1, and all of an image together go ``slope`` far."""
        return max(1 - self.slope, 0.0)

    def norms(self, theta: Theta, identity: Theta) -> Tensor:
        """How much of its radius each group has used: (3, N), 1 at the border of its own ball.

        A group of radius 0 counts its distance as infinite unless it is exactly at the identity.
        """
        return relative_norms(theta, identity, self.radii)

    def overshoot(self, theta: Theta, identity: Theta) -> Tensor:
        """The norms that the constraint holds at or below 1: (3, N), or (1, N) for a joint ball."""
        norms = self.norms(theta, identity)
        return norms.square().sum(0, keepdim=True).sqrt() if self.joint else norms

    def move(self, theta: Theta, gradient: Theta, step_size: float) -> Theta:
        """Go ``step_size`` radii up the gradient, normalised to unit length in u; no projection yet.

        The gradient to u is the radius times the gradient to theta. A gradient of zero moves nothing. Half types come
        back as float32, since a projection is still to come.
        """
        return _theta(move(theta, gradient, self.radii, step_size, self.joint))

    def step(self, theta: Theta, gradient: Theta, identity: Theta, step_size: float, *, impl: str = "auto") -> Theta:
        """:meth:`move` and :func:`project` as one op, :func:`andfast.functional.ascent_step`; theta's dtypes stay."""
        radii, joint = self.radii, self.joint
        return _theta(ascent_step(theta, gradient, identity, radii=radii, step_size=step_size, joint=joint, impl=impl))


def project(theta: Theta, identity: Theta, ball: Ball) -> Theta:
    """The nearest point of the ball in u, an image at a time: shrinks what is outside, leaves what is inside as it is.

    A group of radius 0 has no coordinate in u: it goes back to its identity, and the other groups do not pay for it.

    Args:
        theta, identity: of N networks each.
        ball: the set to project on.

    Returns:
        A new Theta; no tensor of the arguments is changed.
    """
    return _theta(project_groups(theta, identity, ball.radii, ball.joint))


def _theta(groups: list[list[Tensor]]) -> Theta:
    return Theta(*map(tuple, groups))
