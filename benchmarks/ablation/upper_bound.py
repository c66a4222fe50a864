"""What G could learn at best: LR damaged as in the second test, which no other row of the ablation sees in training."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.ablation.damage import DAMAGES, round_to_8_bits

_CONDITIONS: Final = tuple(DAMAGES.values())


def random_damage(hr: Tensor, scale: int, rng: np.random.Generator) -> Tensor:
    """LR in one of the test's conditions, clean LR included, all equally probable.

    A pipeline of :class:`andfast.adversary.strategies.Synthetic`.

    Args:
        hr: (3, H, W) in [0, 1], float32 on the CPU; H and W divisible by the scale.
        scale: HR size over LR size.
        rng: source of all random numbers.

    Returns:
        (3, H / scale, W / scale) in [0, 1], rounded to 8 bits.
    """
    condition = _CONDITIONS[int(rng.integers(len(_CONDITIONS)))]
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    return round_to_8_bits(condition.function(hr[None], scale, generator))[0].float() / 255
