"""The memory-format rule of all convolution-like ops, and shared helpers.

The result has the memory format of x: channels_last if x has several channels, which are contiguous, and columns that
are not (``x.stride(1) == 1 and x.stride(3) != 1``), else contiguous. So a slice of a channels_last tensor
gives a channels_last result as well, unless it has a single channel. The gradient to x has the same format, except that
of blur_pool, which has the format of the incoming gradient.
"""

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of an op's result, from the strides of x (N, C, H, W); see the module's documentation."""
    # is_contiguous(memory_format=...) is false for slices, and true for both formats if H = W = 1.
    return torch.channels_last if x.shape[1] != 1 and x.stride(1) == 1 and x.stride(3) != 1 else torch.contiguous_format


def empty(x: Tensor, channels: int, dtype: torch.dtype | None = None, *, factor: int = 1) -> Tensor:
    """An uninitialized tensor of ``channels`` channels and ``factor`` times x's size, in x's memory format."""
    n, _, height, width = x.shape
    shape = (n, channels, factor * height, factor * width)
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format(x))


def cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast as autocast does: everything but float64."""
    return value if value.dtype == torch.float64 else value.to(dtype)


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needs_grad: list[bool], *, stride: int = 1, transposed: bool = False
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of a convolution with padding 1 to x, weight and bias; None if not needed."""
    channels, ones = weight.shape[1 if transposed else 0], [1, 1]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [channels], [stride, stride], ones, ones, transposed, [0, 0], 1, needs_grad
    )
