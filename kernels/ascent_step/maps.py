"""Triton kernels of the ascent step for maps of mean zero, and their launches: sums, means, update.

Notation: n image, c channel, q chunk of pixels, m mean over the pixels of a map, d = value - center, g gradient::

    sums    one program per chunk q and block of channels: m_q of g and of d per channel, and the partial sums of
            (g - m_q)^2, (d - m_q)(g - m_q), (d - m_q)^2
    means   one program per image, tensor and block of channels, in float64: m from all m_q, and as further partial sums
            what lies between chunks, such as the sum of n_q (m_q - m)^2
    update  out = center + f (d - m(d) + s (g - m(g)))

So the mean costs no pass of its own. Sums are centered where they are taken, around a value near the mean, because
sum(g^2) - n m^2 cancels where a gradient is nearly constant.
"""

from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batches import MapBatch
from .tensors import pick

MOMENTS: Final = tl.constexpr(2)  # means of g and of d


class MapConfig(NamedTuple):
    """Launch configuration of the kernels over maps."""

    block: int = 1024
    """Values per iteration of a program, a power of two."""
    blocks: int = 16
    """Iterations per program."""
    warps: int = 4
    """Warps per program."""

    def tile(self, channels: int, channels_last: bool) -> tuple[int, int]:
        """(pixels, channels) of an iteration."""
        lanes = min(triton.next_power_of_2(channels), self.block) if channels_last else 1
        return self.block // lanes, lanes


CONFIG: Final = MapConfig()


