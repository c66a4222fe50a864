"""Launch arithmetic of the convolution kernels, on the host: configurations, tile counts, packed weights."""

import functools
from collections.abc import Mapping

import torch
import triton
from torch import Tensor

from .config import MAX_REGISTERS, KernelConfig, newest_architecture

ConfigTable = Mapping[str, Mapping[tuple[str, str], KernelConfig]]
"""``table[architecture][kernel, precision]``."""


@functools.cache
def architecture_of(device: torch.device, architectures: tuple[str, ...]) -> str:
    """The architecture whose configurations ``device`` uses; the oldest for Triton's interpreter, on the CPU."""
    if device.type != "cuda":
        return min(architectures)
    return newest_architecture(torch.cuda.get_device_capability(device), architectures)


def table_config(table: ConfigTable, kernel: str, dtype: torch.dtype, device: torch.device, tf32: bool) -> KernelConfig:
    """The table's configuration of ``kernel`` for images of this dtype on this device."""
    return table[architecture_of(device, tuple(table))][kernel, precision_name(dtype, tf32)]


def precision_name(dtype: torch.dtype, tf32: bool) -> str:
    """The entry of :data:`~.config.PRECISIONS` for inputs of ``dtype``."""
    if dtype in (torch.bfloat16, torch.float16):
        return "half"
    return "tf32" if tf32 else "tf32x3"


def dot_precision(dtype: torch.dtype, tf32: bool) -> str:
    """``input_precision`` of tl.dot, which ignores it for half types."""
    precision = precision_name(dtype, tf32)
    return "tf32" if precision == "half" else precision


def register_limit(config: KernelConfig, *images: Tensor) -> int:
    """The configuration's limit if all images are channels_last with channels in multiples of 16, else the maximum."""
    simple = all(image.stride(1) == 1 and image.shape[1] % 16 == 0 for image in images)
    return config.registers if simple else MAX_REGISTERS


def tile_counts(height: int, width: int, config: KernelConfig) -> tuple[int, int]:
    """Pixel tiles per image and per row of tiles."""
    tiles_w = triton.cdiv(width, config.block_w)
    return triton.cdiv(height, config.block_h) * tiles_w, tiles_w


def taps_first(weight: Tensor, *order: int) -> tuple[Tensor, int]:
    """Return weights as contiguous (N or 1, 9, ...) with channels in ``order``, and their image stride, 0 if shared."""
    shared = weight.dim() == 4
    packed = (weight.unsqueeze(0) if shared else weight).flatten(-2).permute(0, 3, *order).contiguous()
    return packed, 0 if shared else packed.stride(0)
