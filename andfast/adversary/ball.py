"""The set S of equation 1: how far theta may go from its identity, group by group (paper, sections 3.4 and 4.3).

The three groups of theta, convolution, noise and slope, have radii of their own. In the coordinates u = (theta -
theta_id) / radius of a group, S is either three unit balls, one a group, or one joint unit ball for all three. The
paper's literal reading is a joint ball of radius 20 with scale factors 1, 10 and 50 on the groups: radii 20 / factor.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

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

    def norms(self, theta: Theta, identity: Theta) -> Tensor:
        """How much of its radius each group has used: (3, N), 1 at the border of its own ball.

        A group of radius 0 counts its distance as infinite unless it is exactly at the identity.
        """
        rows = []
        for group, start, radius in zip(theta, identity, self.radii, strict=True):
            length = _norm([one - zero for one, zero in zip(group, start, strict=True)])
            rows.append(length / radius if radius else torch.where(length == 0, length, length * math.inf))
        return torch.stack(rows)

    def overshoot(self, theta: Theta, identity: Theta) -> Tensor:
        """The norms that the constraint holds at or below 1: (3, N), or (1, N) for a joint ball."""
        norms = self.norms(theta, identity)
        return norms.square().sum(0, keepdim=True).sqrt() if self.joint else norms

    def move(self, theta: Theta, gradient: Theta, step_size: float) -> Theta:
        """Go ``step_size`` radii up the gradient, normalised to unit length in u; no projection yet.

        The gradient to u is the radius times the gradient to theta. A gradient of zero moves nothing.
        """
        lengths = torch.stack([_norm(group) * radius for group, radius in zip(gradient, self.radii, strict=True)])
        if self.joint:
            lengths = lengths.square().sum(0, keepdim=True).sqrt().expand_as(lengths)
        moved = []
        for group, slope, length, radius in zip(theta, gradient, lengths, self.radii, strict=True):
            scaled = torch.where(length > 0, step_size * radius * radius / length, 0.0)
            moved.append(
                tuple(torch.addcmul(one, up, _like(scaled, one)) for one, up in zip(group, slope, strict=True))
            )
        return Theta(*moved)


def project(theta: Theta, identity: Theta, ball: Ball) -> Theta:
    """The nearest point of the ball in u, an image at a time: shrinks what is outside, leaves what is inside as it is.

    A group of radius 0 has no coordinate in u: it goes back to its identity, and the other groups do not pay for it.

    Args:
        theta, identity: of N networks each.
        ball: the set to project on.

    Returns:
        A new Theta; no tensor of the arguments is changed.
    """
    norms = ball.norms(theta, identity)
    zero = torch.zeros_like(norms[0])
    used = torch.stack([row if radius else zero for row, radius in zip(norms, ball.radii, strict=True)])
    if ball.joint:
        used = used.square().sum(0, keepdim=True).sqrt().expand_as(used)
    inside = used.clamp_min(1).reciprocal()
    factors = [row if radius else zero for row, radius in zip(inside, ball.radii, strict=True)]
    return Theta(
        *(
            tuple(torch.lerp(center, one, _like(factor, one)) for one, center in zip(group, start, strict=True))
            for group, start, factor in zip(theta, identity, factors, strict=True)
        )
    )


def _norm(group: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The L2 norm over all tensors of a group, an image at a time: (N,), in float32 at least."""
    wide = torch.promote_types(group[0].dtype, torch.float32)
    lengths = [torch.linalg.vector_norm(one.flatten(1), dim=1, dtype=wide) for one in _at_least_2d(group)]
    return torch.linalg.vector_norm(torch.stack(lengths), dim=0)


def _at_least_2d(group: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    return [one.unsqueeze(1) if one.dim() == 1 else one for one in group]


def _like(factor: Tensor, tensor: Tensor) -> Tensor:
    """A factor an image, (N,), shaped to multiply a tensor (N, ...)."""
    return factor.to(tensor.dtype).reshape((-1,) + (1,) * (tensor.dim() - 1))
