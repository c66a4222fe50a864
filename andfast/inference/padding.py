"""Apply a network to an image padded by replication, so that its zero padding never touches the image.

The zeros that convolutions pad with show in the output as a dark frame. LR is therefore padded by :data:`MARGIN`
replicated pixels, and the margin is cropped from the output. Upscaling, evaluation, validation and sample sheets all go
through :func:`restore_padded`.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch.nn.functional as F
from torch import Tensor

MARGIN: Final = 16
"""LR pixels of replicate padding."""


class Sides(NamedTuple):
    """Sides of an LR tile at which it ends because the image ends: these are padded."""

    left: bool = True
    right: bool = True
    top: bool = True
    bottom: bool = True


ALL_SIDES: Final = Sides()


def restore_padded(
    network: Callable[[Tensor], Tensor],
    lr: Tensor,
    *,
    margin: int = MARGIN,
    multiple: int = 1,
    sides: Sides = ALL_SIDES,
) -> Tensor:
    """Pad LR by replication, apply the network, crop its output.

    Args:
        network: Maps (N, C, H, W) to (N, C', H * scale, W * scale) for H and W divisible by ``multiple``.
        lr: (N, C, H, W), H and W at least 1.
        margin: LR pixels of padding, rounded up to a multiple of ``multiple``.
        multiple: Required divisor of the network's input size. The padding keeps the image aligned to it.
        sides: Sides to pad by the margin. The others belong to an interior tile, whose border is dropped by blending;
            right and bottom are still padded up to ``multiple``.

    Returns:
        (N, C', H * scale, W * scale).
    """
    height, width = lr.shape[2:]
    margin = -(-margin // multiple) * multiple
    left, right, top, bottom = (margin if padded else 0 for padded in sides)
    right += -(width + left + right) % multiple
    bottom += -(height + top + bottom) % multiple
    if left or right or top or bottom:
        lr = F.pad(lr, (left, right, top, bottom), mode="replicate")
    sr = network(lr)
    scale = sr.shape[2] // lr.shape[2]
    top, left = top * scale, left * scale
    return sr[:, :, top : top + height * scale, left : left + width * scale]
