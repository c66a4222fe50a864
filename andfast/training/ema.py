"""The exponential moving average (EMA) of G's weights, which is what a run saves and validates."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """A copy of a module whose parameters follow the module's: ``average = decay * average + (1 - decay) * new``.

    Args:
        module: on its device already.
        decay: from 0, which makes the average the module's own weights, to below 1.

    Attributes:
        module: the averaged copy, in eval mode, without gradients.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._update = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's weights after an optimizer step; its buffers are copied."""
        self._update(list(self.module.parameters()), list(module.parameters()), None)
        for ours, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            ours.copy_(theirs)
