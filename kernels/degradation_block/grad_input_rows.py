"""The degradation block's gradient to x by rows, and its launcher: design "rows" of the configurations.

The mirror of :mod:`.forward_rows`: each row of the gradient is loaded and multiplied with the activation's slope three
times, once per kernel column, and added to the sums of the three rows of x that it flows to. Replicate padding: what
flows out of the image belongs to the border. Above and below that is a sum added to the neighboring row's; at the left
and right the gradients of both pixels that reach the border through the same taps are added before the product.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..common.config import CHANNEL_BLOCKS, KernelConfig, channel_block
from ..common.convolution import BITS, load_activated
from ..common.launch import dot_precision, taps_first, tile_counts
from ..common.layout import slope_strides
from .forward_rows import load_tap


@triton.jit
def _load_row(
    g,  # image n of the incoming gradient
    bits,  # image n of the sign bits
    slope,  # of image n
    row,  # row to read, which may lie outside of the image
    column,  # [P] columns to read, likewise
    c_out,  # number of channels
    height,  # of the image
    width,  # of the image
    stride_c,  # strides of g, in values
    stride_h,
    stride_w,
    PIXELS: tl.constexpr,  # P
    BLOCK: tl.constexpr,  # channels in the block
):
    """gz of one row, [P, BLOCK] in fp32; zero outside of the image."""
    valid = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    scale = tl.zeros((BLOCK,), dtype=tl.float32) + slope
    _, gz, _ = load_activated(
        g, bits, scale, row + column * 0, column, valid, 0, c_out, width, stride_c, stride_h, stride_w, PIXELS, BLOCK
    )
    return gz


@triton.jit(do_not_specialize=["height", "width", "tiles", "tiles_w"])
def _grad_input_rows_kernel(
    g_ptr,  # (N, Cout, H, W), contiguous channels: the incoming gradient
    bits_ptr,  # (N, H, W, ceil(Cout / 8)) bytes
    w_ptr,  # (N or 1, 9, Cout, Cin), contiguous
    slope_ptr,  # one slope, or (N)
    gx_ptr,  # (N, Cin, H, W), contiguous channels
    c_in,  # input channels
    c_out,  # output channels, at most BLOCK_OUT
    height,  # of the images
    width,  # of the images
    tiles,  # strips per image
    tiles_w,  # strips side by side
    g_stride_n,  # strides of g, in values
    g_stride_c,
    g_stride_h,
    g_stride_w,
    w_stride_n,  # 0 for shared weights
    slope_stride_n,  # 0 for a scalar slope
    gx_stride_n,  # strides of gx, in values
    gx_stride_c,
    gx_stride_h,
    gx_stride_w,
    BLOCK_H: tl.constexpr,  # rows of a strip
    BLOCK_W: tl.constexpr,  # columns of a strip
    BLOCK_IN: tl.constexpr,  # input channels per program
    BLOCK_OUT: tl.constexpr,  # output channels, all of them
    STAGES: tl.constexpr,  # software pipeline depth of the loop over rows
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: BLOCK_IN channels of one strip. Program order: channel blocks, strips, images."""
    program = tl.program_id(0)
    blocks = tl.cdiv(c_in, BLOCK_IN)
    n = (program // (blocks * tiles)).to(tl.int64)
    tile = (program // blocks) % tiles
    top = (tile // tiles_w) * BLOCK_H
    column = (tile % tiles_w) * BLOCK_W + tl.arange(0, BLOCK_W)
    i = (program % blocks) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    o = tl.arange(0, BLOCK_OUT)
    bottom = tl.minimum(top + BLOCK_H, height)
    left_edge = (tile % tiles_w) == 0
    right_edge = (tile % tiles_w) == tiles_w - 1

    g = g_ptr + n * g_stride_n
    w = w_ptr + n * w_stride_n
    gx = gx_ptr + n * gx_stride_n
    bits = bits_ptr + n * height * width * ((c_out + BITS - 1) // BITS)
    slope = tl.load(slope_ptr + n * slope_stride_n).to(tl.float32)
    w00 = load_tap(w, 0, o, i, c_out, c_in)
    w01 = load_tap(w, 1, o, i, c_out, c_in)
    w02 = load_tap(w, 2, o, i, c_out, c_in)
    w10 = load_tap(w, 3, o, i, c_out, c_in)
    w11 = load_tap(w, 4, o, i, c_out, c_in)
    w12 = load_tap(w, 5, o, i, c_out, c_in)
    w20 = load_tap(w, 6, o, i, c_out, c_in)
    w21 = load_tap(w, 7, o, i, c_out, c_in)
    w22 = load_tap(w, 8, o, i, c_out, c_in)

    # Sums of the rows of x above, at and below the row of g that is read.
    above = tl.zeros((BLOCK_W, BLOCK_IN), dtype=tl.float32)
    here = tl.zeros((BLOCK_W, BLOCK_IN), dtype=tl.float32)
    for read in tl.range(top - 1, bottom + 1, num_stages=STAGES):
        below = tl.zeros((BLOCK_W, BLOCK_IN), dtype=tl.float32)
        gz = _load_row(
            g, bits, slope, read, column + 1, c_out, height, width,
            g_stride_c, g_stride_h, g_stride_w, BLOCK_W, BLOCK_OUT,
        )  # fmt: skip
        if left_edge:
            gz += _load_row(
                g, bits, slope, read, tl.where(column == 0, 0, -1), c_out, height, width,
                g_stride_c, g_stride_h, g_stride_w, BLOCK_W, BLOCK_OUT,
            )  # fmt: skip
        a = gz.to(w_ptr.dtype.element_ty)
        above = tl.dot(a, w00, above, input_precision=PRECISION)
        here = tl.dot(a, w10, here, input_precision=PRECISION)
        below = tl.dot(a, w20, below, input_precision=PRECISION)
        gz = _load_row(
            g, bits, slope, read, column, c_out, height, width,
            g_stride_c, g_stride_h, g_stride_w, BLOCK_W, BLOCK_OUT,
        )  # fmt: skip
        a = gz.to(w_ptr.dtype.element_ty)
        above = tl.dot(a, w01, above, input_precision=PRECISION)
        here = tl.dot(a, w11, here, input_precision=PRECISION)
        below = tl.dot(a, w21, below, input_precision=PRECISION)
        gz = _load_row(
            g, bits, slope, read, column - 1, c_out, height, width,
            g_stride_c, g_stride_h, g_stride_w, BLOCK_W, BLOCK_OUT,
        )  # fmt: skip
        if right_edge:
            gz += _load_row(
                g, bits, slope, read, tl.where(column == width - 1, column, -1), c_out, height, width,
                g_stride_c, g_stride_h, g_stride_w, BLOCK_W, BLOCK_OUT,
            )  # fmt: skip
        a = gz.to(w_ptr.dtype.element_ty)
        above = tl.dot(a, w02, above, input_precision=PRECISION)
        here = tl.dot(a, w12, here, input_precision=PRECISION)
        below = tl.dot(a, w22, below, input_precision=PRECISION)
        # What flows out of the first and last row belongs to them.
        here = tl.where(read == 0, here + above, here)
        here = tl.where(read == height - 1, here + below, here)
        row = read - 1
        mask = ((column < width) & (row >= top))[:, None] & (i < c_in)[None, :]
        at = (column * gx_stride_w)[:, None] + (i * gx_stride_c)[None, :]
        tl.store(gx + row * gx_stride_h + at, above.to(gx_ptr.dtype.element_ty), mask=mask)
        above = here
        here = below


def applies(grad: Tensor, grad_x: Tensor, slope: Tensor, *, replicate: bool, sum_noise: bool) -> bool:
    """Whether the kernel covers this call.

    Channels must be contiguous and multiples of 16, at most 64 on output; padding "replicate"; one slope, or one per
    image; and no gradient to a noise of one map.
    """
    aligned = all(image.stride(1) == 1 and image.shape[1] % 16 == 0 for image in (grad, grad_x))
    return replicate and not sum_noise and slope.dim() <= 1 and grad.shape[1] <= CHANNEL_BLOCKS[-1] and aligned


def launch(
    grad: Tensor, weight: Tensor, slope: Tensor, bits: Tensor, grad_x: Tensor, *, tf32: bool, config: KernelConfig
) -> None:
    """Write the gradient to x, for calls that :func:`applies` to."""
    n, c_in, height, width = grad_x.shape
    c_out = weight.shape[-4]
    tiles, tiles_w = tile_counts(height, width, config)
    packed, w_stride_n = taps_first(weight, 1, 2)
    block_in = channel_block(c_in)
    _grad_input_rows_kernel[n * tiles * triton.cdiv(c_in, block_in),](
        grad, bits, packed, slope, grad_x,
        c_in, c_out, height, width, tiles, tiles_w,
        *grad.stride(), w_stride_n, slope_strides(slope)[0], *grad_x.stride(),
        BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=block_in, BLOCK_OUT=channel_block(c_out),
        STAGES=config.stages, PRECISION=dot_precision(grad.dtype, tf32),
        num_warps=config.warps, num_stages=config.stages, maxnreg=config.registers,
    )  # fmt: skip
