"""Triton kernels of the identity gradients: to the noises and slopes, and the correlation for the weight gradients.

Notation: n image, k layer, c channel, p pixel; before and after are (3, C) per layer and image::

    noise[k][n, c, p] = sum over j of after[k][n, j, c] g[n, j, p]
    slope[k][n, c]    = sum over p of min(sum over i of before[k][n, i, c] x[n, i, p], 0) noise[k][n, c, p]
    R[n, d, j, i]     = sum over p of g[n, j, p] x[n, i, p + d]                  (nine taps d, x padded by a pixel)

One launch serves all layers that want the same gradients. A program loops over the layers for a chunk of pixels of one
image: x and g, 24 bytes per pixel, are read from DRAM for the first layer and from L1 for the rest, and only the noise
gradients are written. R takes a second launch. Partial sums are fp32, one per program, reduced by torch: no atomics,
deterministic.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.layout import check_int32_extent

COLORS = tl.constexpr(3)
TAPS = 27  # nine taps of three channels
TAPS_BLOCK = 32  # padded to a power of two


class Config(NamedTuple):
    """Launch configuration. Both kernels are memory-bound, so one configuration serves every architecture."""

    pixels: int = 512
    """Pixels per program of the layers kernel."""
    segment: int = 64
    """Pixels of a row per iteration of the correlation, a power of two."""
    segments: int = 32
    """Segments per program of the correlation."""
    warps: int = 4
    """Warps per program."""


CONFIG: Final = Config()

# NOISE of the layers kernel.
NO_NOISE, ONE_MAP, EACH_CHANNEL = 0, 1, 2


# ------------------------------------------------------------------------------------------------------------ kernels


@triton.jit
def _load_colors(
    image,  # pointer to an image with three channels
    p,  # pixel indices
    inside,  # mask of pixels in the image
    stride_c,  # in values
    stride_p,  # between consecutive pixels
):
    """The three channels of pixels p in fp32; 0 outside the image."""
    at = p * stride_p
    first = tl.load(image + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(image + at + stride_c, mask=inside, other=0.0).to(tl.float32)
    third = tl.load(image + at + 2 * stride_c, mask=inside, other=0.0).to(tl.float32)
    return first, second, third


@triton.jit(
    do_not_specialize=[
        "images", "channels", "pixels", "tiles", "each", "chunks",
        "x_stride_n", "x_stride_c", "x_stride_p", "g_stride_n", "g_stride_c", "g_stride_p",
    ]
)  # fmt: skip
def _layers_kernel(
    x_ptr,  # (N, 3, pixels), any strides
    g_ptr,  # (N, 3, pixels), any strides
    before_ptr,  # (LAYERS, N, 3, C) fp32
    after_ptr,  # (LAYERS, N, 3, C) fp32; for one map, the sums over channels, (LAYERS, N, 3), follow
    noises,  # tuple of pointers: (N, pixels, C), (N, C, pixels), or (N, pixels)
    sums_ptr,  # (LAYERS, N, chunks, C) fp32: partial sums
    images,  # N
    channels,  # C
    pixels,  # per image
    tiles,  # per image
    each,  # tiles per chunk
    chunks,  # per image
    x_stride_n,  # strides of x, in values
    x_stride_c,
    x_stride_p,
    g_stride_n,  # strides of g, in values
    g_stride_c,
    g_stride_p,
    LAYERS: tl.constexpr,  # number of layers
    NOISE: tl.constexpr,  # gradients to noises: 0: none, 1: one map per image, 2: one map per channel
    SLOPE: tl.constexpr,  # compute gradients to the slopes
    LAST: tl.constexpr,  # channels of noises are contiguous, or there is only one
    ALIGNED: tl.constexpr,  # channels if LAST, else pixels, are a multiple of 16
    BLOCK_C: tl.constexpr,  # channels per program
    BLOCK_P: tl.constexpr,  # pixels per tile
):
    """Grid: one program per chunk of pixels of one image and block of channels; loops over layers."""
    program = tl.program_id(0)
    blocks = tl.cdiv(channels, BLOCK_C)
    block = program % blocks
    chunk = (program // blocks) % chunks
    n = (program // (blocks * chunks)).to(tl.int64)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    if ALIGNED:  # a divisibility hint to the compiler
        if LAST:
            channels = channels // 16 * 16
        else:
            pixels = pixels // 16 * 16
    here = c < channels
    x = x_ptr + n * x_stride_n
    g = g_ptr + n * g_stride_n
    rows = tl.arange(0, BLOCK_P)
    same = (rows * 0)[:, None]
    for layer in range(LAYERS):
        at_layer = (layer * images + n) * 3 * channels
        # As tiles with equal rows, so that the compiler picks the layout of 16-byte stores from here on.
        matrix = at_layer + same + c[None, :]
        exists = (same == 0) & here[None, :]
        if SLOPE:
            m0 = tl.load(before_ptr + matrix, mask=exists, other=0.0)
            m1 = tl.load(before_ptr + channels + matrix, mask=exists, other=0.0)
            m2 = tl.load(before_ptr + 2 * channels + matrix, mask=exists, other=0.0)
        if NOISE == 2 or SLOPE:
            n0 = tl.load(after_ptr + matrix, mask=exists, other=0.0)
            n1 = tl.load(after_ptr + channels + matrix, mask=exists, other=0.0)
            n2 = tl.load(after_ptr + 2 * channels + matrix, mask=exists, other=0.0)
        if NOISE != 0:
            noise = noises[0]
            for index in tl.static_range(1, LAYERS):
                noise = tl.where(layer == index, noises[index], noise)
        if NOISE == 1:
            total = after_ptr + images.to(tl.int64) * LAYERS * 3 * channels + (layer * images + n) * 3
            t0 = tl.load(total)
            t1 = tl.load(total + 1)
            t2 = tl.load(total + 2)
        sums = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
        for tile in range(chunk * each, tl.minimum((chunk + 1) * each, tiles)):
            p = tile * BLOCK_P + rows
            inside = p < pixels
            g0, g1, g2 = _load_colors(g, p, inside, g_stride_c, g_stride_p)
            if SLOPE:
                x0, x1, x2 = _load_colors(x, p, inside, x_stride_c, x_stride_p)
            if NOISE == 1:
                up_summed = g0 * t0 + g1 * t1 + g2 * t2
                tl.store(noise + n * pixels + p, up_summed.to(noise.dtype.element_ty), mask=inside & (block == 0))
            if NOISE == 2 or SLOPE:
                up = g0[:, None] * n0 + g1[:, None] * n1 + g2[:, None] * n2
            if NOISE == 2:
                at = p[:, None] * channels + c[None, :] if LAST else c[None, :] * pixels + p[:, None]
                out = noise + n * channels * pixels + at
                tl.store(out, up.to(noise.dtype.element_ty), mask=inside[:, None] & here[None, :])
            if SLOPE:
                z = x0[:, None] * m0 + x1[:, None] * m1 + x2[:, None] * m2
                sums += tl.where(z > 0, 0.0, z) * up
        if SLOPE:
            row = layer * images + n
            tl.store(sums_ptr + (row * chunks + chunk) * channels + c, tl.sum(sums, axis=0), mask=here)


@triton.jit(
    do_not_specialize=[
        "height", "width", "in_row", "segments", "each", "parts", "replicate",
        "x_stride_n", "x_stride_c", "x_stride_p", "g_stride_n", "g_stride_c", "g_stride_p",
    ]
)  # fmt: skip
def _correlation_kernel(
    x_ptr,  # (N, 3, pixels), any strides
    g_ptr,  # (N, 3, pixels), any strides
    sums_ptr,  # (N, parts, 3, TAPS_BLOCK) fp32: partial sums
    height,  # of the images
    width,  # of the images
    in_row,  # segments per row
    segments,  # per image
    each,  # segments per part
    parts,  # per image
    replicate,  # 1: replicate padding, 0: zeros
    x_stride_n,  # strides of x, in values
    x_stride_c,
    x_stride_p,
    g_stride_n,  # strides of g, in values
    g_stride_c,
    g_stride_p,
    SEGMENT: tl.constexpr,  # pixels per segment
    BLOCK: tl.constexpr,  # TAPS_BLOCK
):
    """Grid: one program per part of one image. Column q stands for a tap (dy, dx) and a channel of x."""
    program = tl.program_id(0)
    n = (program // parts).to(tl.int64)
    part = program % parts
    x = x_ptr + n * x_stride_n
    g = g_ptr + n * g_stride_n
    q = tl.arange(0, BLOCK)
    dy = (q // 9 - 1)[None, :]
    dx = (q // 3 % 3 - 1)[None, :]
    channel = (q % 3 * x_stride_c)[None, :]
    exists = (q < 27)[None, :]
    first = tl.zeros((SEGMENT, BLOCK), dtype=tl.float32)
    second = tl.zeros((SEGMENT, BLOCK), dtype=tl.float32)
    third = tl.zeros((SEGMENT, BLOCK), dtype=tl.float32)
    for segment in range(part * each, tl.minimum((part + 1) * each, segments)):
        row = segment // in_row
        column = (segment % in_row) * SEGMENT + tl.arange(0, SEGMENT)
        inside = column < width
        g0, g1, g2 = _load_colors(g, row * width + column, inside, g_stride_c, g_stride_p)
        y = row + dy
        z = column[:, None] + dx
        near_y = tl.minimum(tl.maximum(y, 0), height - 1)
        near_z = tl.minimum(tl.maximum(z, 0), width - 1)
        seen = exists & inside[:, None] & ((replicate != 0) | ((near_y == y) & (near_z == z)))
        at = (near_y * width + near_z) * x_stride_p + channel
        shifted = tl.load(x + at, mask=seen, other=0.0).to(tl.float32)
        first += shifted * g0[:, None]
        second += shifted * g1[:, None]
        third += shifted * g2[:, None]
    out = sums_ptr + (n * parts + part) * 3 * BLOCK + q
    tl.store(out, tl.sum(first, axis=0))
    tl.store(out + BLOCK, tl.sum(second, axis=0))
    tl.store(out + 2 * BLOCK, tl.sum(third, axis=0))


# ----------------------------------------------------------------------------------------------------------- launches


def identity_gradients(
    x: Tensor,
    grad: Tensor,
    before: Tensor,
    after: Tensor,
    noises: Sequence[Tensor | None],
    slopes: Sequence[bool],
    correlate: bool,
    padding: str,
) -> tuple[Tensor | None, Tensor]:
    """Write the gradients to the noises; return the correlation, and the gradients to the slopes (slopes, N, C)."""
    before, after = before.float().contiguous(), after.float().contiguous()
    launches: dict[tuple[int, bool], list[int]] = {}  # layers by what one launch can compute
    for layer, (noise, slope) in enumerate(zip(noises, slopes, strict=True)):
        if noise is not None or slope:
            launches.setdefault((0 if noise is None else noise.shape[1], slope), []).append(layer)
    rows: dict[int, Tensor] = {}
    sums = before.new_empty((0, before.shape[1], before.shape[3]))
    for (_, slope), indices in launches.items():
        maps = [noise for layer in indices if (noise := noises[layer]) is not None]
        grad_slopes = layers(x, grad, _select(before, indices), _select(after, indices), maps, slope)
        if slope:
            sums = grad_slopes
            rows.update(zip(indices, grad_slopes, strict=True))
    if len(rows) > len(sums):  # from several launches
        sums = torch.stack([rows[layer] for layer in sorted(rows)])
    return correlation(x, grad, replicate=padding == "replicate") if correlate else None, sums


def _select(stacked: Tensor, indices: list[int]) -> Tensor:
    """Those layers of a stack. Indexing with a list would copy it to the device and synchronize."""
    return stacked if len(indices) == len(stacked) else torch.stack([stacked[layer] for layer in indices])


def layers(
    x: Tensor,
    grad: Tensor,
    before: Tensor,
    after: Tensor,
    noises: Sequence[Tensor],
    want_slopes: bool,
    config: Config | None = None,
) -> Tensor:
    """Write the gradients to the noises, and return those to the slopes.

    Args:
        x, grad: (N, 3, H, W).
        before, after: (layers, N, 3, C) in fp32, contiguous.
        noises: outputs, one per layer, all (N, C, H, W) or all (N, 1, H, W), of one dtype, contiguous or
            channels_last; or an empty list.
        want_slopes: compute the gradients to the slopes.

    Returns:
        (layers, N, C) in fp32; (0, N, C) unless ``want_slopes``.
    """
    config = config or CONFIG
    count, n, _, channels = before.shape
    pixels = x.shape[2] * x.shape[3]
    form = NO_NOISE if not noises else EACH_CHANNEL if noises[0].shape[1] == channels else ONE_MAP
    block_c, block_p = tile_of(channels, noises[0].element_size() if form == EACH_CHANNEL else 4, config)
    tiles = triton.cdiv(pixels, block_p)
    each = triton.cdiv(config.pixels, block_p)
    chunks = triton.cdiv(tiles, each)
    programs = n * chunks * triton.cdiv(channels, block_c)
    sums = before.new_empty((count if want_slopes else 0, n, chunks, channels))
    if count and programs and (want_slopes or noises):
        for name, image in (("x", x), ("grad", grad), *(("noise", noise) for noise in noises)):
            check_int32_extent(name, image.shape, image.stride())
        last = form != EACH_CHANNEL or not noises[0].is_contiguous()
        if form == ONE_MAP:
            after = torch.cat([after.flatten(), after.sum(3).flatten()])
        x, grad = _pixels(x), _pixels(grad)
        _layers_kernel[programs,](
            x, grad, before, after, tuple(noises) or (sums,), sums,
            n, channels, pixels, tiles, each, chunks, *x.stride(), *grad.stride(),
            LAYERS=count, NOISE=form, SLOPE=int(want_slopes), LAST=int(last),
            ALIGNED=int((channels if last else pixels) % 16 == 0), BLOCK_C=block_c, BLOCK_P=block_p,
            num_warps=config.warps,
        )  # fmt: skip
    return sums.sum(2)


def correlation(x: Tensor, grad: Tensor, *, replicate: bool, config: Config | None = None) -> Tensor:
    """Sums over pixels of grad times x shifted by each of nine taps, (N, 9, 3, 3) in fp32."""
    config = config or CONFIG
    n, _, height, width = x.shape
    in_row = triton.cdiv(width, config.segment)
    segments = height * in_row
    parts = triton.cdiv(segments, config.segments)
    sums = x.new_empty((n, parts, COLORS.value, TAPS_BLOCK), dtype=torch.float32)
    if n:
        for name, image in (("x", x), ("grad", grad)):
            check_int32_extent(name, image.shape, image.stride())
        x, grad = _pixels(x), _pixels(grad)
        _correlation_kernel[n * parts,](
            x, grad, sums, height, width, in_row, segments, config.segments, parts, int(replicate),
            *x.stride(), *grad.stride(),
            SEGMENT=config.segment, BLOCK=TAPS_BLOCK, num_warps=config.warps,
        )  # fmt: skip
    return sums.sum(1)[..., :TAPS].unflatten(2, (9, 3)).transpose(1, 2).clone(memory_format=torch.contiguous_format)


def tile_of(channels: int, itemsize: int, config: Config) -> tuple[int, int]:
    """(channels, pixels) of a tile: 16 bytes of noise per thread, and few sizes, to bound the number of variants."""
    block = 16 if channels <= 16 else 64
    return block, config.warps * 32 * 16 // itemsize // block


def _pixels(x: Tensor) -> Tensor:
    """(N, 3, H, W) as (N, 3, H * W): a view if rows are evenly spaced, else a copy."""
    regular = x.shape[2] == 1 or x.stride(2) == x.shape[3] * x.stride(3)
    if not regular:
        x = x.contiguous()
    return x.as_strided((*x.shape[:2], x.shape[2] * x.shape[3]), (*x.stride()[:2], x.stride(3)))
