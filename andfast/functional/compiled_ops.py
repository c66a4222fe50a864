"""Fake kernels and output shapes of the compiled convolution ops of G (csrc/convolution).

:mod:`andfast.functional.extension` loads them; docs/kernels/convolution.md describes them.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from andfast.functional import extension
from andfast.kernels.common.layout import empty_channels_last
from andfast.kernels.residual_dense_block.buffers import ACTIVATIONS

DTYPES: Final = (torch.bfloat16, torch.float16)
"""Supported dtypes of x."""
KEEP_NOTHING, KEEP_SIGNS, KEEP_GROWTH = 0, 1, 2
"""Values of the argument ``keep`` of ``dense_blocks_forward``: what to save for backward."""
CHANNELS: Final = 8
"""Numbers of channels must be multiples of this: the kernels load 16 bytes at a time."""


def why_not(device_type: str) -> str | None:
    """Why the ops cannot run on tensors of this device type, or None if they can."""
    return extension.why_not_cuda(device_type)


def sign_bytes(channels: int) -> int:
    """Bytes per pixel of the signs of an activation; bit c % 8 of byte c // 8 is channel c."""
    return (channels + 31) // 32 * 4


def block_signs_shape(x: Tensor, growth: int, blocks: int) -> tuple[int, ...]:
    """Shape of the signs that ``dense_blocks_forward`` saves."""
    n, _, height, width = x.shape
    return blocks, ACTIVATIONS, n, height, width, sign_bytes(growth)


def in_format(value: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return an op's channels_last result in ``memory_format``, copied if that is another."""
    if memory_format == torch.channels_last:
        return value
    return torch.empty(value.shape, dtype=value.dtype, device=value.device, memory_format=memory_format).copy_(value)


def bias_gradient(grad: Tensor) -> Tensor:
    """Sum a gradient over images and pixels, in at least fp32."""
    return grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)).to(grad.dtype)


# ------------------------------------------------------------------------------------------------ Fake kernels


def register_fakes() -> None:
    """Register shapes, strides and dtypes of results for FakeTensor and torch.compile."""
    for function in (
        convolution_pack,
        convolution_forward,
        convolution_backward,
        convolution_activation_backward,
        dense_blocks_pack,
        dense_blocks_forward,
        dense_blocks_backward,
    ):
        torch.library.register_fake(f"andfast::{function.__name__}", function)


def convolution_pack(weight: Tensor, *_: Any, **_kwargs: Any) -> Tensor:
    return _packed(weight)


def dense_blocks_pack(weights: Sequence[Tensor], *_: Any, **_kwargs: Any) -> Tensor:
    return _packed(weights[0])


def _packed(weight: Tensor) -> Tensor:
    """A buffer of unknown size: the number of bytes depends on the device's kernels."""
    return weight.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


def convolution_forward(
    x: Tensor, _packed: Tensor, out_channels: int, factor: int, *args: Any
) -> tuple[Tensor, Tensor]:
    keep_signs = args[-1]
    n, _, height, width = x.shape
    out = empty_channels_last(x, out_channels, factor * height, factor * width)
    signs = (n, factor * height, factor * width, sign_bytes(out_channels)) if keep_signs else (0,)
    return out, x.new_empty(signs, dtype=torch.uint8)


def convolution_backward(grad: Tensor, _packed: Tensor, in_channels: int, factor: int, *_: Any) -> Tensor:
    return empty_channels_last(grad, in_channels, grad.shape[2] // factor, grad.shape[3] // factor)


def convolution_activation_backward(grad: Tensor, _signs: Tensor, _slope: float) -> Tensor:
    return empty_channels_last(grad, grad.shape[1])


def dense_blocks_forward(x: Tensor, _packed: Tensor, growth: int, blocks: int, *args: Any) -> tuple[Tensor, Tensor]:
    keep = args[-1]
    out = empty_channels_last(x, x.shape[1])
    if keep == KEEP_GROWTH:
        return out, empty_channels_last(x, ACTIVATIONS * growth)
    shape = block_signs_shape(x, growth, blocks) if keep == KEEP_SIGNS else (0,)
    return out, x.new_empty(shape, dtype=torch.uint8)


def dense_blocks_backward(grad: Tensor, _saved: Tensor, _packed: Tensor, growth: int, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_channels_last(grad, grad.shape[1]), empty_channels_last(grad, ACTIVATIONS * growth)


if extension.why_missing() is None and hasattr(torch.ops.andfast, "dense_blocks_forward"):  # not built for the CPU only
    register_fakes()
