"""The ascent step's Triton kernels and their launchers: sums, coefficients, update.

Notation: n image, k group, d = value - center, g gradient, [.,.] the sum over all values of a group of an image::

    sums          partial sums of [g,g], [d,g], [d,d]: a program takes a chunk of one tensor of one image
    coefficients  in float64, a program an image: all partial sums in a fixed order, then
                  s = step * r_k^2 / length,   f = 1 / max(1, sqrt([d,d] + 2 s [d,g] + s^2 [g,g]) / r_k)
    update        out = center + f (value + s g - center)

Multi-tensor: the tensors of a :class:`Batch` share one launch. Their addresses are arguments of the kernel, as a tuple;
a program picks its tensor by comparing its number with running sums of chunks. So there is no table on the device to be
filled, nothing for a CUDA graph to outlive, no atomics, and two runs give the same bits. docs/kernels.md counts.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

SUMS = tl.constexpr(3)  # [g,g], [d,g], [d,d]
COEFFICIENTS = tl.constexpr(2)  # s, f
PARTIALS_BLOCK = 1024  # partial sums a step of the coefficients' kernel


class Config(NamedTuple):
    """How the two passes are cut. Both wait for memory alone, so one choice serves every architecture."""

    block: int = 2048
    """Values that a program has in flight, a power of two."""
    blocks: int = 8
    """Blocks of a chunk, one after another; a chunk is a program's part of one tensor of one image."""
    warps: int = 4
    """Warps of a program."""


CONFIG: Final = Config()
MAX_TENSORS: Final = 32
"""Tensors of a launch at most: their addresses are parameters of the kernel, of which there are 4 kB."""


