"""The ascent step's Triton implementation: where it can run, and what is laid out how before its kernels start.

Triton is imported by the first call, so that andfast can be imported where there is none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from andfast.functional.triton_support import DTYPES, why_not

from ..common.layout import in_order

__all__ = ["DTYPES", "ascent_step", "why_not"]

_ALIGNMENT = 16  # values of an image, and bytes of an address: what a 16-byte access takes


def ascent_step(
    values: Sequence[Sequence[Tensor]],
    gradients: Sequence[Sequence[Tensor]],
    centers: Sequence[Sequence[Tensor]],
    radii: Sequence[float],
    step_size: float,
    joint: bool,
) -> list[list[Tensor]]:
    """New values, from two passes over values and gradients; arguments as checked by the op."""
    from andfast.kernels.ascent_step import kernels  # noqa: PLC0415

    updated: list[list[Tensor]] = []
    batches: dict[tuple[object, ...], kernels.Batch] = {}
    for number, group in enumerate(zip(values, gradients, centers, strict=True)):
        made = []
        for three in zip(*group, strict=True):
            value, gradient, center, out = _laid_out(*three)
            made.append(out)
            if out.numel() == 0:
                continue
            at_center = _same_memory(value, center)
            expanded = _expanded(center)
            four = (center if at_center else value, gradient, center, out)
            size = out[0].numel()
            aligned = size % _ALIGNMENT == 0 and all(one.data_ptr() % _ALIGNMENT == 0 for one in four)
            key = (number, at_center, expanded, aligned, *(one.dtype for one in four))
            batch = batches.setdefault(key, kernels.Batch(number, at_center, expanded))
            batch.add(*four, size)
        updated.append(made)
    images = values[0][0].shape[0]
    kernels.step(list(batches.values()), images, radii, step_size, joint)
    return updated


def _laid_out(value: Tensor, gradient: Tensor, center: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The three, and an output, such that all that is not one expanded scalar has one order of values in memory.

    That of the value if it fills its memory, else that of the gradient. A tensor in another order is copied, and so is
    an expanded value that is not its center: neither occurs in an ascent from :func:`sample_identity` through F.
    """
    at_center = _same_memory(value, center)
    model = next((one for one in (value, gradient) if _dense(one)), None)
    strides = torch.empty(value.shape, device="meta").stride() if model is None else model.stride()
    out = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
    gradient = in_order(gradient, out)
    if not _expanded(center):
        center = in_order(center, out)
    value = center if at_center else in_order(value, out)
    return value, gradient, center, out


def _dense(tensor: Tensor) -> bool:
    """Whether the values fill their memory without gaps or overlaps, image after image, in any order within one."""
    expected = 1
    inner = sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True))
    for stride, size in [*inner, (tensor.stride(0), tensor.shape[0])]:
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _expanded(tensor: Tensor) -> bool:
    """Whether one number in memory stands for all of several values."""
    return tensor.numel() > 1 and all(
        stride == 0 or size == 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _same_memory(value: Tensor, center: Tensor) -> bool:
    return (value.data_ptr(), value.dtype, value.stride()) == (center.data_ptr(), center.dtype, center.stride())
