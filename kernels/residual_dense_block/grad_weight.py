"""The residual dense block's gradients to its five weights in Triton, in one launch; and the launcher.

With u the block's features (x, x1, ..., x4), and g1 to g4 and ``grad`` the gradients to the convolutions' outputs (the
last without its scale)::

    gw[k][o, i, tap] = sum over images and pixels p of gk[p, o] * u[p + tap, i]          i below F + (k - 1)G

one matrix product of (4G + F) x 9(F + 4G) over all pixels. Its upper triangle, growth that a convolution did not read,
is left out block by block. Sums are in fp32 over splits of the pixel tiles; torch adds the partial sums. No atomics:
runs are bitwise reproducible.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.config import MAX_REGISTERS, KernelConfig, smallest_block
from ..common.convolution import tile_pixels
from ..common.launch import dot_precision, table_config, tile_counts
from ..common.layout import aligned, check_int32_extent, pixel_strides
from .configs import CHANNEL_BLOCKS, TABLE

TAPS = tl.constexpr(9)


@triton.jit
def _load_shifted(
    source,  # image n of a tensor with contiguous channels, from the first channel read
    channel,  # [K] channels from there on
    channels,  # number of channels
    row,  # [P]
    column,  # [P]
    inside,  # [P] whether the pixel exists
    shift_row,  # of the tap
    shift_column,
    height,  # of the images
    width,  # of the images
    stride_h,  # strides of source, in values
    stride_w,
):
    """source[p + tap, channel] as [P, K]; zero outside."""
    at_row = row + shift_row
    at_column = column + shift_column
    exists = inside & (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < width)
    offset = (at_row * stride_h + at_column * stride_w)[:, None] + channel[None, :]
    return tl.load(source + offset, mask=exists[:, None] & (channel < channels)[None, :], other=0.0)


@triton.jit(do_not_specialize=["height", "width", "tiles", "tiles_w", "all_tiles", "splits", "needs_grad"])
def _dense_block_grad_weight_kernel(
    x_ptr,  # (N, F, H, W), contiguous channels
    growth_ptr,  # (N, 4G, H, W), channels_last: x1 to x4
    grad_growth_ptr,  # likewise: g1 to g4
    grad_ptr,  # (N, F, H, W), contiguous channels: the incoming gradient
    gw_ptr,  # (splits, 9, 4G + F, F + 4G) fp32, contiguous: one partial sum per program
    features,  # F
    growth,  # G
    height,  # of the images
    width,  # of the images
    tiles,  # pixel tiles per image
    tiles_w,  # pixel tiles per row
    all_tiles,  # of all images
    splits,  # number of splits of these
    needs_grad,  # bit k: the gradient to weight k is needed
    x_stride_n,  # strides of x, in values
    x_stride_h,
    x_stride_w,
    growth_stride_n,  # strides of growth and grad_growth
    growth_stride_h,
    growth_stride_w,
    grad_stride_n,  # strides of grad
    grad_stride_h,
    grad_stride_w,
    BLOCK_H: tl.constexpr,  # rows of a pixel tile
    BLOCK_W: tl.constexpr,  # columns of a pixel tile
    BLOCK_IN: tl.constexpr,  # input channels per program
    BLOCK_OUT: tl.constexpr,  # output channels per program
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: the three taps of a kernel row, BLOCK_OUT x BLOCK_IN channels, summed over a split of the tiles.

    Blocks cross neither from the four growth convolutions to the last one, nor from x to its growth.
    """
    program = tl.program_id(0)
    x_blocks = tl.cdiv(features, BLOCK_IN)
    in_blocks = x_blocks + tl.cdiv(4 * growth, BLOCK_IN)
    growth_blocks = tl.cdiv(4 * growth, BLOCK_OUT)
    out_blocks = growth_blocks + tl.cdiv(features, BLOCK_OUT)
    in_block = program % in_blocks
    out_block = (program // in_blocks) % out_blocks
    kernel_row = (program // (in_blocks * out_blocks)) % 3
    split = program // (in_blocks * out_blocks * 3)

    of_x = in_block < x_blocks
    of_growth = out_block < growth_blocks
    i_first = tl.where(of_x, in_block, in_block - x_blocks) * BLOCK_IN
    o_first = tl.where(of_growth, out_block, out_block - growth_blocks) * BLOCK_OUT
    i_count = tl.where(of_x, features, 4 * growth)
    o_count = tl.where(of_growth, 4 * growth, features)
    # The growth convolutions that the output channels belong to; the highest bounds the growth channels that are read.
    lowest = o_first // growth
    highest = tl.minimum(o_first + BLOCK_OUT - 1, 4 * growth - 1) // growth
    block_needs = (needs_grad >> lowest) & ((1 << (highest - lowest + 1)) - 1)
    needed = tl.where(of_growth, (block_needs != 0) & (of_x | (i_first < highest * growth)), (needs_grad & 16) != 0)

    if needed:
        u_ptr = tl.where(of_x, x_ptr, growth_ptr)
        g_ptr = tl.where(of_growth, grad_growth_ptr, grad_ptr)
        u_stride_n = tl.where(of_x, x_stride_n, growth_stride_n)
        u_stride_h = tl.where(of_x, x_stride_h, growth_stride_h)
        u_stride_w = tl.where(of_x, x_stride_w, growth_stride_w)
        g_stride_n = tl.where(of_growth, growth_stride_n, grad_stride_n)
        g_stride_h = tl.where(of_growth, growth_stride_h, grad_stride_h)
        g_stride_w = tl.where(of_growth, growth_stride_w, grad_stride_w)
        i = i_first + tl.arange(0, BLOCK_IN)
        o = o_first + tl.arange(0, BLOCK_OUT)
        left = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
        middle = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
        right = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
        per_split = tl.cdiv(all_tiles, splits)
        for tile in range(split * per_split, tl.minimum((split + 1) * per_split, all_tiles)):
            n = (tile // tiles).to(tl.int64)
            row, column = tile_pixels(tile % tiles, tiles_w, BLOCK_H, BLOCK_W)
            inside = (row < height) & (column < width)
            g = g_ptr + n * g_stride_n
            u = u_ptr + n * u_stride_n
            a = tl.trans(_load_shifted(g, o, o_count, row, column, inside, 0, 0, height, width, g_stride_h, g_stride_w))
            b = _load_shifted(
                u, i, i_count, row, column, inside, kernel_row - 1, -1, height, width, u_stride_h, u_stride_w
            )
            left = tl.dot(a, b, left, input_precision=PRECISION)
            b = _load_shifted(
                u, i, i_count, row, column, inside, kernel_row - 1, 0, height, width, u_stride_h, u_stride_w
            )
            middle = tl.dot(a, b, middle, input_precision=PRECISION)
            b = _load_shifted(
                u, i, i_count, row, column, inside, kernel_row - 1, 1, height, width, u_stride_h, u_stride_w
            )
            right = tl.dot(a, b, right, input_precision=PRECISION)

        total = features + 4 * growth
        gw = gw_ptr + (split.to(tl.int64) * TAPS + kernel_row * 3) * total * total
        offset = ((o + tl.where(of_growth, 0, 4 * growth)) * total)[:, None]
        offset = offset + (i + tl.where(of_x, 0, features))[None, :]
        mask = (o < o_count)[:, None] & (i < i_count)[None, :]
        tl.store(gw + offset, left, mask=mask)
        tl.store(gw + total * total + offset, middle, mask=mask)
        tl.store(gw + 2 * total * total + offset, right, mask=mask)


def grad_weight(
    x: Tensor,
    growth: Tensor,
    grad_growth: Tensor,
    grad: Tensor,
    needs_grad: Sequence[bool],
    *,
    tf32: bool,
    config: KernelConfig | None = None,
) -> list[Tensor | None]:
    """Return the gradients to the five weights in fp32, (Cout, Cin, 3, 3), any strides; None for those not needed.

    Args:
        x: (N, F, H, W), with contiguous channels.
        growth: (N, 4G, H, W), channels_last: outputs of the four activations.
        grad_growth: gradients to their inputs, with the strides of growth; only those of needed weights are read.
        grad: of x's shape, with contiguous channels: the gradient to the last convolution's output.
        needs_grad: for each weight, whether its gradient is needed.
        tf32: whether fp32 operands may be rounded to tf32.
        config: overrides the table.
    """
    n, features, height, width = x.shape
    channels = growth.shape[1] // 4
    total = features + 4 * channels
    block = smallest_block(max(features, 4 * channels), CHANNEL_BLOCKS)
    config = config or table_config(TABLE, f"grad_weight_{block}", x.dtype, x.device, tf32)
    tiles, tiles_w = tile_counts(height, width, config)
    blocks = triton.cdiv(features, block) + triton.cdiv(4 * channels, block)
    groups = 3 * blocks * blocks
    splits = min(max(triton.cdiv(config.programs, groups), 1), max(n * tiles, 1))
    new = x.new_empty if x.numel() else x.new_zeros
    gw = new((splits, 9, total, total), dtype=torch.float32)
    for name, value in (("x", x), ("the growth of x", growth), ("the gradient", grad)):
        check_int32_extent(name, value.shape, value.stride())
    simple = aligned(features, channels, *pixel_strides(x), *pixel_strides(grad))
    if x.numel():
        _dense_block_grad_weight_kernel[groups * splits,](
            x, growth, grad_growth, grad, gw,
            features, channels, height, width, tiles, tiles_w, n * tiles, splits,
            sum(1 << k for k, needed in enumerate(needs_grad) if needed),
            *pixel_strides(x), *pixel_strides(growth), *pixel_strides(grad),
            BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=block, BLOCK_OUT=block,
            PRECISION=dot_precision(x.dtype, tf32),
            num_warps=config.warps, num_stages=config.stages,
            maxnreg=config.registers if simple else MAX_REGISTERS,
        )  # fmt: skip
    grads: list[Tensor | None] = []
    for k, needed in enumerate(needs_grad):
        rows = slice(k * channels, (k + 1) * channels) if k < 4 else slice(4 * channels, total)
        part = gw[:, :, rows, : features + k * channels]
        grads.append(part.sum(0).permute(1, 2, 0).unflatten(2, (3, 3)) if needed else None)
    return grads
