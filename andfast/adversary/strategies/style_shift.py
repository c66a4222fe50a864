"""Severe random style shift: the ascent without the identity initialization (paper, table 2)."""

import math

import torch
from torch import Tensor

from andfast.adversary.attack import Attack, Start
from andfast.adversary.objective import Targets
from andfast.adversary.pgd import Ascent
from andfast.adversary.strategies.pgd import PGD
from andfast.adversary.strategies.random_point import without_closed_form
from andfast.adversary.strategies.strategy import StepSeed, networks_in_global_batch

_KERNELS = 2  # follows the step's numbers in the seed of a network's kernels


class StyleShift(PGD):
    """Every 3x3 kernel is drawn by Xavier initialization; the full ascent follows, in the ball around that network.

    LR shows another picture in other colors, so training is expected to fail, as the paper reports (11.84 dB). Slopes
    and noise maps start at 1 and 0, as at the identity: the paper changes kernels only.
    """

    starts_clean = False

    @torch.no_grad()
    def draw(
        self, attack: Attack, hr: Tensor, seed: StepSeed, *, chunk: range | None = None, shard: tuple[int, int] = (0, 1)
    ) -> Start:
        """Networks with random kernels."""
        theta, factors = super().draw(attack, hr, seed, chunk=chunk, shard=shard)
        generators = [
            seed.generator(hr.device, _KERNELS, network)
            for network in networks_in_global_batch(attack, hr, chunk, shard)
        ]
        kernels = tuple(
            torch.stack([_xavier(kernel[0], generator) for generator in generators]) if generators else kernel
            for kernel in theta.weights
        )
        return Start(theta._replace(weights=kernels), factors)

    def search(self, attack: Attack, hr: Tensor, draw: Start) -> tuple[Targets, Ascent]:
        """Ascend from the drawn networks."""
        return without_closed_form(attack).search(hr, draw)


def _xavier(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Xavier-normal numbers for a kernel (Cout, Cin, 3, 3), in the fans of a 3x3 convolution."""
    rows, columns, *window = like.shape
    normal = torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return normal * math.sqrt(2 / (math.prod(window) * (rows + columns)))
