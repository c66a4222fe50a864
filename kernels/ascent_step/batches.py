"""Grouping of the ascent step's tensors into launches: memory order, alignment, and dtypes. Needs no Triton."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ..common.layout import in_order

MAX_TENSORS: Final = 32
"""Maximum number of tensors per launch: their addresses are kernel parameters, which are limited to 4 kB."""

_ALIGNMENT = 16  # values per image, and bytes of an address, that 16-byte accesses need


class Batch:
    """Tensors that one launch can update: of one group, with the same dtypes, all aligned or all not.

    Attributes:
        group: index of the group.
        at_center: values are the centers themselves: d is zero, and values are not read.
        expanded: every center is an expanded scalar.
        values, gradients, centers, outs: tensors (N, ...) in the same memory order, except expanded centers.
        sizes: values per image of each tensor.
    """

    def __init__(self, group: int, at_center: bool, expanded: bool) -> None:
        self.group = group
        self.at_center = at_center
        self.expanded = expanded
        self.values: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.centers: list[Tensor] = []
        self.outs: list[Tensor] = []
        self.sizes: list[int] = []

    def add(self, value: Tensor, gradient: Tensor, center: Tensor, out: Tensor, size: int) -> None:
        """Append a tensor; raises ValueError if offsets within an image do not fit 32 bits."""
        if size >= 2**31:
            raise ValueError(f"an image's part of a tensor must have fewer than 2**31 values, had {size}")
        self.values.append(value)
        self.gradients.append(gradient)
        self.centers.append(center)
        self.outs.append(out)
        self.sizes.append(size)

    def split(self) -> "list[Batch]":
        """Return batches of at most MAX_TENSORS tensors."""
        if len(self.sizes) <= MAX_TENSORS:
            return [self]
        parts = []
        for part in (slice(0, MAX_TENSORS), slice(MAX_TENSORS, None)):
            batch = Batch(self.group, self.at_center, self.expanded)
            for name in ("values", "gradients", "centers", "outs", "sizes"):
                setattr(batch, name, getattr(self, name)[part])
            parts += batch.split()
        return parts

    def chunks(self, chunk: int) -> int:
        """Programs per image, of ``chunk`` values each."""
        return sum(-(-size // chunk) for size in self.sizes)


def make_batches(
    values: Sequence[Sequence[Tensor]], gradients: Sequence[Sequence[Tensor]], centers: Sequence[Sequence[Tensor]]
) -> tuple[list[list[Tensor]], list[Batch]]:
    """Allocate the outputs, and sort the tensors into batches; empty tensors are in none."""
    outs: list[list[Tensor]] = []
    batches: dict[tuple[object, ...], Batch] = {}
    for index, group in enumerate(zip(values, gradients, centers, strict=True)):
        outs.append([])
        for tensors in zip(*group, strict=True):
            value, gradient, center, out = _in_same_order(*tensors)
            outs[-1].append(out)
            if out.numel() == 0:
                continue
            at_center = same_memory(value, center)
            expanded = _expanded(center)
            pointers = (center if at_center else value, gradient, center, out)
            size = out[0].numel()
            aligned = size % _ALIGNMENT == 0 and all(tensor.data_ptr() % _ALIGNMENT == 0 for tensor in pointers)
            key = (index, at_center, expanded, aligned, *(tensor.dtype for tensor in pointers))
            batch = batches.setdefault(key, Batch(index, at_center, expanded))
            batch.add(*pointers, size)
    return outs, list(batches.values())


def same_memory(value: Tensor, center: Tensor) -> bool:
    """Whether both are the same view of the same memory."""
    return (value.data_ptr(), value.dtype, value.stride()) == (center.data_ptr(), center.dtype, center.stride())


def _in_same_order(value: Tensor, gradient: Tensor, center: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The three tensors and a new output, in the same memory order except for expanded scalars.

    The order is that of the value if it is dense, else of the gradient if that is dense, else contiguous. Tensors in
    another order are copied, as is an expanded value that is not its center; neither occurs in an ascent that starts at
    :func:`sample_identity`.
    """
    at_center = same_memory(value, center)
    model = next((tensor for tensor in (value, gradient) if _dense(tensor)), None)
    strides = torch.empty(value.shape, device="meta").stride() if model is None else model.stride()
    out = torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)
    gradient = in_order(gradient, out)
    if not _expanded(center):
        center = in_order(center, out)
    value = center if at_center else in_order(value, out)
    return value, gradient, center, out


def _dense(tensor: Tensor) -> bool:
    """Whether values fill their memory without gaps or overlaps, image after image, in any order within an image."""
    expected = 1
    inner = sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True))
    for stride, size in [*inner, (tensor.stride(0), tensor.shape[0])]:
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _expanded(tensor: Tensor) -> bool:
    """Whether several values share a single memory location."""
    return tensor.numel() > 1 and all(
        stride == 0 or size == 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
