"""Extend an RGB restorer to the channels of image files: grey and alpha."""

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.inference.models import BICUBIC, Restorer, load_restorer
from andfast.inference.padding import ALL_SIDES, Sides

_LUMA = (0.299, 0.587, 0.114)
_BLEED = 8  # LR pixels by which colors spread into fully transparent areas


class ChannelsRestorer:
    """Restore 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha) channels with an RGB restorer.

    Grey is restored as three equal channels and reduced to their luma. Alpha is upscaled bicubically and clamped to
    [0, 1]; the network never sees it. Colors under fully transparent pixels are arbitrary, often black, and would
    bleed into visible edges: they are first replaced by the colors of the nearest visible pixels.
    """

    def __init__(self, restorer: Restorer) -> None:
        self.scale = restorer.scale
        self.device = restorer.device
        self.multiple = restorer.multiple
        self._colors = restorer
        self._alpha = load_restorer(BICUBIC, scale=restorer.scale, device=restorer.device)

    def restore(self, lr: Tensor, sides: Sides = ALL_SIDES) -> Tensor:
        """(N, C, H, W) in [0, 1] to fp32 (N, C, H * scale, W * scale); colors neither clamped nor rounded."""
        channels = lr.shape[1]
        alpha = lr[:, -1:] if channels % 2 == 0 else None
        colors = lr if alpha is None else _bleed(lr[:, :-1], alpha)
        grey = channels < 3
        restored = self._colors.restore(colors.expand(-1, 3, -1, -1) if grey else colors, sides)
        if grey:
            weights = torch.tensor(_LUMA, device=restored.device)[:, None, None]
            restored = (restored * weights).sum(1, keepdim=True)
        if alpha is None:
            return restored
        upscaled = self._alpha.restore(alpha.expand(-1, 3, -1, -1), sides)[:, :1].clamp(0, 1)
        return torch.cat([restored, upscaled.to(restored.device)], dim=1)


def _bleed(colors: Tensor, alpha: Tensor) -> Tensor:
    """Spread the colors of visible pixels into fully transparent ones, one ring of pixels per iteration."""
    visible = (alpha > 0).to(colors.dtype)
    if visible.all() or not visible.any():
        return colors
    colors = colors * visible
    for _ in range(_BLEED):
        weight = F.avg_pool2d(visible, 3, stride=1, padding=1)
        spread = F.avg_pool2d(colors, 3, stride=1, padding=1) / weight.clamp(min=1e-6)
        reached = (weight > 0).to(colors.dtype)
        colors = torch.where(visible > 0, colors, spread * reached)
        visible = reached
    return colors
