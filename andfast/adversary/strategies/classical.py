"""Classical SR training: LR by one fixed downsampling, no adversary (paper, table 2)."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from andfast.adversary.attack import Attack
from andfast.adversary.objective import Targets
from andfast.adversary.strategies.strategy import Strategy
from andfast.resize import bicubic_downscale


class NoSearch(NamedTuple):
    """Result without an ascent.

    Attributes:
        losses: empty.
    """

    losses: Tensor


class _Classical(Strategy):
    def search(self, attack: Attack, hr: Tensor, draw: object) -> tuple[Targets, NoSearch]:
        """No search."""
        return attack.targets(hr), NoSearch(hr.new_empty(0))

    @torch.no_grad()
    def degrade(self, attack: Attack, hr: Tensor, result: NoSearch) -> tuple[Tensor, Tensor]:
        """LR by the downsampling."""
        return attack.as_input(self._downscale(attack, hr)), attack.clean(hr)

    @abstractmethod
    def _downscale(self, attack: Attack, hr: Tensor) -> Tensor:
        """LR."""


class CleanPooling(_Classical):
    """LR is the clean pooling, F's own downsampling."""

    def _downscale(self, attack: Attack, hr: Tensor) -> Tensor:
        return attack.clean(hr)


class Bicubic(_Classical):
    """LR is antialiased bicubic, as in classical SR benchmarks."""

    def _downscale(self, attack: Attack, hr: Tensor) -> Tensor:
        return bicubic_downscale(hr, attack.degradation.scale)
