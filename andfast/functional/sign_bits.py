"""Signs of activations as packed bits, the form in which frozen layers save them for backward."""

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.kernels.common.layout import SIGNS_PER_BYTE


def pack(positive: Tensor) -> Tensor:
    """Pack booleans (N, C, H, W) into (N, H, W, ceil(C / 8)) bytes; bit c % 8 of byte c // 8 is channel c."""
    by_pixel = positive.permute(0, 2, 3, 1).view(torch.uint8)
    if missing := -positive.shape[1] % SIGNS_PER_BYTE:
        by_pixel = F.pad(by_pixel, (0, missing))
    by_byte = by_pixel.unflatten(-1, (by_pixel.shape[-1] // SIGNS_PER_BYTE, SIGNS_PER_BYTE))
    return (by_byte << _bit_numbers(positive)).sum(-1, dtype=torch.uint8)


def unpack(signs: Tensor, channels: int) -> Tensor:
    """The inverse of :func:`pack`, as uint8 (N, C, H, W): nonzero where the bit is set."""
    bits = signs.unsqueeze(-1) & (1 << _bit_numbers(signs))
    return bits.flatten(-2)[..., :channels].permute(0, 3, 1, 2)


def _bit_numbers(like: Tensor) -> Tensor:
    return torch.arange(SIGNS_PER_BYTE, dtype=torch.uint8, device=like.device)
