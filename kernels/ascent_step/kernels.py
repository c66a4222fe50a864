"""Triton kernels of the ascent step and their launchers: sums, coefficients, update.

Notation: n image, k group, d = value - center, g gradient, [.,.] the inner product over a group in one image::

    sums          partial [g,g], [d,g], [d,d]; one program per chunk of one tensor of one image
    coefficients  in float64, one program per image: all partial sums in a fixed order, then
                  s = step * r_k^2 / length,   f = 1 / max(1, sqrt([d,d] + 2 s [d,g] + s^2 [g,g]) / r_k)
    update        out = center + f (value + s g - center)

Multi-tensor: the tensors of a :class:`~.batches.Batch` share one launch. Their addresses are a tuple argument of the
kernel; a program picks its tensor by comparing its index with running sums of chunks. So there is no pointer table in
device memory to fill, or to keep alive for a CUDA graph. Deterministic, without atomics.

Groups with parts have kernels of their own for sums and update (``maps.py``, ``convolutions.py``); their parts are
groups of the coefficients.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batches import AnyBatch, Batch, KernelBatch, MapBatch, Parts, make_batches
from .convolutions import KernelLaunch
from .maps import MapLaunch
from .tensors import find_chunk, pick

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
    which, size, begin = find_chunk(chunk, sizes, TENSORS, BLOCK * BLOCKS)
    gradient = pick(which, gradients, TENSORS) + n * size
    if not AT_CENTER:
        value = pick(which, values, TENSORS) + n * size
        center = pick(which, centers, TENSORS)
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


@triton.jit
def _radius(
    radii,  # tuple: radius per group
    radii_ptr,  # (groups,) fp32
    factor,  # of all radii of the image
    group,  # index of the group, constexpr
    IN_TENSOR: tl.constexpr,  # radii are at radii_ptr, not in the tuple
):
    """The radius of a group in one image, in float64."""
    if IN_TENSOR:
        return tl.load(radii_ptr + group).to(tl.float64) * factor
    return factor * radii[group]


@triton.jit(do_not_specialize=["width", "step_size"])
def _coefficients_kernel(
    partials_ptr,  # (N, groups, 3, width) fp32; 0 past the end of a group
    coefficients_ptr,  # (N, groups, 2) fp32: s, f
    radii,  # tuple: radius per group
    radii_ptr,  # (groups,) fp32; not read unless IN_TENSOR
    factors_ptr,  # (N,) fp32; not read unless FACTORS
    width,  # length of a row of partials
    step_size,  # step length as a fraction of the radius
    GROUPS: tl.constexpr,  # number of groups
    JOINT: tl.constexpr,  # one ball for all groups
    IN_TENSOR: tl.constexpr,  # radii are at radii_ptr, not in the tuple
    FACTORS: tl.constexpr,  # a factor per image on all radii
    BLOCK: tl.constexpr,  # partial sums per iteration
):
    """Grid: one program per image. In a joint ball s depends on all sums, and f on s: two passes over groups."""
    n = tl.program_id(0).to(tl.int64)
    partials = partials_ptr + n * GROUPS * SUMS * width
    coefficients = coefficients_ptr + n * GROUPS * COEFFICIENTS
    zero = tl.zeros((), dtype=tl.float64)
    factor = zero + 1
    if FACTORS:
        factor = tl.load(factors_ptr + n).to(tl.float64)
    all_lengths = zero
    if JOINT:
        for group in tl.static_range(GROUPS):
            radius = _radius(radii, radii_ptr, factor, group, IN_TENSOR)
            # Scale lengths, not squares: an infinite length times a zero radius is NaN, as in the definition.
            length = tl.sqrt(_total(partials + group * SUMS * width, width, BLOCK)) * radius
            all_lengths += length * length
    all_used = zero
    for group in tl.static_range(GROUPS):
        row = partials + group * SUMS * width
        radius = _radius(radii, radii_ptr, factor, group, IN_TENSOR)
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
            inside = tl.where(_radius(radii, radii_ptr, factor, group, IN_TENSOR) > 0, f, 0.0)
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
    which, size, begin = find_chunk(program % chunks, sizes, TENSORS, BLOCK * BLOCKS)
    gradient = pick(which, gradients, TENSORS) + n * size
    out = pick(which, outs, TENSORS) + n * size
    center = pick(which, centers, TENSORS)
    if EXPANDED:
        c = tl.load(center).to(tl.float32)
    else:
        center += n * size
    if not AT_CENTER:
        value = pick(which, values, TENSORS) + n * size
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
    radii: Sequence[float] | Tensor,
    step_size: float,
    joint: bool,
    parts: Sequence[Parts | None] | None = None,
    factors: Tensor | None = None,
) -> list[list[Tensor]]:
    """Return the new values; arguments as checked by the op."""
    outs, batches = make_batches(values, gradients, centers, parts)
    step(batches, values[0][0].shape[0], radii, step_size, joint, None, factors)
    return outs


def step(
    batches: Sequence[AnyBatch],
    images: int,
    radii: Sequence[float] | Tensor,
    step_size: float,
    joint: bool,
    config: Config | None = None,
    factors: Tensor | None = None,
) -> None:
    """Write the outputs of all batches; parts without a batch have no values.

    The groups of the kernels are the parts, of which a batch of convolutions has three.
    """
    launches = [_launch(part, config or CONFIG) for batch in batches for part in batch.split()]
    if not launches:
        return
    groups = len(radii)
    used = [0] * groups
    begins = []  # of launches, in their rows of partials
    for launch in launches:
        begins.append(used[launch.batch.group])
        for row in range(launch.batch.group, launch.batch.group + launch.batch.rows):
            used[row] += launch.columns
    width = max(used)
    device = launches[0].batch.outs[0].device
    partials = torch.zeros((images, groups, SUMS.value, width), dtype=torch.float32, device=device)
    coefficients = torch.empty((images, groups, COEFFICIENTS.value), dtype=torch.float32, device=device)
    for launch, begin in zip(launches, begins, strict=True):
        launch.sums(images, partials, begin)
    in_tensor = isinstance(radii, Tensor)
    _coefficients_kernel[images,](
        partials, coefficients, (0.0,) * groups if in_tensor else tuple(map(float, radii)),
        radii if in_tensor else partials, partials if factors is None else factors, width, float(step_size),
        GROUPS=groups, JOINT=joint, IN_TENSOR=int(in_tensor), FACTORS=int(factors is not None), BLOCK=PARTIALS_BLOCK,
        num_warps=4,
    )  # fmt: skip
    for launch in launches:
        launch.update(images, coefficients)


class Launch:
    """Launches of one batch of whole tensors; ``columns`` of a row of partial sums are its own."""

    def __init__(self, batch: Batch, config: Config) -> None:
        self.batch, self.config = batch, config
        self.columns = batch.chunks(config.chunk)

    def sums(self, images: int, partials: Tensor, first: int) -> None:
        """Fill this batch's columns of its row of partial sums, from ``first``."""
        batch = self.batch
        _sums_kernel[images * self.columns,](
            tuple(batch.values), tuple(batch.gradients), tuple(batch.centers), tuple(batch.sizes), partials,
            self.columns, batch.group, partials.shape[1], first, partials.shape[3],
            **_constants(batch, self.config),
        )  # fmt: skip

    def update(self, images: int, coefficients: Tensor) -> None:
        """Write the outputs."""
        batch = self.batch
        _update_kernel[images * self.columns,](
            tuple(batch.values), tuple(batch.gradients), tuple(batch.centers), tuple(batch.outs), tuple(batch.sizes),
            coefficients, self.columns, batch.group, coefficients.shape[1],
            **_constants(batch, self.config),
        )  # fmt: skip


def _launch(batch: AnyBatch, config: Config) -> Launch | MapLaunch | KernelLaunch:
    if isinstance(batch, KernelBatch):
        return KernelLaunch(batch)
    return MapLaunch(batch) if isinstance(batch, MapBatch) else Launch(batch, config)


def _constants(batch: Batch, config: Config) -> dict[str, int]:
    return {
        "TENSORS": len(batch.sizes),
        "AT_CENTER": int(batch.at_center),
        "EXPANDED": int(batch.expanded),
        "BLOCK": config.block,
        "BLOCKS": config.blocks,
        "num_warps": config.warps,
    }