@triton.jit
def _find_maps(
    chunk,  # index of the chunk within the image
    sizes,  # tuple: pixels per map of each tensor
    channel_blocks,  # blocks of channels
    TENSORS: tl.constexpr,  # number of tensors
    PIXELS: tl.constexpr,  # pixels per chunk
):
    """(tensor index, its pixels, block of channels, first pixel)."""
    which = chunk * 0
    begun = chunk * 0
    total = chunk * 0
    pixels = chunk * 0
    for tensor in tl.static_range(TENSORS):
        here = chunk >= total
        which = tl.where(here, tensor, which)
        begun = tl.where(here, total, begun)
        pixels = tl.where(here, sizes[tensor], pixels)
        total += channel_blocks * ((sizes[tensor] + PIXELS - 1) // PIXELS)
    rows = (pixels + PIXELS - 1) // PIXELS
    return which, pixels, (chunk - begun) // rows, (chunk - begun) % rows * PIXELS


@triton.jit(do_not_specialize=["chunks", "channel_blocks", "part", "parts", "first", "width"])
def _map_sums_kernel(
    values,  # tuple of (N, pixels * channels)
    gradients,  # tuple of (N, pixels * channels)
    centers,  # tuple of (N, pixels * channels), or of scalars
    sizes,  # tuple: pixels per map of each tensor
    partials_ptr,  # (N, parts, 3, width) fp32
    chunk_means_ptr,  # (N, 2, chunks, LANES) fp32
    chunks,  # programs per image
    channels,  # channels
    channel_blocks,  # blocks of LANES channels
    part,  # index of the part
    parts,  # number of parts
    first,  # offset of this launch in a row of partials
    width,  # length of a row of partials
    TENSORS: tl.constexpr,  # number of tensors
    AT_CENTER: tl.constexpr,  # d is zero; values and centers are not read
    EXPANDED: tl.constexpr,  # centers are scalars
    CHANNELS_LAST: tl.constexpr,  # channels are contiguous; else the pixels of a map
    ROWS: tl.constexpr,  # pixels per iteration
    LANES: tl.constexpr,  # channels per iteration
    BLOCKS: tl.constexpr,  # iterations per program
):
    """Grid: one program per chunk of pixels and block of channels of one tensor of one image."""
    program = tl.program_id(0)
    n = (program // chunks).to(tl.int64)
    chunk = program % chunks
    which, pixels, channel_block, begin = _find_maps(chunk, sizes, channel_blocks, TENSORS, ROWS * BLOCKS)
    gradient = pick(which, gradients, TENSORS) + n * pixels * channels
    if not AT_CENTER:
        value = pick(which, values, TENSORS) + n * pixels * channels
        center = pick(which, centers, TENSORS)
        if EXPANDED:
            c = tl.load(center).to(tl.float32)
        else:
            center += n * pixels * channels
    channel = (channel_block * LANES + tl.arange(0, LANES))[None, :]
    pixel = begin + tl.arange(0, ROWS)[:, None]
    at = pixel * channels + channel if CHANNELS_LAST else channel * pixels + pixel
    inside = (pixel < pixels) & (channel < channels)
    here = tl.minimum(pixels - begin, ROWS).to(tl.float32)
    shift = tl.sum(tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32), axis=0) / here  # near the mean
    g1 = tl.zeros((ROWS, LANES), dtype=tl.float32)
    gg = tl.zeros((ROWS, LANES), dtype=tl.float32)
    d1 = tl.zeros((ROWS, LANES), dtype=tl.float32)
    dg = tl.zeros((ROWS, LANES), dtype=tl.float32)
    dd = tl.zeros((ROWS, LANES), dtype=tl.float32)
    for block in range(BLOCKS):
        pixel = begin + block * ROWS + tl.arange(0, ROWS)[:, None]
        at = pixel * channels + channel if CHANNELS_LAST else channel * pixels + pixel
        inside = (pixel < pixels) & (channel < channels)
        g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.where(inside, g - shift[None, :], 0.0)
        g1 += g
        gg += g * g
        if not AT_CENTER:
            v = tl.load(value + at, mask=inside, other=0.0).to(tl.float32)
            if not EXPANDED:
                c = tl.load(center + at, mask=inside, other=0.0).to(tl.float32)
            d = tl.where(inside, v - c, 0.0)
            d1 += d
            dg += d * g
            dd += d * d
    count = tl.minimum(pixels - begin, ROWS * BLOCKS).to(tl.float32)
    g_sum = tl.sum(g1, axis=0)
    row = partials_ptr + (n * parts + part) * 3 * width + first + chunk
    means = chunk_means_ptr + (n * MOMENTS * chunks + chunk) * LANES + tl.arange(0, LANES)
    tl.store(row, tl.sum(tl.sum(gg, axis=0) - g_sum * g_sum / count, axis=0))
    tl.store(means, shift + g_sum / count)
    if not AT_CENTER:
        d_sum = tl.sum(d1, axis=0)
        tl.store(row + width, tl.sum(tl.sum(dg, axis=0) - d_sum * g_sum / count, axis=0))
        tl.store(row + 2 * width, tl.sum(tl.sum(dd, axis=0) - d_sum * d_sum / count, axis=0))
        tl.store(means + chunks * LANES, d_sum / count)


@triton.jit(do_not_specialize=["chunks", "channel_blocks", "part", "parts", "first", "width"])
def _map_means_kernel(
    sizes,  # tuple: pixels per map of each tensor
    partials_ptr,  # (N, parts, 3, width) fp32
    chunk_means_ptr,  # (N, 2, chunks, LANES) fp32
    means_ptr,  # (N, TENSORS, 2, channel_blocks, LANES) fp32
    chunks,  # chunks per image
    channel_blocks,  # blocks of LANES channels
    part,  # index of the part
    parts,  # number of parts
    first,  # offset of these partial sums in a row of partials
    width,  # length of a row of partials
    TENSORS: tl.constexpr,  # number of tensors
    AT_CENTER: tl.constexpr,  # d is zero
    PIXELS: tl.constexpr,  # pixels per chunk
    LANES: tl.constexpr,  # channels per block
    BLOCK: tl.constexpr,  # chunks per iteration
):
    """Grid: one program per image, tensor and block of channels."""
    program = tl.program_id(0)
    channel_block = program % channel_blocks
    which = program // channel_blocks % TENSORS
    n = (program // channel_blocks // TENSORS).to(tl.int64)
    begun = channel_block * 0
    pixels = channel_block * 0
    for tensor in tl.static_range(TENSORS):
        begun += tl.where(tensor < which, channel_blocks * ((sizes[tensor] + PIXELS - 1) // PIXELS), 0)
        pixels = tl.where(tensor == which, sizes[tensor], pixels)
    rows = (pixels + PIXELS - 1) // PIXELS
    lane = tl.arange(0, LANES)[None, :]
    chunk_means = chunk_means_ptr + (n * MOMENTS * chunks + begun + channel_block * rows) * LANES
    g1 = tl.zeros((BLOCK, LANES), dtype=tl.float64)
    d1 = tl.zeros((BLOCK, LANES), dtype=tl.float64)
    for row in range(0, rows, BLOCK):
        q = row + tl.arange(0, BLOCK)[:, None]
        count = tl.minimum(pixels - q * PIXELS, PIXELS).to(tl.float64)
        at = chunk_means + q * LANES + lane
        g1 += count * tl.load(at, mask=q < rows, other=0.0).to(tl.float64)
        if not AT_CENTER:
            d1 += count * tl.load(at + chunks * LANES, mask=q < rows, other=0.0).to(tl.float64)
    g_mean = (tl.sum(g1, axis=0) / pixels)[None, :]
    d_mean = (tl.sum(d1, axis=0) / pixels)[None, :]
    gg = tl.zeros((BLOCK, LANES), dtype=tl.float64)
    dg = tl.zeros((BLOCK, LANES), dtype=tl.float64)
    dd = tl.zeros((BLOCK, LANES), dtype=tl.float64)
    for row in range(0, rows, BLOCK):
        q = row + tl.arange(0, BLOCK)[:, None]
        count = tl.where(q < rows, tl.minimum(pixels - q * PIXELS, PIXELS), 0).to(tl.float64)
        at = chunk_means + q * LANES + lane
        g = tl.load(at, mask=q < rows, other=0.0).to(tl.float64) - g_mean
        gg += count * g * g
        if not AT_CENTER:
            d = tl.load(at + chunks * LANES, mask=q < rows, other=0.0).to(tl.float64) - d_mean
            dg += count * d * g
            dd += count * d * d
    row = partials_ptr + (n * parts + part) * 3 * width + first + which * channel_blocks + channel_block
    out = means_ptr + ((n * TENSORS + which) * MOMENTS * channel_blocks + channel_block) * LANES + lane
    tl.store(row, tl.sum(tl.sum(gg, axis=0), axis=0).to(tl.float32))
    tl.store(out, g_mean.to(tl.float32))
    if not AT_CENTER:
        tl.store(row + width, tl.sum(tl.sum(dg, axis=0), axis=0).to(tl.float32))
        tl.store(row + 2 * width, tl.sum(tl.sum(dd, axis=0), axis=0).to(tl.float32))
        tl.store(out + channel_blocks * LANES, d_mean.to(tl.float32))


@triton.jit(do_not_specialize=["chunks", "channel_blocks", "part", "parts"])
def _map_update_kernel(
    values,  # tuple of (N, pixels * channels)
    gradients,  # tuple of (N, pixels * channels)
    centers,  # tuple of (N, pixels * channels), or of scalars
    outs,  # tuple of (N, pixels * channels)
    sizes,  # tuple: pixels per map of each tensor
    coefficients_ptr,  # (N, parts, 2) fp32: s, f
    means_ptr,  # (N, TENSORS, 2, channel_blocks, LANES) fp32
    chunks,  # programs per image
    channels,  # channels
    channel_blocks,  # blocks of LANES channels
    part,  # index of the part
    parts,  # number of parts
    TENSORS: tl.constexpr,  # number of tensors
    AT_CENTER: tl.constexpr,  # values are the centers and not read
    EXPANDED: tl.constexpr,  # centers are scalars
    CHANNELS_LAST: tl.constexpr,  # channels are contiguous; else the pixels of a map
    ROWS: tl.constexpr,  # pixels per iteration
    LANES: tl.constexpr,  # channels per iteration
    BLOCKS: tl.constexpr,  # iterations per program
):
    """Grid: one program per chunk of pixels and block of channels of one tensor of one image."""
    program = tl.program_id(0)
    n = (program // chunks).to(tl.int64)
    which, pixels, channel_block, begin = _find_maps(program % chunks, sizes, channel_blocks, TENSORS, ROWS * BLOCKS)
    gradient = pick(which, gradients, TENSORS) + n * pixels * channels
    out = pick(which, outs, TENSORS) + n * pixels * channels
    center = pick(which, centers, TENSORS)
    if EXPANDED:
        c = tl.load(center).to(tl.float32)
    else:
        center += n * pixels * channels
    if not AT_CENTER:
        value = pick(which, values, TENSORS) + n * pixels * channels
    s = tl.load(coefficients_ptr + (n * parts + part) * 2)
    f = tl.load(coefficients_ptr + (n * parts + part) * 2 + 1)
    means = means_ptr + ((n * TENSORS + which) * MOMENTS * channel_blocks + channel_block) * LANES + tl.arange(0, LANES)
    g_mean = tl.load(means)[None, :]
    if not AT_CENTER:
        d_mean = tl.load(means + channel_blocks * LANES)[None, :]
    channel = (channel_block * LANES + tl.arange(0, LANES))[None, :]
    for block in range(BLOCKS):
        pixel = begin + block * ROWS + tl.arange(0, ROWS)[:, None]
        at = pixel * channels + channel if CHANNELS_LAST else channel * pixels + pixel
        inside = (pixel < pixels) & (channel < channels)
        g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        if not EXPANDED:
            c = tl.load(center + at, mask=inside, other=0.0).to(tl.float32)
        away = s * (g - g_mean)
        if not AT_CENTER:
            away += tl.load(value + at, mask=inside, other=0.0).to(tl.float32) - c - d_mean
        tl.store(out + at, (c + f * away).to(out.dtype.element_ty), mask=inside)


MEANS_BLOCK: Final = 16  # chunks per iteration of the means kernel


class MapLaunch:
    """Launches of one batch of maps; ``columns`` of a row of partial sums are its own."""

    def __init__(self, batch: MapBatch, config: MapConfig | None = None) -> None:
        config = config or CONFIG
        self.batch, self.config = batch, config
        self.rows, self.lanes = config.tile(batch.channels, batch.channels_last)
        self.pixels = self.rows * config.blocks
        self.channel_blocks = -(-batch.channels // self.lanes)
        self.chunks = self.channel_blocks * sum(-(-size // self.pixels) for size in batch.sizes)
        self.corrections = self.channel_blocks * len(batch.sizes)
        self.columns = self.chunks + self.corrections
        self.means: Tensor | None = None

    def sums(self, images: int, partials: Tensor, first: int) -> None:
        """Fill this batch's columns of its row of partial sums, from ``first``."""
        batch, device = self.batch, partials.device
        parts, width = partials.shape[1], partials.shape[3]
        tensors = len(batch.sizes)
        chunk_means = torch.empty((images, 2, self.chunks, self.lanes), dtype=torch.float32, device=device)
        shape = (images, tensors, 2, self.channel_blocks, self.lanes)
        self.means = torch.empty(shape, dtype=torch.float32, device=device)
        _map_sums_kernel[images * self.chunks,](
            tuple(batch.values), tuple(batch.gradients), tuple(batch.centers), tuple(batch.sizes), partials,
            chunk_means, self.chunks, batch.channels, self.channel_blocks, batch.group, parts, first, width,
            **self._constants(),
        )  # fmt: skip
        _map_means_kernel[images * self.corrections,](
            tuple(batch.sizes), partials, chunk_means, self.means, self.chunks, self.channel_blocks, batch.group, parts,
            first + self.chunks, width,
            TENSORS=tensors, AT_CENTER=int(batch.at_center), PIXELS=self.pixels, LANES=self.lanes, BLOCK=MEANS_BLOCK,
            num_warps=4,
        )  # fmt: skip

    def update(self, images: int, coefficients: Tensor) -> None:
        """Write the outputs."""
        batch = self.batch
        _map_update_kernel[images * self.chunks,](
            tuple(batch.values), tuple(batch.gradients), tuple(batch.centers), tuple(batch.outs), tuple(batch.sizes),
            coefficients, self.means, self.chunks, batch.channels, self.channel_blocks, batch.group,
            coefficients.shape[1],
            **self._constants(),
        )  # fmt: skip

    def _constants(self) -> dict[str, Any]:
        return {
            "TENSORS": len(self.batch.sizes),
            "AT_CENTER": int(self.batch.at_center),
            "EXPANDED": int(self.batch.expanded),
            "CHANNELS_LAST": int(self.batch.channels_last),
            "ROWS": self.rows,
            "LANES": self.lanes,
            "BLOCKS": self.config.blocks,
            "num_warps": self.config.warps,
        }
