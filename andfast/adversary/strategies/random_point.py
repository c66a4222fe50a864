"""A random point of the ball, as it is (paper, table 2: synthetic data augmentation) or with an ascent from there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from andfast.adversary.attack import Attack, Start
from andfast.adversary.ball import Ball
from andfast.adversary.calibration import scaled
from andfast.adversary.objective import Targets
from andfast.adversary.pgd import Ascent
from andfast.adversary.strategies.fast import FastPGD
from andfast.adversary.strategies.pgd import PGD
from andfast.adversary.strategies.strategy import StepSeed, networks_in_global_batch

_DIRECTION = 1  # follows the step's numbers in the seed of a network's direction


@dataclass(frozen=True)
class RandomPoint(PGD):
    """Theta goes its radius in a random direction, each group of parameters by itself unless the ball is joint.

    In a ball of many dimensions nearly all points are this far from the center.

    Attributes:
        scale: factor on the radii, above 0, or factors by name of the ball's parts, 0 for those without. A random
            direction does far less damage than the ascent's: at 1 LR is hardly degraded.
    """

    scale: float | Mapping[str, float] = 1.0

    ascends = starts_clean = False

    def __post_init__(self) -> None:
        factors = list(self.scale.values()) if isinstance(self.scale, Mapping) else [self.scale]
        if not (all(math.isfinite(factor) and factor >= 0 for factor in factors) and any(factors)):
            raise ValueError(f"scale must be finite and above 0, was {self.scale}")

    @torch.no_grad()
    def draw(
        self, attack: Attack, hr: Tensor, seed: StepSeed, *, chunk: range | None = None, shard: tuple[int, int] = (0, 1)
    ) -> Start:
        """A random network around a fresh identity network each; as much memory as a whole theta."""
        identity, factors = super().draw(attack, hr, seed, chunk=chunk, shard=shard)
        networks = networks_in_global_batch(attack, hr, chunk, shard)
        generators = [seed.generator(hr.device, _DIRECTION, network) for network in networks]
        direction = identity.rebuild(
            torch.stack([_normal(tensor[0], generator) for generator in generators])
            if generators
            else torch.zeros_like(tensor)
            for tensor in identity.tensors()
        )
        ball = self.ball_of_points(attack.settings.ball)
        point = ball.step(identity, direction, identity, 1.0, factors=factors, impl=attack.degradation.impl)
        return Start(point, factors)

    def ball_of_points(self, ball: Ball) -> Ball:
        """The ball, whose radii points go, of an attack's ball."""
        if not isinstance(self.scale, Mapping):
            return scaled(ball, self.scale)
        radii = dict(zip(ball.names, ball.radii, strict=True))
        factors = {**dict.fromkeys(radii, 0.0), **self.scale}
        return ball.with_radii({name: radii.get(name, 0.0) * factor for name, factor in factors.items()})

    def search(self, attack: Attack, hr: Tensor, draw: Start) -> tuple[Targets, Ascent]:
        """No search: the drawn networks."""
        return attack.targets(hr), Ascent(draw.identity, hr.new_empty(0))


@dataclass(frozen=True)
class PGDRandomStart(RandomPoint):
    """Complete AND around a random point: the ball of the ascent has that point as its center.

    Attributes:
        scale: factor on the radii, for the random point only.
    """

    ascends = True

    def search(self, attack: Attack, hr: Tensor, draw: Start) -> tuple[Targets, Ascent]:
        """Ascend from the drawn networks, within the ball around them."""
        return without_closed_form(attack).search(hr, draw)


@dataclass(frozen=True)
class FastRandomStart(PGDRandomStart):
    """The same by :class:`FastPGD`."""

    def search(self, attack: Attack, hr: Tensor, draw: Start) -> tuple[Targets, Ascent]:
        """Ascend from the drawn networks, within the ball around them, by a pass over each quarter."""
        return FastPGD().search(without_closed_form(attack), hr, draw)


def without_closed_form(attack: Attack) -> Attack:
    """An attack whose first step may start at networks other than the identity."""
    return replace(attack, reuse=replace(attack.reuse, closed_form_first_step=False))


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of a network's tensor."""
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=torch.float32).to(like.dtype)
