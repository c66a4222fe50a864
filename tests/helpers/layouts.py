"""Image tensors in various memory layouts."""

import random

import torch
from torch import Tensor

KINDS = ("contiguous", "channels_last", "turned", "sliced")


def laid_out(generator: random.Random, value: Tensor, kinds: tuple[str, ...] = KINDS) -> Tensor:
    """The same values (N, C, H, W) in one of several layouts; gaps between them in memory are NaN."""
    kind = generator.choice(kinds)
    n, channels, height, width = value.shape
    nan = {"fill_value": float("nan"), "dtype": value.dtype, "device": value.device}
    if kind == "channels_last":
        return value.contiguous(memory_format=torch.channels_last)
    if kind == "turned":
        return value.transpose(2, 3).contiguous().transpose(2, 3)
    if kind == "sliced":
        wide = torch.full((n, channels, height, 2 * width + 1), **nan)
        wide[..., 1::2] = value
        return wide[..., 1::2]
    if kind == "prefix":  # of the channels of a channels_last tensor
        wide = torch.full((n, height, width, channels + 3), **nan).permute(0, 3, 1, 2)
        wide[:, 1 : 1 + channels] = value
        return wide[:, 1 : 1 + channels]
    return value.contiguous()
