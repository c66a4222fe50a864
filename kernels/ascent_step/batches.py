"""Grouping of the ascent step's tensors into launches: memory order, alignment, and dtypes. Needs no Triton."""

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Final, Protocol, Self

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
        _check_size(size)
        self.values.append(value)
        self.gradients.append(gradient)
        self.centers.append(center)
        self.outs.append(out)
        self.sizes.append(size)

    rows = 1
    """Number of parts of the group: rows of sums from row ``group``."""

    def empty(self) -> Self:
        """A batch for tensors of the same kind."""
        return type(self)(self.group, self.at_center, self.expanded)

    def split(self) -> list[Self]:
        """Return batches of at most MAX_TENSORS tensors."""
        if len(self.sizes) <= MAX_TENSORS:
            return [self]
        halves = []
        for half in (slice(0, MAX_TENSORS), slice(MAX_TENSORS, None)):
            batch = self.empty()
            for name in ("values", "gradients", "centers", "outs", "sizes"):
                setattr(batch, name, getattr(self, name)[half])
            halves += batch.split()
        return halves

    def chunks(self, chunk: int) -> int:
        """Programs per image, of ``chunk`` values each."""
        return sum(-(-size // chunk) for size in self.sizes)


class MapBatch(Batch):
    """Maps (N, C, ...) of mean zero, with equal numbers of channels; sizes are pixels per map.

    Attributes:
        channels: C.
        channels_last: channels are contiguous in memory; else the pixels of a map.
    """

    def __init__(self, group: int, at_center: bool, expanded: bool, channels: int, channels_last: bool) -> None:
        super().__init__(group, at_center, expanded)
        self.channels, self.channels_last = channels, channels_last

    def empty(self) -> Self:
        """A batch for tensors of the same kind."""
        return type(self)(self.group, self.at_center, self.expanded, self.channels, self.channels_last)


class KernelBatch(Batch):
    """Convolutions in three parts, contiguous (N, O, I, 3, 3); sizes are 3x3 kernels per image.

    Attributes:
        symmetric: parts are point-symmetric.
    """

    rows = 3

    def __init__(self, group: int, at_center: bool, symmetric: bool) -> None:
        super().__init__(group, at_center, expanded=False)
        self.symmetric = symmetric

    def empty(self) -> Self:
        """A batch for tensors of the same kind."""
        return type(self)(self.group, self.at_center, self.symmetric)


AnyBatch = Batch | MapBatch | KernelBatch


class Parts(Protocol):
    """Parts of a group, see :mod:`andfast.functional.ascent_parts`."""

    names: ClassVar[tuple[str, ...]]
    """Of the parts: three of convolutions, with an attribute ``symmetric``, or one of maps."""


def make_batches(
    values: Sequence[Sequence[Tensor]],
    gradients: Sequence[Sequence[Tensor]],
    centers: Sequence[Sequence[Tensor]],
    parts: Sequence[Parts | None] | None = None,
) -> tuple[list[list[Tensor]], list[AnyBatch]]:
    """Allocate the outputs, and sort the tensors into batches; empty tensors are in none."""
    outs: list[list[Tensor]] = []
    batches: dict[tuple[object, ...], AnyBatch] = {}
    row = 0
    for group, part in zip(zip(values, gradients, centers, strict=True), parts or [None] * len(values), strict=True):
        outs.append([])
        for tensors in zip(*group, strict=True):
            if part is None:
                add = _add_whole
            else:
                symmetric = getattr(part, "symmetric", None)
                add = _add_map if symmetric is None else partial(_add_kernels, symmetric=symmetric)
            outs[-1].append(add(batches, row, *tensors))
        row += 1 if part is None else len(part.names)
    return outs, list(batches.values())


_Batches = dict[tuple[object, ...], AnyBatch]


def _add_whole(batches: _Batches, row: int, value: Tensor, gradient: Tensor, center: Tensor) -> Tensor:
    """Add a tensor of a group without parts; return its output."""
    value, gradient, center, out = _in_same_order(value, gradient, center)
    if out.numel():
        at_center, expanded = same_memory(value, center), _expanded(center)
        pointers = (center if at_center else value, gradient, center, out)
        size = out[0].numel()
        key = (row, at_center, expanded, _aligned(size, pointers), *(tensor.dtype for tensor in pointers))
        batches.setdefault(key, Batch(row, at_center, expanded)).add(*pointers, size)
    return out


def _add_map(batches: _Batches, row: int, value: Tensor, gradient: Tensor, center: Tensor) -> Tensor:
    """Add maps of mean zero; return their output. Their channels are made outermost unless they are innermost."""
    tensors = _in_same_order(value, gradient, center)
    channels = value.shape[1]
    channels_last = channels > 1 and tensors[3].stride(1) == 1
    pixels = math.prod(value.shape[2:])
    if not channels_last and channels > 1 and tensors[3].stride(1) != pixels:
        at_center = same_memory(value, center)
        center = center if _expanded(center) else center.contiguous()
        value = center if at_center else value.contiguous()
        tensors = value, gradient.contiguous(), center, torch.empty(value.shape, dtype=value.dtype, device=value.device)
    value, gradient, center, out = tensors
    if out.numel():
        at_center, expanded = same_memory(value, center), _expanded(center)
        pointers = (center if at_center else value, gradient, center, out)
        aligned = pixels % _ALIGNMENT == 0 and _aligned(channels * pixels, pointers)
        kind = (row, at_center, expanded, channels, channels_last)
        key = (*kind, aligned, *(tensor.dtype for tensor in pointers))
        _check_size(channels * pixels)
        batches.setdefault(key, MapBatch(*kind)).add(*pointers, pixels)
    return out


def _add_kernels(
    batches: _Batches, row: int, value: Tensor, gradient: Tensor, center: Tensor, *, symmetric: bool
) -> Tensor:
    """Add convolutions in parts; return their output. Contiguous copies are made of what is not."""
    at_center = same_memory(value, center)
    center = center.contiguous()
    value = center if at_center else value.contiguous()
    gradient, out = gradient.contiguous(), torch.empty_like(value)
    if out.numel():
        pointers = (value, gradient, center, out)
        key = (row, at_center, symmetric, *(tensor.dtype for tensor in pointers))
        _check_size(out[0].numel())
        batches.setdefault(key, KernelBatch(row, at_center, symmetric)).add(*pointers, out[0].numel() // 9)
    return out


def _aligned(size: int, pointers: Sequence[Tensor]) -> bool:
    """Whether 16-byte accesses are possible."""
    return size % _ALIGNMENT == 0 and all(tensor.data_ptr() % _ALIGNMENT == 0 for tensor in pointers)


def _check_size(size: int) -> None:
    if size >= 2**31:
        raise ValueError(f"an image's part of a tensor must have fewer than 2**31 values, had {size}")


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
