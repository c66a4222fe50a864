"""Loads and products shared by the degradation block's row kernels. Notation: :mod:`..common.convolution`."""

import triton
import triton.language as tl

from ..common.convolution import load_activated


@triton.jit
def strip_pixels(
    tile,  # index of the strip within the image
    tiles_w,  # strips side by side
    BLOCK_H: tl.constexpr,  # rows of a strip
    BLOCK_W: tl.constexpr,  # columns of a strip
):
    """First row and columns [BLOCK_W] of a strip."""
    return (tile // tiles_w) * BLOCK_H, (tile % tiles_w) * BLOCK_W + tl.arange(0, BLOCK_W)


@triton.jit
def load_tap(
    w,  # image n of the weights, (9, K, BLOCK)
    tap,  # index of the tap
    k,  # [K] channels of the reduction
    o,  # [BLOCK] output channels
    k_count,  # number of channels of the reduction
    o_count,  # number of output channels
):
    """The weights of one tap, [K, BLOCK]; zero for channels that do not exist."""
    mask = (k < k_count)[:, None] & (o < o_count)[None, :]
    return tl.load(w + ((tap * k_count + k) * o_count)[:, None] + o[None, :], mask=mask, other=0.0)


@triton.jit
def load_taps(
    w,  # image n of the weights, (9, K, BLOCK)
    k,  # [K] channels of the reduction
    o,  # [BLOCK] output channels
    k_count,  # number of channels of the reduction
    o_count,  # number of output channels
):
    """The weights of all nine taps in order, each [K, BLOCK]."""
    return (
        load_tap(w, 0, k, o, k_count, o_count),
        load_tap(w, 1, k, o, k_count, o_count),
        load_tap(w, 2, k, o, k_count, o_count),
        load_tap(w, 3, k, o, k_count, o_count),
        load_tap(w, 4, k, o, k_count, o_count),
        load_tap(w, 5, k, o, k_count, o_count),
        load_tap(w, 6, k, o, k_count, o_count),
        load_tap(w, 7, k, o, k_count, o_count),
        load_tap(w, 8, k, o, k_count, o_count),
    )


@triton.jit
def load_row(
    x,  # image n of x
    row,  # row to read, which may lie outside of the image
    column,  # [P] columns to read, likewise
    i,  # [K] channels
    c_in,  # number of channels
    height,  # of the image
    width,  # of the image
    stride_c,  # strides of x, in values
    stride_h,
    stride_w,
    valid=None,  # [P] pixels to read, zero elsewhere; default: all
):
    """Pixels of one row, clamped to the image, [P, K]."""
    mask = (i < c_in)[None, :]
    if valid is not None:
        mask = valid[:, None] & mask
    at = tl.minimum(tl.maximum(column, 0), width - 1) * stride_w
    at_row = x + tl.minimum(tl.maximum(row, 0), height - 1) * stride_h
    return tl.load(at_row + (at[:, None] + (i * stride_c)[None, :]), mask=mask, other=0.0)


@triton.jit
def load_activated_row(
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


@triton.jit
def add_products(
    a,  # [P, K] pixels of the row that is read, shifted by one kernel column
    w_above,  # [K, BLOCK] weights of that kernel column, per row of the sums
    w_here,
    w_below,
    above,  # [P, BLOCK] sums of the rows above, at and below the row that is read
    here,
    below,
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """The sums of three rows after adding the products of one kernel column."""
    above = tl.dot(a, w_above, above, input_precision=PRECISION)
    here = tl.dot(a, w_here, here, input_precision=PRECISION)
    below = tl.dot(a, w_below, below, input_precision=PRECISION)
    return above, here, below
