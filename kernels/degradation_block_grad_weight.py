"""The degradation block's gradients to weight and slope in Triton, and launcher. Notation: degradation_block_shared."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .degradation_block_configs import Config, channel_block
from .degradation_block_saved import split_saved
from .degradation_block_shared import (
    BITS,
    TAPS,
    dot_precision,
    load_activated,
    load_padded,
    load_slope,
    refuse_huge,
    register_limit,
    slope_strides,
    table_config,
    tile_counts,
    tile_pixels,
)


@triton.jit(do_not_specialize=["height", "width", "tiles", "tiles_w", "splits", "replicate", "want_slope"])
def _grad_weight_kernel(
    g_ptr,  # (N, Cout, H, W), any strides: the incoming gradient
    bits_ptr,  # (N, H, W, ceil(Cout / 8)) bytes
    z_ptr,  # (N, H, W, Cout), contiguous; unused unless want_slope
    slope_ptr,  # slopes, any of the three shapes
    x_ptr,  # (N, Cin, H, W), any strides
    gw_ptr,  # (N, splits, 9, Cout, Cin) fp32, contiguous: a partial sum a program
    gslope_ptr,  # (N, splits, Cout) fp32, contiguous: likewise; unused unless want_slope
    c_in,  # input channels
    c_out,  # output channels
    height,  # of the images
    width,  # of the images
    tiles,  # pixel tiles of an image
    tiles_w,  # pixel tiles in a row
    splits,  # parts that an image's tiles are split into
    g_stride_n,  # strides of g, in values
    g_stride_c,
    g_stride_h,
    g_stride_w,
    slope_stride_n,  # 0 for a scalar slope
    slope_stride_c,  # 0 for one slope an image
    x_stride_n,  # strides of x, in values
    x_stride_c,
    x_stride_h,
    x_stride_w,
    replicate,  # 1: replicate padding, 0: zeros
    want_slope,  # 1: also reduce the slope's gradient
    WANT_WEIGHT: tl.constexpr,  # False: the slope's gradient alone
    BLOCK_H: tl.constexpr,  # rows of a pixel tile
    BLOCK_W: tl.constexpr,  # columns of a pixel tile
    BLOCK_IN: tl.constexpr,  # input channels a program
    BLOCK_OUT: tl.constexpr,  # output channels a program
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: the three taps of a kernel row, BLOCK_OUT x BLOCK_IN channels, summed over a split of the tiles."""
    program = tl.program_id(0)
    in_blocks = tl.cdiv(c_in, BLOCK_IN) if WANT_WEIGHT else 1
    out_blocks = tl.cdiv(c_out, BLOCK_OUT)
    kernel_rows: tl.constexpr = 3 if WANT_WEIGHT else 1
    in_block = program % in_blocks
    out_block = (program // in_blocks) % out_blocks
    kernel_row = (program // (in_blocks * out_blocks)) % kernel_rows
    part = program // (in_blocks * out_blocks * kernel_rows)  # image n, split s: n * splits + s
    n = (part // splits).to(tl.int64)
    split = part % splits

    first = out_block * BLOCK_OUT
    i = in_block * BLOCK_IN + tl.arange(0, BLOCK_IN)
    o = first + tl.arange(0, BLOCK_OUT)
    g = g_ptr + n * g_stride_n
    x = x_ptr + n * x_stride_n
    bits = bits_ptr + n * height * width * ((c_out + BITS - 1) // BITS)
    z_image = z_ptr + n * height * width * c_out
    slope = load_slope(slope_ptr + n * slope_stride_n, slope_stride_c, first, c_out, BLOCK_OUT)
    # The incoming gradient is read by every kernel row and input block; the first of them reduces the slope's.
    reduce_slope = (want_slope != 0) & (in_block == 0) & (kernel_row == 0)

    left = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    middle = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    right = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    gslope = tl.zeros((BLOCK_OUT,), dtype=tl.float32)
    each = tl.cdiv(tiles, splits)
    for tile in range(split * each, tl.minimum((split + 1) * each, tiles)):
        row, column = tile_pixels(tile, tiles_w, BLOCK_H, BLOCK_W)
        inside = (row < height) & (column < width)
        grad, gz = load_activated(
            g, bits, slope, row, column, inside, first, c_out, width,
            g_stride_c, g_stride_h, g_stride_w, BLOCK_H * BLOCK_W, BLOCK_OUT,
        )  # fmt: skip
        if reduce_slope:
            offset = ((row * width + column) * c_out)[:, None] + o[None, :]
            z = tl.load(z_image + offset, mask=inside[:, None] & (o < c_out)[None, :], other=0.0).to(tl.float32)
            gslope += tl.sum(tl.where(z > 0, 0.0, z) * grad, axis=0)
        if WANT_WEIGHT:
            a = tl.trans(gz.to(x_ptr.dtype.element_ty))
            x_row = row + kernel_row - 1
            b = load_padded(
                x, x_row, column - 1, inside, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w, replicate
            )  # fmt: skip
            left = tl.dot(a, b, left, input_precision=PRECISION)
            b = load_padded(
                x, x_row, column, inside, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w, replicate
            )  # fmt: skip
            middle = tl.dot(a, b, middle, input_precision=PRECISION)
            b = load_padded(
                x, x_row, column + 1, inside, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w, replicate
            )  # fmt: skip
            right = tl.dot(a, b, right, input_precision=PRECISION)

    if WANT_WEIGHT:
        gw = gw_ptr + (part.to(tl.int64) * TAPS + kernel_row * 3) * c_out * c_in
        offset = (o * c_in)[:, None] + i[None, :]
        mask = (o < c_out)[:, None] & (i < c_in)[None, :]
        tl.store(gw + offset, left, mask=mask)
        tl.store(gw + c_out * c_in + offset, middle, mask=mask)
        tl.store(gw + 2 * c_out * c_in + offset, right, mask=mask)
    if reduce_slope:
        tl.store(gslope_ptr + part.to(tl.int64) * c_out + o, gslope, mask=o < c_out)


def grad_weight(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    saved: Tensor,
    *,
    replicate: bool,
    want_weight: bool,
    want_slope: bool,
    tf32: bool,
    config: Config | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient to weight in its shape, and that to the slope as (N, Cout) in fp32; each None unless wanted."""
    n, c_in, height, width = x.shape
    c_out = weight.shape[-4]
    config = config or table_config("grad_weight", x, tf32)
    tiles, tiles_w = tile_counts(height, width, config)
    block_in, block_out = channel_block(c_in, config.block_k), channel_block(c_out, config.block_k)
    rows, in_blocks = (3, triton.cdiv(c_in, block_in)) if want_weight else (1, 1)
    block_in = block_in if want_weight else channel_block(0)  # of no meaning then: one compiled kernel will do
    groups = n * rows * in_blocks * triton.cdiv(c_out, block_out)
    splits = min(max(triton.cdiv(config.programs, max(groups, 1)), 1), max(tiles, 1))
    new = x.new_empty if groups else x.new_zeros  # every value is written, if a kernel runs
    gw = new((n, splits, 9, c_out, c_in) if want_weight else 0, dtype=torch.float32)
    gslope = new((n, splits, c_out) if want_slope else 0, dtype=torch.float32)
    for name, value in (("grad", grad), ("x", x)):
        refuse_huge(name, value)
    bits, z = split_saved(saved, n * height * width, c_out, x.dtype)
    if want_slope and z is None and groups:
        raise ValueError("the slope's gradient needs z, and only sign bits were saved")
    if groups:
        _grad_weight_kernel[groups * splits,](
            grad, bits, x if z is None else z, slope, x, gw if want_weight else gslope, gslope if want_slope else gw,
            c_in, c_out, height, width, tiles, tiles_w, splits,
            *grad.stride(), *slope_strides(slope), *x.stride(),
            int(replicate), int(want_slope),
            WANT_WEIGHT=want_weight, BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=block_in,
            BLOCK_OUT=block_out, PRECISION=dot_precision(x.dtype, tf32),
            num_warps=config.warps, num_stages=config.stages, maxnreg=register_limit(config, grad, x),
        )  # fmt: skip
    summed = None
    if want_weight:
        one = gw.sum(1) if weight.dim() == 5 else gw.sum((0, 1)).unsqueeze(0)
        summed = one.permute(0, 2, 3, 1).reshape(weight.shape).to(weight.dtype, copy=True).contiguous()
    return summed, gslope.sum(1) if want_slope else None
