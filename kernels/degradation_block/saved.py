"""What the degradation block keeps for its backward pass: one flat byte buffer. Needs no triton.

First the sign bits of z, (N, H, W, ceil(Cout / 8)) bytes: bit c % 8 of byte c // 8 says z[n, c, h, w] > 0. Then, if the
slope's gradient will be wanted and cannot be had from the result, z itself, (N, H, W, Cout) in x's dtype, aligned to 16
bytes. docs/kernels.md says why.
"""

from typing import Final

import torch
from torch import Tensor

SAVE_NOTHING: Final = 0
SAVE_BITS: Final = 1
SAVE_Z: Final = 2

_ALIGN: Final = 16
_BITS: Final = 8


def _bits_bytes(pixels: int, c_out: int) -> int:
    return pixels * ((c_out + _BITS - 1) // _BITS)


def _aligned(size: int) -> int:
    return (size + _ALIGN - 1) // _ALIGN * _ALIGN


def saved_bytes(pixels: int, c_out: int, itemsize: int, save: int) -> int:
    """Size of the buffer in bytes for ``pixels`` = N * H * W output pixels; sizes may be symbolic."""
    if save == SAVE_NOTHING:
        return 0
    bits = _bits_bytes(pixels, c_out)
    return bits if save == SAVE_BITS else _aligned(bits) + pixels * c_out * itemsize


def split_saved(saved: Tensor, pixels: int, c_out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The buffer's two parts, flat: sign bits as bytes, and z in ``dtype`` if it was kept."""
    bits = _bits_bytes(pixels, c_out)
    if saved.numel() == bits:
        return saved, None
    return saved[:bits], saved[_aligned(bits) :].view(dtype)
