"""Training on a synthetic degradation, by default Real-ESRGAN's: what one would train without an adversary."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from andfast.adversary.attack import Attack
from andfast.adversary.objective import Targets
from andfast.adversary.strategies.high_order import HighOrderDegradation
from andfast.adversary.strategies.strategy import StepSeed, Strategy, chunk_in_global_batch

Pipeline = Callable[[Tensor, int, np.random.Generator], Tensor]
"""(HR (3, H, W) in [0, 1], float32 on the CPU, scale, random numbers) to LR (3, H / scale, W / scale) in [0, 1]."""

_PIPELINE = 3  # follows the step's numbers in the seed of an image


class SyntheticLR(NamedTuple):
    """Result of :class:`Synthetic`.

    Attributes:
        lr: (N, 3, H / scale, W / scale).
        losses: empty.
    """

    lr: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Synthetic(Strategy):
    """LR by the pipeline, per image on the CPU, for which the draw waits for HR.

    Attributes:
        pipeline: Real-ESRGAN's with its parameters, or another.
    """

    pipeline: Pipeline = field(default_factory=HighOrderDegradation)

    @torch.no_grad()
    def draw(
        self, attack: Attack, hr: Tensor, seed: StepSeed, *, chunk: range | None = None, shard: tuple[int, int] = (0, 1)
    ) -> Tensor:
        """LR, (N, 3, H / scale, W / scale), on HR's device."""
        images = range(hr.shape[0]) if chunk is None else chunk
        numbers = chunk_in_global_batch(hr, chunk, shard)
        scale = attack.degradation.scale
        part = hr[images.start : images.stop]
        lr = [
            self.pipeline(image, scale, seed.numpy_generator(_PIPELINE, number))
            for image, number in zip(part.float().cpu(), numbers, strict=True)
        ]
        size = (len(images), hr.shape[1], hr.shape[2] // scale, hr.shape[3] // scale)
        return torch.stack(lr).to(hr) if lr else hr.new_empty(size)

    def search(self, attack: Attack, hr: Tensor, draw: Tensor) -> tuple[Targets, SyntheticLR]:
        """No search."""
        return attack.targets(hr), SyntheticLR(draw, hr.new_empty(0))

    def degrade(self, attack: Attack, hr: Tensor, result: SyntheticLR) -> tuple[Tensor, Tensor]:
        """The drawn LR."""
        return attack.as_input(result.lr), attack.clean(hr)
