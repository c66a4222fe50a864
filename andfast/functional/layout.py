"""What the ops that convolve images share: results in x's memory format, autocast's cast, PyTorch's backward pass."""

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """The format of the results: channels_last if x is, or is cut out of, such a tensor, else contiguous."""
    # Read off the strides: an empty batch or a single pixel counts as contiguous in both formats.
    return torch.channels_last if x.stride(1) == 1 and x.stride(3) != 1 else torch.contiguous_format


def empty(x: Tensor, channels: int, dtype: torch.dtype | None = None, *, factor: int = 1) -> Tensor:
    """An uninitialised tensor like x, with that many channels, ``factor`` times its size, and x's memory format."""
    n, _, height, width = x.shape
    shape = (n, channels, factor * height, factor * width)
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format(x))


def cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast as autocast does: everything but float64."""
    return value if value.dtype == torch.float64 else value.to(dtype)


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: list[bool], *, stride: int = 1, transposed: bool = False
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of a convolution with padding 1 to x, weight and bias; None where it is not wanted."""
    channels, one = weight.shape[1 if transposed else 0], [1, 1]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [channels], [stride, stride], one, one, transposed, [0, 0], 1, wanted
    )
