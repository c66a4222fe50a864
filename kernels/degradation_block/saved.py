"""Layout of the byte buffer that the degradation block saves for backward. Needs no Triton.

First the sign bits of z, (N, H, W, ceil(Cout / 8)) bytes: bit c % 8 of byte c // 8 is z[n, c, h, w] > 0. Then, if the
slope's gradient needs it, z itself, (N, H, W, Cout) in x's dtype, aligned to 16 bytes. See
docs/kernels/degradation_block.md for the reasons.
"""

from typing import Final

import torch
from torch import Tensor

SAVE_NOTHING: Final = 0
SAVE_BITS: Final = 1
SAVE_Z: Final = 2

_ALIGN: Final = 16
_BITS: Final = 8


def save_form(save: bool, save_z: bool) -> int:
    """SAVE_NOTHING unless ``save``, else SAVE_Z or SAVE_BITS."""
    if not save:
        return SAVE_NOTHING
    return SAVE_Z if save_z else SAVE_BITS


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
    """The two flat parts of the buffer: sign bits as bytes, and z in ``dtype`` if it was saved."""
    bits = _bits_bytes(pixels, c_out)
    if saved.numel() == bits:
        return saved, None
    return saved[:bits], saved[_aligned(bits) :].view(dtype)