class Batch:
    """Tensors that one launch can take: of one group, with equal dtypes, and aligned or not.

    Attributes:
        group: index of the group.
        at_center: values are the centers themselves: d is zero, and values are not read.
        expanded: every center is one number in memory.
        values, gradients, centers, outs: tensors (N, ...) of equal order in memory, but for expanded ones.
        sizes: values of an image of each.
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
        """Append a tensor; offsets within an image are 32-bit."""
        if size >= 2**31:
            raise ValueError(f"an image's part of a tensor must have fewer than 2**31 values, had {size}")
        self.values.append(value)
        self.gradients.append(gradient)
        self.centers.append(center)
        self.outs.append(out)
        self.sizes.append(size)

    def parts(self) -> "list[Batch]":
        """The same in batches of MAX_TENSORS at most."""
        if len(self.sizes) <= MAX_TENSORS:
            return [self]
        halves = []
        for some in (slice(0, MAX_TENSORS), slice(MAX_TENSORS, None)):
            half = Batch(self.group, self.at_center, self.expanded)
            for name in ("values", "gradients", "centers", "outs", "sizes"):
                setattr(half, name, getattr(self, name)[some])
            halves += half.parts()
        return halves

    def chunks(self, config: Config) -> int:
        """Programs that an image takes."""
        return sum(triton.cdiv(size, config.block * config.blocks) for size in self.sizes)


# ------------------------------------------------------------------------------------------------------------ kernels


@triton.jit
def _pick(
    which,  # index of a tensor
    choices,  # a tuple of addresses or numbers
    TENSORS: tl.constexpr,  # how many
):
    """choices[which], for an index that is known to the running program only."""
    picked = choices[0]
    for other in tl.static_range(1, TENSORS):
        picked = tl.where(which == other, choices[other], picked)
    return picked


@triton.jit
def _find_chunk(
    chunk,  # number of the chunk within the image
    sizes,  # values of an image of each tensor
    TENSORS: tl.constexpr,  # how many tensors
    CHUNK: tl.constexpr,  # values of a chunk
):
    """(which tensor, its size, the chunk's first value within it)."""
    which = chunk * 0
    begun = chunk * 0
    total = chunk * 0
    size = chunk * 0
    for tensor in tl.static_range(TENSORS):
        here = chunk >= total
        which = tl.where(here, tensor, which)
        begun = tl.where(here, total, begun)
        size = tl.where(here, sizes[tensor], size)
        total += (sizes[tensor] + CHUNK - 1) // CHUNK
    return which, size, (chunk - begun) * CHUNK


@triton.jit(do_not_specialize=["chunks", "group", "groups", "first", "width"])
def _sums_kernel(
    values,  # tuple of (N, size)
    gradients,  # tuple of (N, size)
    centers,  # tuple of (N, size), or of single numbers
    sizes,  # tuple: values of an image of each
    partials_ptr,  # (N, groups, 3, width) in fp32
    chunks,  # programs of an image
    group,  # index of the group
    groups,  # number of groups
    first,  # where in a row of partials this launch begins
    width,  # of a row of partials
    TENSORS: tl.constexpr,  # how many tensors
    AT_CENTER: tl.constexpr,  # d is zero, values and centers are not read
    EXPANDED: tl.constexpr,  # a center is a single number
    BLOCK: tl.constexpr,  # values at a time
    BLOCKS: tl.constexpr,  # blocks of a chunk
):
    """One program: one chunk of one tensor of one image; chunks of an image are neighbours."""
    program = tl.program_id(0)
    n = (program // chunks).to(tl.int64)
    chunk = program % chunks
    which, size, begin = _find_chunk(chunk, sizes, TENSORS, BLOCK * BLOCKS)
    gradient = _pick(which, gradients, TENSORS) + n * size
    if not AT_CENTER:
        value = _pick(which, values, TENSORS) + n * size
        center = _pick(which, centers, TENSORS)
        if EXPANDED:
            c = tl.load(center).to(tl.float32)
        else:
            center += n * size
    gg = tl.zeros((BLOCK,), dtype=tl.float32)
    dg = tl.zeros((BLOCK,), dtype=tl.float32)
    dd = tl.zeros((BLOCK,), dtype=tl.float32)
    for block in range(BLOCKS):
        at = begin + block * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(gradient + at, mask=at < size, other=0.0).to(tl.float32)
        gg += g * g
        if not AT_CENTER:
            v = tl.load(value + at, mask=at < size, other=0.0).to(tl.float32)
            if not EXPANDED:
                c = tl.load(center + at, mask=at < size, other=0.0).to(tl.float32)
            d = tl.where(at < size, v - c, 0.0)
            dg += d * g
            dd += d * d
    row = partials_ptr + (n * groups + group) * SUMS * width + first + chunk
    tl.store(row, tl.sum(gg, axis=0))
    if not AT_CENTER:
        tl.store(row + width, tl.sum(dg, axis=0))
        tl.store(row + 2 * width, tl.sum(dd, axis=0))


@triton.jit
def _total(
    row,  # address of a row of partial sums
    width,  # how many
    BLOCK: tl.constexpr,  # at a time
):
    """Their sum in float64."""
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(row + at, mask=at < width, other=0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["width", "step_size"])
def _coefficients_kernel(
    partials_ptr,  # (N, groups, 3, width) in fp32; zeros beyond a group's own
    coefficients_ptr,  # (N, groups, 2) in fp32: s, f
    radii,  # tuple of a group's radius
    width,  # of a row of partials
    step_size,  # length of the step in radii
    GROUPS: tl.constexpr,  # number of groups
    JOINT: tl.constexpr,  # one ball for all groups
    BLOCK: tl.constexpr,  # partial sums at a time
):
    """One program: one image. In a joint ball s takes the sums of all groups and f the s of all: two rounds of them."""
    n = tl.program_id(0).to(tl.int64)
    partials = partials_ptr + n * GROUPS * SUMS * width
    coefficients = coefficients_ptr + n * GROUPS * COEFFICIENTS
    zero = tl.zeros((), dtype=tl.float64)
    all_lengths = zero
    if JOINT:
        for group in tl.static_range(GROUPS):
            radius = zero + radii[group]
            # As a product of lengths: an infinite one times a radius of zero is NaN, as in the definition.
            length = tl.sqrt(_total(partials + group * SUMS * width, width, BLOCK)) * radius
            all_lengths += length * length
    all_used = zero
    for group in tl.static_range(GROUPS):
        row = partials + group * SUMS * width
        radius = zero + radii[group]
        gg = _total(row, width, BLOCK)
        dg = _total(row + width, width, BLOCK)
        dd = _total(row + 2 * width, width, BLOCK)
        length = tl.sqrt(all_lengths) if JOINT else tl.sqrt(gg) * radius
        # Rounded as the update will have it: the norm is that of what will be written.
        s = tl.where(length > 0, (zero + step_size) * radius * radius / length, 0.0).to(tl.float32)
        tl.store(coefficients + group * COEFFICIENTS, s)
        s = s.to(tl.float64)
        square = dd + 2 * s * dg + s * s * gg
        square = tl.where(square < 0, 0.0, square)  # rounding, where the step leads back to the center; NaN stays
        used = tl.where(radius > 0, tl.sqrt(square) / radius, 0.0)
        all_used += used * used
        f = tl.where(used <= 1, 1.0, 1 / used)
        tl.store(coefficients + group * COEFFICIENTS + 1, tl.where(radius > 0, f, 0.0).to(tl.float32))
    if JOINT:
        used = tl.sqrt(all_used)
        f = tl.where(used <= 1, 1.0, 1 / used)
        for group in tl.static_range(GROUPS):
            inside = tl.where(zero + radii[group] > 0, f, 0.0)
            tl.store(coefficients + group * COEFFICIENTS + 1, inside.to(tl.float32))


@triton.jit(do_not_specialize=["chunks", "group", "groups"])
def _update_kernel(
    values,  # tuple of (N, size)
    gradients,  # tuple of (N, size)
    centers,  # tuple of (N, size), or of single numbers
    outs,  # tuple of (N, size)
    sizes,  # tuple: values of an image of each
    coefficients_ptr,  # (N, groups, 2) in fp32: s, f
    chunks,  # programs of an image
    group,  # index of the group
    groups,  # number of groups
    TENSORS: tl.constexpr,  # how many tensors
    AT_CENTER: tl.constexpr,  # values are the centers, and are not read
    EXPANDED: tl.constexpr,  # a center is a single number
    BLOCK: tl.constexpr,  # values at a time
    BLOCKS: tl.constexpr,  # blocks of a chunk
):
    """One program: one chunk of one tensor of one image; chunks of an image are neighbours."""
    program = tl.program_id(0)
    n = (program // chunks).to(tl.int64)
    which, size, begin = _find_chunk(program % chunks, sizes, TENSORS, BLOCK * BLOCKS)
    gradient = _pick(which, gradients, TENSORS) + n * size
    out = _pick(which, outs, TENSORS) + n * size
    center = _pick(which, centers, TENSORS)
    if EXPANDED:
        c = tl.load(center).to(tl.float32)
    else:
        center += n * size
    if not AT_CENTER:
        value = _pick(which, values, TENSORS) + n * size
    s = tl.load(coefficients_ptr + (n * groups + group) * COEFFICIENTS)
    f = tl.load(coefficients_ptr + (n * groups + group) * COEFFICIENTS + 1)
    for block in range(BLOCKS):
        at = begin + block * BLOCK + tl.arange(0, BLOCK)
        g = tl.load(gradient + at, mask=at < size, other=0.0).to(tl.float32)
        if not EXPANDED:
            c = tl.load(center + at, mask=at < size, other=0.0).to(tl.float32)
        moved = c + s * g
        if not AT_CENTER:
            moved = tl.load(value + at, mask=at < size, other=0.0).to(tl.float32) + s * g
        # torch.lerp's two forms: exactly the center at f = 0, exactly what was moved at f = 1.
        away = moved - c
        new = tl.where(f < 0.5, c + f * away, moved - away * (1 - f))
        tl.store(out + at, new.to(out.dtype.element_ty), mask=at < size)


# ----------------------------------------------------------------------------------------------------------- launches


def step(
    batches: Sequence[Batch],
    images: int,
    radii: Sequence[float],
    step_size: float,
    joint: bool,
    config: Config | None = None,
) -> None:
    """Fill the outputs of all batches; groups without a batch have no values."""
    config = config or CONFIG
    batches = [part for batch in batches for part in batch.parts()]
    if not batches:
        return
    groups = len(radii)
    used = [0] * groups
    begins = []
    for batch in batches:
        begins.append(used[batch.group])
        used[batch.group] += batch.chunks(config)
    width = max(used)
    device = batches[0].outs[0].device
    partials = torch.zeros((images, groups, SUMS.value, width), dtype=torch.float32, device=device)
    coefficients = torch.empty((images, groups, COEFFICIENTS.value), dtype=torch.float32, device=device)
    for batch, begin in zip(batches, begins, strict=True):
        chunks = batch.chunks(config)
        _sums_kernel[images * chunks,](
            tuple(batch.values), tuple(batch.gradients), tuple(batch.centers), tuple(batch.sizes), partials,
            chunks, batch.group, groups, begin, width,
            **_constants(batch, config),
        )  # fmt: skip
    _coefficients_kernel[images,](
        partials, coefficients, tuple(map(float, radii)), width, float(step_size),
        GROUPS=groups, JOINT=joint, BLOCK=PARTIALS_BLOCK, num_warps=4,
    )  # fmt: skip
    for batch in batches:
        chunks = batch.chunks(config)
        _update_kernel[images * chunks,](
            tuple(batch.values), tuple(batch.gradients), tuple(batch.centers), tuple(batch.outs), tuple(batch.sizes),
            coefficients, chunks, batch.group, groups,
            **_constants(batch, config),
        )  # fmt: skip


def _constants(batch: Batch, config: Config) -> dict[str, int]:
    return {
        "TENSORS": len(batch.sizes),
        "AT_CENTER": int(batch.at_center),
        "EXPANDED": int(batch.expanded),
        "BLOCK": config.block,
        "BLOCKS": config.blocks,
        "num_warps": config.warps,
    }
