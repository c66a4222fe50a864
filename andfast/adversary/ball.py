"""The constraint set S of equation 1: a ball around the identity networks (paper, sections 3.4 and 4.3).

The three groups of theta (convolution, noise, slope) have a radius each. In the coordinates u = (theta - theta_id) /
radius of the group, S is either a unit ball per group or one joint unit ball of all three. The paper's literal reading
is a joint ball of radius 20 with scale factors 1, 10 and 50 on the groups: radii 20 / factor.

The convolutions may be split into color, kernel and rest, each a group of its own then, and noise maps may be kept at
mean zero: both leave out of S what no G can undo (docs/method.md).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from torch import Tensor

from andfast.functional.ascent_parts import KernelParts, Parts, ZeroMean
from andfast.functional.ascent_step import (
    ascent_step,
    merge,
    move,
    part_radii,
    relative_norms,
    split,
    split_centers,
    split_gradients,
)
from andfast.functional.ascent_step import project as project_groups
from andfast.nn.degradation_network import Theta

GROUPS: Final = ("convolution", "noise", "slope")
"""The groups of theta, in the order of its fields: weights, noises, slopes."""


@dataclass(frozen=True)
class ConvolutionRadii:
    """L2 radii of the three parts of convolutions, see :class:`andfast.functional.ascent_parts.KernelParts`.

    Attributes:
        color: of the kernels' sums.
        kernel: of one change per layer for all channels: blur and sharpening.
        rest: of what remains: fringes between channels.
        symmetric: kernel and rest are point-symmetric, and so shift no picture.
    """

    color: float
    kernel: float
    rest: float
    symmetric: bool = True


@dataclass(frozen=True)
class Ball:
    """L2 radii of the groups of theta, per network, and how they combine.

    Attributes:
        convolution: radius, or those of the three parts that are groups of their own then.
        noise, slope: radii. Like all radii 0 or more; a group of radius 0 stays at its identity.
        joint: constrain sqrt(sum of the squared relative norms) <= 1 instead of each norm.
        zero_mean_noise: noise maps keep the mean of their identity, per channel.
    """

    convolution: float | ConvolutionRadii
    noise: float
    slope: float
    joint: bool = False
    zero_mean_noise: bool = False

    def __post_init__(self) -> None:
        for name, radius in zip(self.names, self.radii, strict=True):
            if not (math.isfinite(radius) and radius >= 0):
                raise ValueError(f"{name} (a radius) must be finite and 0 or more, was {radius}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the radii: :data:`GROUPS`, or color, kernel, rest, noise and slope."""
        return (*KernelParts.names, "noise", "slope") if isinstance(self.convolution, ConvolutionRadii) else GROUPS

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii, in the order of :attr:`names`."""
        own = self.convolution
        convolution = (own.color, own.kernel, own.rest) if isinstance(own, ConvolutionRadii) else (own,)
        return *convolution, self.noise, self.slope

    @property
    def parts(self) -> tuple[Parts, Parts, Parts]:
        """The parts of each group of theta, see :func:`andfast.functional.ascent_step`."""
        own = self.convolution
        convolution = KernelParts(own.symmetric) if isinstance(own, ConvolutionRadii) else None
        return convolution, ZeroMean() if self.zero_mean_noise else None, None

    def with_radii(self, radii: Mapping[str, float]) -> Self:
        """A ball with other radii, by name; those that are not named stay.

        Raises:
            ValueError: a name is none of :attr:`names`.
        """
        if unknown := [name for name in radii if name not in self.names]:
            raise ValueError(f"radii must be among {', '.join(self.names)}, were {', '.join(unknown)}")
        outer = {name: radius for name, radius in radii.items() if name in GROUPS}
        if isinstance(self.convolution, ConvolutionRadii):
            inner = {name: radius for name, radius in radii.items() if name not in GROUPS}
            outer["convolution"] = replace(self.convolution, **inner)  # type: ignore[arg-type, assignment]
        return replace(self, **outer)  # type: ignore[arg-type]

    @property
    def smallest_slope(self) -> float:
        """Lower bound of all slopes in the ball: they start at 1, and their joint L2 distance is at most ``slope``."""
        return max(1 - self.slope, 0.0)

    def norms(self, theta: Theta, identity: Theta, factors: Tensor | None = None) -> Tensor:
        """Distance of each group from its identity over its radius: (radii, N), 1 on the boundary of the group's ball.

        Infinite for a group of radius 0 that is not exactly at its identity. What lies in no part is not seen.
        """
        starts = split_centers(identity, self.parts)
        return relative_norms(split(theta, identity, self.parts), starts, part_radii(self.radii, factors))

    def overshoot(self, theta: Theta, identity: Theta, factors: Tensor | None = None) -> Tensor:
        """The norms that the ball constrains to at most 1: (radii, N), or (1, N) for a joint ball."""
        norms = self.norms(theta, identity, factors)
        return norms.square().sum(0, keepdim=True).sqrt() if self.joint else norms

    def move(
        self,
        theta: Theta,
        gradient: Theta,
        step_size: float,
        *,
        identity: Theta | None = None,
        factors: Tensor | None = None,
    ) -> Theta:
        """Move ``step_size`` radii along the gradient, normalised to unit length in u, without projecting.

        The gradient with respect to u is the radius times that with respect to theta. A zero gradient moves nothing.
        Half types are returned as float32, for the projection that follows.

        Raises:
            ValueError: the ball has parts, which are those of a distance, and ``identity`` is None.
        """
        if identity is None:
            if any(part is not None for part in self.parts):
                raise ValueError("identity must not be None for a ball with parts")
            identity = theta
        rows = split(theta, identity, self.parts)
        slopes = split_gradients(gradient, identity, self.parts)
        moved = move(rows, slopes, part_radii(self.radii, factors), step_size, self.joint)
        return _theta(merge(moved, identity, self.parts))

    def step(
        self,
        theta: Theta,
        gradient: Theta,
        identity: Theta,
        step_size: float,
        *,
        factors: Tensor | None = None,
        impl: str = "auto",
    ) -> Theta:
        """:meth:`move` and :func:`project` as one op, :func:`andfast.functional.ascent_step`; theta's dtypes stay.

        Args:
            theta, gradient, identity: of N networks each.
            step_size: length of the step as a fraction of the radius.
            factors: (N,), float32: a factor per network on all radii; None for 1.
            impl: implementation of the op.
        """
        return _theta(
            ascent_step(
                theta,
                gradient,
                identity,
                radii=self.radii,
                step_size=step_size,
                joint=self.joint,
                parts=self.parts,
                factors=factors,
                impl=impl,
            )
        )


def project(theta: Theta, identity: Theta, ball: Ball, factors: Tensor | None = None) -> Theta:
    """Nearest point of the ball in u, per network; networks inside are returned bit for bit.

    A group of radius 0 has no coordinate in u: it returns to its identity and does not shrink the other groups. Groups
    that the ball splits into parts are projected by part, which rounds points inside too.

    Args:
        theta, identity: of N networks each.
        ball: the set to project on.
        factors: (N,): a factor per network on all radii; None for 1.

    Returns:
        A new Theta; the arguments are not modified.
    """
    parts, radii = ball.parts, part_radii(ball.radii, factors)
    inside = project_groups(split(theta, identity, parts), split_centers(identity, parts), radii, ball.joint)
    return _theta(merge(inside, identity, parts))


def _theta(groups: list[list[Tensor]]) -> Theta:
    return Theta(*map(tuple, groups))
