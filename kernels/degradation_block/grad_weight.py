"""The degradation block's gradients to weight and slope in Triton, and launcher. Notation: degradation_block_shared."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.config import KernelConfig, channel_block
from ..common.convolution import BITS, TAPS, load_activated, load_padded, load_slope, tile_pixels
from ..common.launch import dot_precision, register_limit, table_config, tile_counts
from ..common.layout import check_int32_extent, slope_strides
from . import grad_weight_rows
from .configs import ROWS, TABLE, TILES
from .saved import split_saved


@triton.jit(
    do_not_specialize=["height", "width", "tiles", "tiles_w", "splits", "replicate", "want_slope", "noise_form"]
)
def _grad_weight_kernel(
    g_ptr,  # (N, Cout, H, W), any strides: the incoming gradient
    bits_ptr,  # (N, H, W, ceil(Cout / 8)) bytes
    z_ptr,  # z as (N, Cout, H, W), or the forward pass's result, any strides; unused unless want_slope
    noise_ptr,  # (N, Cout or 1, H, W), any strides; unused without noise_form
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
    z_stride_n,  # strides of z, in values
    z_stride_c,
    z_stride_h,
    z_stride_w,
    noise_stride_n,  # strides of noise, in values
    noise_stride_c,
    noise_stride_h,
    noise_stride_w,
    replicate,  # 1: replicate padding, 0: zeros
    want_slope,  # 1: also reduce the slope's gradient, from z; 2: from the result
    noise_form,  # of the result, 0: none, 1: a map a channel, 2: one map
    WANT_WEIGHT: tl.constexpr,  # False: the slope's gradient alone
    BLOCK_H: tl.constexpr,  # rows of a pixel tile
    BLOCK_W: tl.constexpr,  # columns of a pixel tile
    BLOCK_IN: tl.constexpr,  # input channels a program
    BLOCK_OUT: tl.constexpr,  # output channels a program
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: the three taps of a kernel row, BLOCK_OUT x BLOCK_IN channels, summed over a split of the tiles.

    The slope's gradient has programs of its own, a fourth row: in those of a kernel row its loads, beside three sums,
    would cost registers and with them occupancy. Neighbours read the same gradient at about the same time.
    """
    program = tl.program_id(0)
    in_blocks = tl.cdiv(c_in, BLOCK_IN) if WANT_WEIGHT else 1
    out_blocks = tl.cdiv(c_out, BLOCK_OUT)
    weight_rows: tl.constexpr = 3 if WANT_WEIGHT else 0
    rows = weight_rows + tl.minimum(want_slope, 1)
    in_block = program % in_blocks
    out_block = (program // in_blocks) % out_blocks
    kernel_row = (program // (in_blocks * out_blocks)) % rows
    part = program // (in_blocks * out_blocks * rows)  # image n, split s: n * splits + s
    n = (part // splits).to(tl.int64)

    first = out_block * BLOCK_OUT
    o = first + tl.arange(0, BLOCK_OUT)
    g = g_ptr + n * g_stride_n
    bits = bits_ptr + n * height * width * ((c_out + BITS - 1) // BITS)
    slope = load_slope(slope_ptr + n * slope_stride_n, slope_stride_c, first, c_out, BLOCK_OUT)
    each = tl.cdiv(tiles, splits)
    begin = (part % splits) * each
    end = tl.minimum(begin + each, tiles)

    if WANT_WEIGHT:  # noqa: SIM102 (known to the compiler, the next one is not)
        if kernel_row < weight_rows:
            i = in_block * BLOCK_IN + tl.arange(0, BLOCK_IN)
            x = x_ptr + n * x_stride_n
            left = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
            middle = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
            right = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
            for tile in range(begin, end):
                row, column = tile_pixels(tile, tiles_w, BLOCK_H, BLOCK_W)
                inside = (row < height) & (column < width)
                _grad, gz, _positive = load_activated(
                    g, bits, slope, row, column, inside, first, c_out, width,
                    g_stride_c, g_stride_h, g_stride_w, BLOCK_H * BLOCK_W, BLOCK_OUT,
                )  # fmt: skip
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
            gw = gw_ptr + (part.to(tl.int64) * TAPS + kernel_row * 3) * c_out * c_in
            at = (o * c_in)[:, None] + i[None, :]
            exists = (o < c_out)[:, None] & (i < c_in)[None, :]
            tl.store(gw + at, left, mask=exists)
            tl.store(gw + c_out * c_in + at, middle, mask=exists)
            tl.store(gw + 2 * c_out * c_in + at, right, mask=exists)

    if (kernel_row == weight_rows) & (in_block == 0):
        z_image = z_ptr + n * z_stride_n
        noise_image = noise_ptr + n * noise_stride_n
        gslope = tl.zeros((BLOCK_OUT,), dtype=tl.float32)
        for tile in range(begin, end):
            row, column = tile_pixels(tile, tiles_w, BLOCK_H, BLOCK_W)
            inside = (row < height) & (column < width)
            grad, _gz, positive = load_activated(
                g, bits, slope, row, column, inside, first, c_out, width,
                g_stride_c, g_stride_h, g_stride_w, BLOCK_H * BLOCK_W, BLOCK_OUT,
            )  # fmt: skip
            mask = inside[:, None] & (o < c_out)[None, :]
            offset = (row * z_stride_h + column * z_stride_w)[:, None] + (o * z_stride_c)[None, :]
            z = tl.load(z_image + offset, mask=mask, other=0.0).to(tl.float32)
            if noise_form == 1:
                offset = (row * noise_stride_h + column * noise_stride_w)[:, None] + (o * noise_stride_c)[None, :]
                z -= tl.load(noise_image + offset, mask=mask, other=0.0).to(tl.float32)
            if noise_form == 2:
                at_pixel = row * noise_stride_h + column * noise_stride_w
                z -= tl.load(noise_image + at_pixel, mask=inside, other=0.0).to(tl.float32)[:, None]
            gslope += tl.sum(tl.where(positive, 0.0, z) * grad, axis=0)
        if want_slope == 2:
            gslope = gslope / slope
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
    result: Tensor | None = None,
    noise: Tensor | None = None,
    config: KernelConfig | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient to weight in its shape, and that to the slope as (N, Cout) in fp32; each None unless wanted.

    Where only signs were saved, the slope's is taken from ``result`` and the ``noise`` in it.
    """
    n, c_in, height, width = x.shape
    c_out = weight.shape[-4]
    config = config or table_config(TABLE, "grad_weight", x.dtype, x.device, tf32)
    for name, value in (("grad", grad), ("x", x)):
        check_int32_extent(name, value.shape, value.stride())
    bits, z = split_saved(saved, n * height * width, c_out, x.dtype)
    dweight = None
    if config.design == ROWS:
        if want_weight and grad_weight_rows.applies(grad, x, slope, replicate=replicate):
            dweight = _sum_parts(grad_weight_rows.launch(grad, x, slope, bits, tf32=tf32, config=config), weight)
            want_weight = False
            if not want_slope:
                return dweight, None
        config = TILES["grad_weight"]
    tiles, tiles_w = tile_counts(height, width, config)
    block_in, block_out = channel_block(c_in, config.block_k), channel_block(c_out, config.block_k)
    rows, in_blocks = (3, triton.cdiv(c_in, block_in)) if want_weight else (1, 1)
    block_in = block_in if want_weight else channel_block(0)  # of no meaning then: one compiled kernel will do
    row_groups = n * in_blocks * triton.cdiv(c_out, block_out)
    groups = rows * row_groups  # not counting the slope's, which are done early
    splits = min(max(triton.cdiv(config.programs, max(groups, 1)), 1), max(tiles, 1))
    new = x.new_empty if groups else x.new_zeros  # every value is written, if a kernel runs
    gw = new((n, splits, 9, c_out, c_in) if want_weight else 0, dtype=torch.float32)
    gslope = new((n, splits, c_out) if want_slope else 0, dtype=torch.float32)
    reduce = noise_form = 0
    read = removed = grad  # what stands for z and noise where they are not read
    if want_slope and z is not None:
        reduce, read = 1, z.view(n, height, width, c_out).permute(0, 3, 1, 2)
    elif want_slope and result is not None:
        reduce, read = 2, result
        if noise is not None:
            removed, noise_form = noise, 1 if noise.shape[1] == c_out else 2
    elif want_slope and groups:
        raise ValueError("the slope's gradient needs z or the result, and only sign bits were saved")
    for name, value in (("out", read), ("noise", removed)):
        check_int32_extent(name, value.shape, value.stride())
    if groups:
        programs = (groups + row_groups * (want_weight and want_slope)) * splits
        _grad_weight_kernel[programs,](
            grad, bits, read, removed, slope, x, gw if want_weight else gslope, gslope if want_slope else gw,
            c_in, c_out, height, width, tiles, tiles_w, splits,
            *grad.stride(), *slope_strides(slope), *x.stride(), *read.stride(), *removed.stride(),
            int(replicate), reduce, noise_form,
            WANT_WEIGHT=want_weight, BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=block_in,
            BLOCK_OUT=block_out, PRECISION=dot_precision(x.dtype, tf32),
            num_warps=config.warps, num_stages=config.stages, maxnreg=register_limit(config, grad, x, read, removed),
        )  # fmt: skip
    if want_weight:
        dweight = _sum_parts(gw, weight)
    return dweight, gslope.sum(1) if want_slope else None


def _sum_parts(gw: Tensor, weight: Tensor) -> Tensor:
    """Sum partial sums (N, parts, 9, Cout, Cin) to a gradient in the weight's shape and dtype."""
    summed = gw.sum(1) if weight.dim() == 5 else gw.sum((0, 1)).unsqueeze(0)
    return summed.permute(0, 2, 3, 1).reshape(weight.shape).to(weight.dtype, copy=True).contiguous()
