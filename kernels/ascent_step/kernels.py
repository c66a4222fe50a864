"""Triton kernels of the ascent step and their launchers: sums, coefficients, update.

Notation: n image, k group, d = value - center, g gradient, [.,.] the inner product over a group in one image::

    sums          partial [g,g], [d,g], [d,d]; one program per chunk of one tensor of one image
    coefficients  in float64, one program per image: all partial sums in a fixed order, then
                  s = step * r_k^2 / length,   f = 1 / max(1, sqrt([d,d] + 2 s [d,g] + s^2 [g,g]) / r_k)
    update        out = center + f (value + s g - center)

Multi-tensor: the tensors of a :class:`~.batches.Batch` share one launch. Their addresses are a tuple argument of the
kernel; a program picks its tensor by comparing its index with running sums of chunks. So there is no pointer table in
device memory to fill, or to keep alive for a CUDA graph. Deterministic, without atomics.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batches import Batch, make_batches

SUMS = tl.constexpr(3)  # [g,g], [d,g], [d,d]
COEFFICIENTS = tl.constexpr(2)  # s, f
PARTIALS_BLOCK = 1024  # partial sums per iteration of the coefficients kernel


class Config(NamedTuple):
    """Launch configuration. Both passes are memory-bound, so one configuration serves every architecture."""

    block: int = 2048
    """Values per iteration of a program, a power of two."""
    blocks: int = 8
    """Iterations per program; a chunk is ``block * blocks`` values."""
    warps: int = 4
    """Warps per program."""

    @property
    def chunk(self) -> int:
        """Values per program."""
        return self.block * self.blocks


CONFIG: Final = Config()

# ------------------------------------------------------------------------------------------------------------ kernels


@triton.jit
def _pick(
    which,  # index of a tensor
    choices,  # tuple of pointers or integers
    TENSORS: tl.constexpr,  # length of the tuple
):
    """choices[which] for an index known only at run time."""
    picked = choices[0]
    for index in tl.static_range(1, TENSORS):
        picked = tl.where(which == index, choices[index], picked)
    return picked


@triton.jit
def _find_chunk(
    chunk,  # index of the chunk within the image
    sizes,  # tuple: values per image of each tensor
    TENSORS: tl.constexpr,  # number of tensors
    CHUNK: tl.constexpr,  # values per chunk
):
    """(tensor index, its size, offset of the chunk within it)."""
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
    centers,  # tuple of (N, size), or of scalars
    sizes,  # tuple: values per image of each tensor
    partials_ptr,  # (N, groups, 3, width) fp32
    chunks,  # programs per image
    group,  # index of the group
    groups,  # number of groups
    first,  # offset of this launch in a row of partials
    width,  # length of a row of partials
    TENSORS: tl.constexpr,  # number of tensors
    AT_CENTER: tl.constexpr,  # d is zero; values and centers are not read
    EXPANDED: tl.constexpr,  # centers are scalars
    BLOCK: tl.constexpr,  # values per iteration
    BLOCKS: tl.constexpr,  # iterations per program
):
    """Grid: one program per chunk of one tensor of one image; programs of an image are consecutive."""
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
    row,  # pointer to a row of partial sums
    width,  # length of the row
    BLOCK: tl.constexpr,  # partial sums per iteration
):
    """Sum of a row in float64."""
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(row + at, mask=at < width, other=0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["width", "step_size"])
def _coefficients_kernel(
    partials_ptr,  # (N, groups, 3, width) fp32; 0 past the end of a group
    coefficients_ptr,  # (N, groups, 2) fp32: s, f
    radii,  # tuple: radius per group
    width,  # length of a row of partials
    step_size,  # step length as a fraction of the radius
    GROUPS: tl.constexpr,  # number of groups
    JOINT: tl.constexpr,  # one ball for all groups
    BLOCK: tl.constexpr,  # partial sums per iteration
):
    """Grid: one program per image. In a joint ball s depends on all sums, and f on s: two passes over groups."""
    n = tl.program_id(0).to(tl.int64)
    partials = partials_ptr + n * GROUPS * SUMS * width
    coefficients = coefficients_ptr + n * GROUPS * COEFFICIENTS
    zero = tl.zeros((), dtype=tl.float64)
    all_lengths = zero
    if JOINT:
        for group in tl.static_range(GROUPS):
            radius = zero + radii[group]
            # Scale lengths, not squares: an infinite length times a zero radius is NaN, as in the definition.
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
        # Round s as the update reads it, so that the norm is that of the written values.
        s = tl.where(length > 0, (zero + step_size) * radius * radius / length, 0.0).to(tl.float32)
        tl.store(coefficients + group * COEFFICIENTS, s)
        s = s.to(tl.float64)
        square = dd + 2 * s * dg + s * s * gg
        square = tl.where(square < 0, 0.0, square)  # rounding, if the step leads back to the center; keeps NaN
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
    centers,  # tuple of (N, size), or of scalars
    outs,  # tuple of (N, size)
    sizes,  # tuple: values per image of each tensor
    coefficients_ptr,  # (N, groups, 2) fp32: s, f
    chunks,  # programs per image
    group,  # index of the group
    groups,  # number of groups
    TENSORS: tl.constexpr,  # number of tensors
    AT_CENTER: tl.constexpr,  # values are the centers and not read
    EXPANDED: tl.constexpr,  # centers are scalars
    BLOCK: tl.constexpr,  # values per iteration
    BLOCKS: tl.constexpr,  # iterations per program
):
    """Grid: one program per chunk of one tensor of one image; programs of an image are consecutive."""
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
        # The two forms of torch.lerp: exactly the center at f = 0, exactly the moved value at f = 1.
        away = moved - c
        new = tl.where(f < 0.5, c + f * away, moved - away * (1 - f))
        tl.store(out + at, new.to(out.dtype.element_ty), mask=at < size)


# ----------------------------------------------------------------------------------------------------------- launches


def ascent_step(
    values: Sequence[Sequence[Tensor]],
    gradients: Sequence[Sequence[Tensor]],
    centers: Sequence[Sequence[Tensor]],
    radii: Sequence[float],
    step_size: float,
    joint: bool,
) -> list[list[Tensor]]:
    """Return the new values; arguments as checked by the op."""
    outs, batches = make_batches(values, gradients, centers)
    step(batches, values[0][0].shape[0], radii, step_size, joint)
    return outs


def step(
    batches: Sequence[Batch],
    images: int,
    radii: Sequence[float],
    step_size: float,
    joint: bool,
    config: Config | None = None,
) -> None:
    """Write the outputs of all batches; groups without a batch have no values."""
    config = config or CONFIG
    batches = [part for batch in batches for part in batch.split()]
    if not batches:
        return
    groups = len(radii)
    used = [0] * groups
    begins = []  # of batches, in the row of partials of their group
    for batch in batches:
        begins.append(used[batch.group])
        used[batch.group] += batch.chunks(config.chunk)
    width = max(used)
    device = batches[0].outs[0].device
    partials = torch.zeros((images, groups, SUMS.value, width), dtype=torch.float32, device=device)
    coefficients = torch.empty((images, groups, COEFFICIENTS.value), dtype=torch.float32, device=device)
    for batch, begin in zip(batches, begins, strict=True):
        chunks = batch.chunks(config.chunk)
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
        chunks = batch.chunks(config.chunk)
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
