"""The constraint set S of equation 1: a ball around the identity networks (paper, sections 3.4 and 4.3).

The three groups of theta (convolution, noise, slope) have a radius each. In the coordinates u = (theta - theta_id) /
radius of the group, S is either a unit ball per group or one joint unit ball of all three. The paper's literal reading
is a joint ball of radius 20 with scale factors 1, 10 and 50 on the groups: radii 20 / factor.
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
    """L2 radii of the three groups, per network, and how they combine.

    Attributes:
        convolution, noise, slope: radii, 0 or more; a group of radius 0 stays at its identity.
        joint: constrain sqrt(sum of the squared relative norms) <= 1 instead of each norm.
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
        """Lower bound of all slopes in the ball: they start at 1, and their joint L2 distance is at most ``slope``."""
        return max(1 - self.slope, 0.0)

    def norms(self, theta: Theta, identity: Theta) -> Tensor:
        """Distance of each group from its identity over its radius: (3, N), 1 on the boundary of the group's ball.

        Infinite for a group of radius 0 that is not exactly at its identity.
        """
        return relative_norms(theta, identity, self.radii)

    def overshoot(self, theta: Theta, identity: Theta) -> Tensor:
        """The norms that the ball constrains to at most 1: (3, N), or (1, N) for a joint ball."""
        norms = self.norms(theta, identity)
        return norms.square().sum(0, keepdim=True).sqrt() if self.joint else norms

    def move(self, theta: Theta, gradient: Theta, step_size: float) -> Theta:
        """Move ``step_size`` radii along the gradient, normalised to unit length in u, without projecting.

        The gradient with respect to u is the radius times that with respect to theta. A zero gradient moves nothing.
        Half types are returned as float32, for the projection that follows.
        """
        return _theta(move(theta, gradient, self.radii, step_size, self.joint))

    def step(self, theta: Theta, gradient: Theta, identity: Theta, step_size: float, *, impl: str = "auto") -> Theta:
        """:meth:`move` and :func:`project` as one op, :func:`andfast.functional.ascent_step`; theta's dtypes stay."""
        radii, joint = self.radii, self.joint
        return _theta(ascent_step(theta, gradient, identity, radii=radii, step_size=step_size, joint=joint, impl=impl))


def project(theta: Theta, identity: Theta, ball: Ball) -> Theta:
    """Nearest point of the ball in u, per network; networks inside are returned bit for bit.

    A group of radius 0 has no coordinate in u: it returns to its identity and does not shrink the other groups.

    Args:
        theta, identity: of N networks each.
        ball: the set to project on.

    Returns:
        A new Theta; the arguments are not modified.
    """
    return _theta(project_groups(theta, identity, ball.radii, ball.joint))


def _theta(groups: list[list[Tensor]]) -> Theta:
    return Theta(*map(tuple, groups))
