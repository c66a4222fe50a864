"""Exponential moving average (EMA) of G's weights; a run validates and saves the average."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """Maintains ``ema = decay * ema + (1 - decay) * parameter`` for every parameter of a module.

    Args:
        module: the module to average, already on its device.
        decay: in [0, 1); 0 tracks the module's weights exactly.

    Attributes:
        module: copy with the averaged weights, in eval mode, with ``requires_grad`` off.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._update = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Update the average after an optimizer step; buffers are copied."""
        self._update(list(self.module.parameters()), list(module.parameters()), None)
        for averaged, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            averaged.copy_(buffer)
