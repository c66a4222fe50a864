"""Adversarial noise training: projected gradient ascent on noise that is added to clean LR (paper, table 2)."""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from andfast.adversary.attack import Attack
from andfast.adversary.objective import Targets
from andfast.adversary.strategies.strategy import Strategy

NORMS: Final = ("l2", "linf")


class NoiseAscent(NamedTuple):
    """Result of an ascent on noise.

    Attributes:
        noise: (N, 3, H / scale, W / scale), fp32.
        losses: (K,), the mean objective before each step; the first is that of the clean LR.
    """

    noise: Tensor
    losses: Tensor


@dataclass(frozen=True)
class LRNoise(Strategy):
    """F is the clean pooling; noise on its LR ascends from zero, in the attack's number of steps.

    Attributes:
        radius: of the ball, in levels of 255: the noise's root mean square over an image (l2), or its largest absolute
            value (linf). So it does not depend on the size of LR.
        norm: "l2", by steps along the gradient, or "linf", by steps along its sign.
    """

    radius: float = 8.0
    norm: str = "l2"

    ascends = starts_clean = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise ValueError(f"radius must be finite and above 0, was {self.radius}")
        if self.norm not in NORMS:
            raise ValueError(f"norm must be 'l2' or 'linf', was {self.norm!r}")

    def search(self, attack: Attack, hr: Tensor, draw: object) -> tuple[Targets, NoiseAscent]:
        """Ascend from no noise."""
        losses = []
        with attack.frozen_loss(hr) as (targets, loss):
            clean = attack.clean(hr)
            noise = torch.zeros_like(clean, dtype=torch.float32)
            for _ in range(attack.settings.steps):
                leaf = noise.requires_grad_()
                with torch.enable_grad():
                    value = loss(clean + leaf)
                    (gradient,) = torch.autograd.grad(value.sum() * attack.loss_scale, leaf)
                losses.append(value.detach().mean())
                noise = self.step(noise.detach(), gradient, attack.settings.step_size)
        return targets, NoiseAscent(noise, torch.stack(losses) if losses else hr.new_empty(0))

    @torch.no_grad()
    def degrade(self, attack: Attack, hr: Tensor, result: NoiseAscent) -> tuple[Tensor, Tensor]:
        """Clean LR with the noise added."""
        clean = attack.clean(hr)
        return attack.as_input((clean + result.noise).to(hr.dtype)), clean

    @torch.no_grad()
    def step(self, noise: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Move ``step_size`` radii up, and project onto the ball, per image; a zero gradient moves nothing.

        Args:
            noise, gradient: (N, 3, h, w).
            step_size: length of the step as a fraction of the radius.
        """
        radius = self.radius / 255
        if self.norm == "linf":
            return (noise + step_size * radius * gradient.sign()).clamp(-radius, radius)
        noise = noise + step_size * radius * gradient / _rms(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)
        return noise * (radius / _rms(noise).clamp_min(radius))


def _rms(x: Tensor) -> Tensor:
    """Root mean square per image: (N, 1, 1, 1)."""
    count = math.prod(x.shape[1:])
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True) / math.sqrt(max(count, 1))
