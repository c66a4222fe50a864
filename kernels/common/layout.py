"""Memory layout of the tensors that kernels read: strides, alignment, 32-bit offsets. Needs no Triton."""

from collections.abc import Sequence

import torch
from torch import Tensor

SIGNS_PER_BYTE = 8
"""Signs of channels that a byte of packed sign bits holds."""


def check_int32_extent(name: str, shape: Sequence[int], stride: Sequence[int]) -> None:
    """Raise ValueError unless each image spans fewer than 2**31 values: offsets within an image are 32-bit."""
    extent = sum((size - 1) * step for size, step in zip(shape[1:], stride[1:], strict=True))
    if extent >= 2**31:
        raise ValueError(f"an image of {name} must span fewer than 2**31 values, spanned {extent + 1}")


def pixel_strides(value: Tensor) -> tuple[int, int, int]:
    """Strides of image, row and column."""
    return value.stride(0), value.stride(2), value.stride(3)


def slope_strides(slope: Tensor) -> tuple[int, int]:
    """Strides of image and channel for slopes (), (N,) or (N, C); 0 where the slope is broadcast."""
    image, channel, *_ = (*slope.stride(), 0, 0)
    return image, channel


def aligned(*sizes: int) -> bool:
    """Whether all are multiples of 16, which lets Triton use 16-byte loads and simple addresses."""
    return all(size % 16 == 0 for size in sizes)


def with_contiguous_channels(x: Tensor) -> Tensor:
    """x, or a channels_last copy of it if its channels are not contiguous (``stride(1) == 1``)."""
    if x.shape[1] == 1 or x.stride(1) == 1:
        return x
    return x.contiguous(memory_format=torch.channels_last)


def empty_channels_last(x: Tensor, channels: int, height: int | None = None, width: int | None = None) -> Tensor:
    """An uninitialized channels_last tensor of x's batch, dtype and device, and x's height and width by default."""
    shape = (x.shape[0], channels, x.shape[2] if height is None else height, x.shape[3] if width is None else width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def in_order(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor if its values have the memory order of ``like``, which has the same shape; else a copy that has."""
    pairs = zip(tensor.shape, tensor.stride(), like.stride(), strict=True)
    if all(size == 1 or stride == expected for size, stride, expected in pairs):
        return tensor
    return torch.empty_strided(tensor.shape, like.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
