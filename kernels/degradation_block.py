"""The degradation block in Triton: three kernels and their launchers. docs/kernels.md draws and counts them.

Notation: n image, p pixel of the output, q pixel of the input, o output and i input channel, k = (dy, dx) one of nine taps::

    forward      z[n,p,o]  = sum_k sum_i x[n, at(p + k), i] * w[n,k,i,o],    out = (z > 0 ? z : slope * z) + noise
    grad_input   gx[n,q,i] = sum_k sum_o sum_{p: at(p + k) = q} gz[n,p,o] * w[n,k,o,i],    gz = z > 0 ? g : slope * g
    grad_weight  gw[n,k,o,i] = sum_p gz[n,p,o] * x[n, at(p + k), i],    gslope[n,o] = sum_{p: not z > 0} z * g

``at`` clamps to the image (replicate padding) or reads zero outside of it. All tensors may have any strides; channels_last is
what the kernels are shaped for. Sums are taken in fp32. No atomics: two runs give the same bits.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .degradation_block_configs import TABLE, Config, architecture, channel_block
from .degradation_block_saved import saved_bytes, split_saved

TAPS = tl.constexpr(9)
BITS = tl.constexpr(8)  # sign bits of eight channels share a byte

NO_NOISE, FULL_NOISE, ONE_MAP = 0, 1, 2


@triton.jit
def _tile(
    tile,  # index of a pixel tile within the image
    tiles_w,  # tiles in a row
    BLOCK_H: tl.constexpr,  # rows of a tile
    BLOCK_W: tl.constexpr,  # columns of a tile
):  # type: ignore[no-untyped-def]
    """Rows and columns of a tile's pixels, each [BLOCK_H * BLOCK_W]."""
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    row = (tile // tiles_w) * BLOCK_H + pixel // BLOCK_W
    column = (tile % tiles_w) * BLOCK_W + pixel % BLOCK_W
    return row, column


@triton.jit
def _load_padded(
    x,  # image n of x
    row,  # [P] row of p + k, which may lie outside of the image
    column,  # [P] likewise
    wanted,  # [P] whether p exists; zero elsewhere, where a value that is not finite would do harm
    channel,  # [K] input channels
    c_in,  # number of input channels
    height,  # of the image
    width,  # of the image
    stride_c,  # strides of x, in values
    stride_h,
    stride_w,
    replicate,  # 1: clamp to the image, 0: zero outside of it
):  # type: ignore[no-untyped-def]
    """x[at(p + k), i] as [P, K]; zero for channels that do not exist."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row = tl.minimum(tl.maximum(row, 0), height - 1)
    column = tl.minimum(tl.maximum(column, 0), width - 1)
    offset = (row * stride_h + column * stride_w)[:, None] + (channel * stride_c)[None, :]
    mask = (wanted & (inside | (replicate != 0)))[:, None] & (channel < c_in)[None, :]
    return tl.load(x + offset, mask=mask, other=0.0)


@triton.jit
def _load_activated(
    g,  # image n of the incoming gradient
    bits,  # image n of the sign bits
    slope,  # [K] in fp32
    row,  # [P] row of p
    column,  # [P] column of p
    valid,  # [P] whether p exists and counts
    first,  # first output channel
    c_out,  # number of output channels
    width,  # of the image
    stride_c,  # strides of g, in values
    stride_h,
    stride_w,
    PIXELS: tl.constexpr,  # P
    BLOCK_K: tl.constexpr,  # K, output channels in the block
):  # type: ignore[no-untyped-def]
    """(g, gz) in fp32, each [P, K]; the comparison is made as [P, K/8, 8], where a byte meets the channels it is about."""
    channel = first + tl.arange(0, BLOCK_K)
    offset = (row * stride_h + column * stride_w)[:, None] + (channel * stride_c)[None, :]
    grad = tl.load(g + offset, mask=valid[:, None] & (channel < c_out)[None, :], other=0.0).to(tl.float32)
    c_bytes = (c_out + BITS - 1) // BITS
    byte = first // BITS + tl.arange(0, BLOCK_K // BITS)
    at_byte = ((row * width + column) * c_bytes)[:, None] + byte[None, :]
    packed = tl.load(bits + at_byte, mask=valid[:, None] & (byte < c_bytes)[None, :], other=0).to(tl.int32)
    positive = (packed[:, :, None] >> tl.arange(0, BITS)[None, None, :]) & 1
    by_byte = tl.reshape(grad, (PIXELS, BLOCK_K // BITS, BITS))
    scaled = tl.reshape(grad * slope[None, :], (PIXELS, BLOCK_K // BITS, BITS))
    return grad, tl.reshape(tl.where(positive != 0, by_byte, scaled), (PIXELS, BLOCK_K))


@triton.jit
def _load_slope(
    slope,  # the slopes of image n
    stride_c,  # 0 for one slope an image
    first,  # first output channel
    c_out,  # number of output channels
    BLOCK_K: tl.constexpr,  # output channels in the block
):  # type: ignore[no-untyped-def]
    """The slopes of a block of channels, [K] in fp32."""
    channel = first + tl.arange(0, BLOCK_K)
    return tl.load(slope + channel * stride_c, mask=channel < c_out, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["height", "width", "tiles", "tiles_w", "replicate", "noise_form", "save"])
def _forward_kernel(
    x_ptr,  # (N, Cin, H, W), any strides
    w_ptr,  # (N or 1, 9, Cin, Cout), contiguous
    slope_ptr,  # slopes, any of the three shapes
    noise_ptr,  # (N, Cout or 1, H, W), any strides; unused without noise
    out_ptr,  # (N, Cout, H, W), any strides
    bits_ptr,  # (N, H, W, ceil(Cout / 8)) bytes; unused if save is 0
    z_ptr,  # (N, H, W, Cout), contiguous; unused unless save is 2
    c_in,  # input channels
    c_out,  # output channels
    height,  # of the images
    width,  # of the images
    tiles,  # pixel tiles of an image
    tiles_w,  # pixel tiles in a row
    x_stride_n,  # strides of x, in values
    x_stride_c,
    x_stride_h,
    x_stride_w,
    w_stride_n,  # 0 for shared weights
    slope_stride_n,  # 0 for a scalar slope
    slope_stride_c,  # 0 for one slope an image
    noise_stride_n,  # strides of noise, in values
    noise_stride_c,
    noise_stride_h,
    noise_stride_w,
    out_stride_n,  # strides of out, in values
    out_stride_c,
    out_stride_h,
    out_stride_w,
    replicate,  # 1: replicate padding, 0: zeros
    noise_form,  # 0: none, 1: a map a channel, 2: one map
    save,  # 0: nothing, 1: sign bits, 2: sign bits and z
    BLOCK_H: tl.constexpr,  # rows of a pixel tile
    BLOCK_W: tl.constexpr,  # columns of a pixel tile
    BLOCK_IN: tl.constexpr,  # input channels a step
    BLOCK_OUT: tl.constexpr,  # output channels a program
    ONE_STEP: tl.constexpr,  # whether BLOCK_IN holds all input channels
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):  # type: ignore[no-untyped-def]
    """One program: BLOCK_OUT channels of one pixel tile. Channel blocks, then tiles, then images are neighbours."""
    program = tl.program_id(0)
    blocks = tl.cdiv(c_out, BLOCK_OUT)
    n = (program // (blocks * tiles)).to(tl.int64)
    row, column = _tile((program // blocks) % tiles, tiles_w, BLOCK_H, BLOCK_W)
    o = (program % blocks) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)

    inside = (row < height) & (column < width)
    x = x_ptr + n * x_stride_n
    w = w_ptr + n * w_stride_n
    acc = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_OUT), dtype=tl.float32)
    for tap in tl.static_range(TAPS):
        for first in range(0, BLOCK_IN if ONE_STEP else c_in, BLOCK_IN):
            i = first + tl.arange(0, BLOCK_IN)
            a = _load_padded(
                x, row + (tap // 3 - 1), column + (tap % 3 - 1), inside, i, c_in, height, width,
                x_stride_c, x_stride_h, x_stride_w, replicate,
            )  # fmt: skip
            mask = (i < c_in)[:, None] & (o < c_out)[None, :]
            b = tl.load(w + ((tap * c_in + i) * c_out)[:, None] + o[None, :], mask=mask, other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    slope = tl.load(slope_ptr + n * slope_stride_n + o * slope_stride_c, mask=o < c_out, other=0.0).to(tl.float32)
    positive = acc > 0
    out = tl.where(positive, acc, acc * slope[None, :])
    store = inside[:, None] & (o < c_out)[None, :]
    if noise_form == 1:
        at = (row * noise_stride_h + column * noise_stride_w)[:, None] + (o * noise_stride_c)[None, :]
        out += tl.load(noise_ptr + n * noise_stride_n + at, mask=store, other=0.0).to(tl.float32)
    if noise_form == 2:
        at_pixel = row * noise_stride_h + column * noise_stride_w
        one_map = tl.load(noise_ptr + n * noise_stride_n + at_pixel, mask=inside, other=0.0).to(tl.float32)
        out += one_map[:, None]
    offset = (row * out_stride_h + column * out_stride_w)[:, None] + (o * out_stride_c)[None, :]
    tl.store(out_ptr + n * out_stride_n + offset, out.to(out_ptr.dtype.element_ty), mask=store)

    pixel = row * width + column
    if save >= 1:
        flags = tl.reshape(positive.to(tl.int32), (BLOCK_H * BLOCK_W, BLOCK_OUT // BITS, BITS))
        packed = tl.sum(flags << tl.arange(0, BITS)[None, None, :], axis=2)
        c_bytes = (c_out + BITS - 1) // BITS
        byte = (program % blocks) * (BLOCK_OUT // BITS) + tl.arange(0, BLOCK_OUT // BITS)
        bits = bits_ptr + n * height * width * c_bytes
        at_byte = (pixel * c_bytes)[:, None] + byte[None, :]
        tl.store(bits + at_byte, packed.to(tl.uint8), mask=inside[:, None] & (byte < c_bytes)[None, :])
    if save == 2:
        z = z_ptr + n * height * width * c_out
        tl.store(z + (pixel * c_out)[:, None] + o[None, :], acc.to(z_ptr.dtype.element_ty), mask=store)


@triton.jit
def _dot_taps_weight(
    gz,  # [P, BLOCK_OUT] in fp32
    w,  # image n of the weights, (9, Cout, Cin)
    acc,  # [P, BLOCK_IN]
    tap,  # index of the tap
    first,  # first output channel
    i,  # [BLOCK_IN] input channels
    c_in,  # number of input channels
    c_out,  # number of output channels
    BLOCK_OUT: tl.constexpr,  # output channels in the block
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):  # type: ignore[no-untyped-def]
    """acc plus gz times the weights of one tap."""
    o = first + tl.arange(0, BLOCK_OUT)
    mask = (o < c_out)[:, None] & (i < c_in)[None, :]
    b = tl.load(w + ((tap * c_out + o) * c_in)[:, None] + i[None, :], mask=mask, other=0.0)
    return tl.dot(gz.to(w.dtype.element_ty), b, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=["height", "width", "tiles", "tiles_w", "replicate", "sum_noise"])
def _grad_input_kernel(
    g_ptr,  # (N, Cout, H, W), any strides: the incoming gradient
    bits_ptr,  # (N, H, W, ceil(Cout / 8)) bytes
    w_ptr,  # (N or 1, 9, Cout, Cin), contiguous
    slope_ptr,  # slopes, any of the three shapes
    gx_ptr,  # (N, Cin, H, W), any strides
    gnoise_ptr,  # (N, H, W), contiguous: the gradient of one noise map; unused unless sum_noise
    c_in,  # input channels
    c_out,  # output channels
    height,  # of the images
    width,  # of the images
    tiles,  # pixel tiles of an image
    tiles_w,  # pixel tiles in a row
    g_stride_n,  # strides of g, in values
    g_stride_c,
    g_stride_h,
    g_stride_w,
    w_stride_n,  # 0 for shared weights
    slope_stride_n,  # 0 for a scalar slope
    slope_stride_c,  # 0 for one slope an image
    gx_stride_n,  # strides of gx, in values
    gx_stride_c,
    gx_stride_h,
    gx_stride_w,
    replicate,  # 1: replicate padding, 0: zeros
    sum_noise,  # 1: also sum g over the channels into gnoise
    BLOCK_H: tl.constexpr,  # rows of a pixel tile
    BLOCK_W: tl.constexpr,  # columns of a pixel tile
    BLOCK_IN: tl.constexpr,  # input channels a program
    BLOCK_OUT: tl.constexpr,  # output channels a step
    ONE_STEP: tl.constexpr,  # whether BLOCK_OUT holds all output channels
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):  # type: ignore[no-untyped-def]
    """One program: BLOCK_IN channels of one tile of input pixels q; tap k reads gz at p = q - k.

    Replicate padding: the frame pixel at row -1 is a copy of row 0, so row 0 also gets what flows into row -1: from p of row 0
    by the taps dy = -1. The last row, the columns and the corners likewise. The tap's weights are those of q itself, so
    the frame's gz are added to the operand: one more load at an edge, three at a corner, only in tiles at a border.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(c_in, BLOCK_IN)
    n = (program // (blocks * tiles)).to(tl.int64)
    tile = (program // blocks) % tiles
    row, column = _tile(tile, tiles_w, BLOCK_H, BLOCK_W)
    i = (program % blocks) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    top = (tile // tiles_w) * BLOCK_H
    left = (tile % tiles_w) * BLOCK_W
    at_border = (top == 0) | (left == 0) | (top + BLOCK_H >= height) | (left + BLOCK_W >= width)
    fold = at_border & (replicate != 0)

    g = g_ptr + n * g_stride_n
    w = w_ptr + n * w_stride_n
    bits = bits_ptr + n * height * width * ((c_out + BITS - 1) // BITS)
    acc = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_IN), dtype=tl.float32)
    inside = (row < height) & (column < width)
    for tap in tl.static_range(TAPS):
        p_row = row - (tap // 3 - 1)
        p_column = column - (tap % 3 - 1)
        valid = inside & (p_row >= 0) & (p_row < height) & (p_column >= 0) & (p_column < width)
        for first in range(0, BLOCK_OUT if ONE_STEP else c_out, BLOCK_OUT):
            slope = _load_slope(slope_ptr + n * slope_stride_n, slope_stride_c, first, c_out, BLOCK_OUT)
            _, gz = _load_activated(
                g, bits, slope, p_row, p_column, valid, first, c_out, width,
                g_stride_c, g_stride_h, g_stride_w, BLOCK_H * BLOCK_W, BLOCK_OUT,
            )  # fmt: skip
            acc = _dot_taps_weight(gz, w, acc, tap, first, i, c_in, c_out, BLOCK_OUT, PRECISION)
    if fold:
        # Frame pixel q + s, for q on the border beside it: reached along s by the taps with k = s only.
        for s_row in range(-1, 2):
            for s_column in range(-1, 2):
                beside_row = (s_row == 0) | (row == tl.where(s_row < 0, 0, height - 1))
                beside_column = (s_column == 0) | (column == tl.where(s_column < 0, 0, width - 1))
                beside = inside & beside_row & beside_column & ((s_row != 0) | (s_column != 0))
                if tl.max(beside.to(tl.int32), axis=0) != 0:
                    last_row = tl.where(s_row == 0, 1, s_row)
                    last_column = tl.where(s_column == 0, 1, s_column)
                    for k_row in range(tl.where(s_row == 0, -1, s_row), last_row + 1):
                        for k_column in range(tl.where(s_column == 0, -1, s_column), last_column + 1):
                            f_row = row + s_row - k_row
                            f_column = column + s_column - k_column
                            f_valid = beside & (f_row >= 0) & (f_row < height)
                            f_valid = f_valid & (f_column >= 0) & (f_column < width)
                            for f_first in range(0, BLOCK_OUT if ONE_STEP else c_out, BLOCK_OUT):
                                f_slope = _load_slope(
                                    slope_ptr + n * slope_stride_n, slope_stride_c, f_first, c_out, BLOCK_OUT
                                )
                                _, f_gz = _load_activated(
                                    g, bits, f_slope, f_row, f_column, f_valid, f_first, c_out, width,
                                    g_stride_c, g_stride_h, g_stride_w, BLOCK_H * BLOCK_W, BLOCK_OUT,
                                )  # fmt: skip
                                f_tap = (k_row + 1) * 3 + k_column + 1
                                acc = _dot_taps_weight(
                                    f_gz, w, acc, f_tap, f_first, i, c_in, c_out,
                                    BLOCK_OUT, PRECISION,
                                )  # fmt: skip

    offset = (row * gx_stride_h + column * gx_stride_w)[:, None] + (i * gx_stride_c)[None, :]
    mask = inside[:, None] & (i < c_in)[None, :]
    tl.store(gx_ptr + n * gx_stride_n + offset, acc.to(gx_ptr.dtype.element_ty), mask=mask)
    if (sum_noise != 0) & (program % blocks == 0):
        # The tile's own gradients again, which the middle tap has just brought into L1.
        total = tl.zeros((BLOCK_H * BLOCK_W,), dtype=tl.float32)
        for n_first in range(0, BLOCK_OUT if ONE_STEP else c_out, BLOCK_OUT):
            n_o = n_first + tl.arange(0, BLOCK_OUT)
            n_offset = (row * g_stride_h + column * g_stride_w)[:, None] + (n_o * g_stride_c)[None, :]
            grad = tl.load(g + n_offset, mask=inside[:, None] & (n_o < c_out)[None, :], other=0.0)
            total += tl.sum(grad.to(tl.float32), axis=1)
        gnoise = gnoise_ptr + n * height * width
        tl.store(gnoise + row * width + column, total.to(gnoise_ptr.dtype.element_ty), mask=inside)


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
):  # type: ignore[no-untyped-def]
    """One program: the three taps of one kernel row, BLOCK_OUT x BLOCK_IN channels, summed over one split of the tiles."""
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
    slope = _load_slope(slope_ptr + n * slope_stride_n, slope_stride_c, first, c_out, BLOCK_OUT)
    # The incoming gradient is read by every kernel row and input block; the first of them reduces the slope's.
    reduce_slope = (want_slope != 0) & (in_block == 0) & (kernel_row == 0)

    left = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    middle = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    right = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    gslope = tl.zeros((BLOCK_OUT,), dtype=tl.float32)
    each = tl.cdiv(tiles, splits)
    for tile in range(split * each, tl.minimum((split + 1) * each, tiles)):
        row, column = _tile(tile, tiles_w, BLOCK_H, BLOCK_W)
        inside = (row < height) & (column < width)
        grad, gz = _load_activated(
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
            b = _load_padded(
                x, x_row, column - 1, inside, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w, replicate
            )  # fmt: skip
            left = tl.dot(a, b, left, input_precision=PRECISION)
            b = _load_padded(
                x, x_row, column, inside, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w, replicate
            )  # fmt: skip
            middle = tl.dot(a, b, middle, input_precision=PRECISION)
            b = _load_padded(
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


# ----------------------------------------------------------------------------------------------------------- launchers


@functools.cache
def _architecture(device: torch.device) -> str:
    return architecture(torch.cuda.get_device_capability(device))


def _precision(dtype: torch.dtype, tf32: bool) -> str:
    if dtype in (torch.bfloat16, torch.float16):
        return "half"
    return "tf32" if tf32 else "tf32x3"


def _config(kernel: str, x: Tensor, tf32: bool) -> Config:
    """The table's entry; Triton's interpreter, which runs on the CPU, takes that of the oldest architecture."""
    name = _architecture(x.device) if x.device.type == "cuda" else min(TABLE)
    return TABLE[name][kernel, _precision(x.dtype, tf32)]


def _dot_precision(dtype: torch.dtype, tf32: bool) -> str:
    """tl.dot's input_precision; it has no meaning for half types."""
    precision = _precision(dtype, tf32)
    return "tf32" if precision == "half" else precision


def _refuse_huge(name: str, value: Tensor) -> None:
    """Offsets within an image are 32-bit."""
    extent = sum((size - 1) * stride for size, stride in zip(value.shape[1:], value.stride()[1:], strict=True))
    if extent >= 2**31:
        raise ValueError(f"an image of {name} must span fewer than 2**31 values, spanned {extent + 1}")


def _slope_strides(slope: Tensor) -> tuple[int, int]:
    return (*slope.stride(), 0, 0)[:2] if slope.dim() else (0, 0)


def _tiles(height: int, width: int, config: Config) -> tuple[int, int]:
    """Pixel tiles of an image, and in a row of it."""
    tiles_w = triton.cdiv(width, config.block_w)
    return triton.cdiv(height, config.block_h) * tiles_w, tiles_w


def _taps_first(weight: Tensor, *order: int) -> tuple[Tensor, int]:
    """Weights as (N or 1, 9, ...), contiguous, the channels in the given order, and the stride of an image, 0 if shared."""
    packed = weight.flatten(-2).reshape(-1, *weight.shape[-4:-2], 9).permute(0, 3, *order).contiguous()
    return packed, packed.stride(0) if weight.dim() == 5 else 0


def forward(
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    noise: Tensor | None,
    *,
    replicate: bool,
    save: int,
    tf32: bool,
    memory_format: torch.memory_format,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """The output in ``memory_format``, and the buffer of :mod:`degradation_block_saved` for ``save``."""
    n, c_in, height, width = x.shape
    c_out = weight.shape[-4]
    pixels = n * height * width
    out = x.new_empty((n, c_out, height, width)).to(memory_format=memory_format)
    saved = x.new_empty(saved_bytes(pixels, c_out, x.element_size(), save), dtype=torch.uint8)
    if out.numel() == 0:
        return out, saved
    bits, z = split_saved(saved, pixels, c_out, x.dtype) if save else (saved, None)
    for name, value in (("x", x), ("out", out), *([("noise", noise)] if noise is not None else [])):
        _refuse_huge(name, value)
    config = config or _config("forward", x, tf32)
    tiles, tiles_w = _tiles(height, width, config)
    packed, w_stride_n = _taps_first(weight, 2, 1)
    block_out = channel_block(c_out)
    form = NO_NOISE if noise is None else (ONE_MAP if noise.shape[1] != c_out else FULL_NOISE)
    read = out if noise is None else noise
    _forward_kernel[n * tiles * triton.cdiv(c_out, block_out),](
        x, packed, slope, read, out, bits if save else out, out if z is None else z,
        c_in, c_out, height, width, tiles, tiles_w,
        *x.stride(), w_stride_n, *_slope_strides(slope), *read.stride(), *out.stride(),
        int(replicate), form, save,
        BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=channel_block(c_in), BLOCK_OUT=block_out,
        ONE_STEP=c_in <= channel_block(c_in),
        PRECISION=_dot_precision(x.dtype, tf32), num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out, saved


def grad_input(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    saved: Tensor,
    *,
    replicate: bool,
    noise_map: torch.dtype | None,
    tf32: bool,
    memory_format: torch.memory_format,
    config: Config | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient to x in ``memory_format``; with ``noise_map`` also that of a (N, 1, H, W) noise, in that dtype."""
    n, c_in, height, width = x.shape
    c_out = weight.shape[-4]
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    grad_noise = None if noise_map is None else grad.new_empty((n, 1, height, width), dtype=noise_map)
    for name, value in (("grad", grad), ("x", grad_x)):
        _refuse_huge(name, value)
    config = config or _config("grad_input", x, tf32)
    tiles, tiles_w = _tiles(height, width, config)
    packed, w_stride_n = _taps_first(weight, 1, 2)
    block_in = channel_block(c_in)
    bits, _ = split_saved(saved, n * height * width, c_out, x.dtype)
    if grad_x.numel():
        _grad_input_kernel[n * tiles * triton.cdiv(c_in, block_in),](
            grad, bits, packed, slope, grad_x, grad_x if grad_noise is None else grad_noise,
            c_in, c_out, height, width, tiles, tiles_w,
            *grad.stride(), w_stride_n, *_slope_strides(slope), *grad_x.stride(),
            int(replicate), int(grad_noise is not None),
            BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=block_in, BLOCK_OUT=channel_block(c_out),
            ONE_STEP=c_out <= channel_block(c_out),
            PRECISION=_dot_precision(x.dtype, tf32), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return grad_x, grad_noise


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
    config = config or _config("grad_weight", x, tf32)
    tiles, tiles_w = _tiles(height, width, config)
    block_in, block_out = channel_block(c_in), channel_block(c_out)
    rows, in_blocks = (3, triton.cdiv(c_in, block_in)) if want_weight else (1, 1)
    groups = n * rows * in_blocks * triton.cdiv(c_out, block_out)
    splits = min(max(triton.cdiv(config.programs, max(groups, 1)), 1), max(tiles, 1))
    gw = x.new_empty((n, splits, 9, c_out, c_in) if want_weight else 0, dtype=torch.float32)
    gslope = x.new_empty((n, splits, c_out) if want_slope else 0, dtype=torch.float32)
    for name, value in (("grad", grad), ("x", x)):
        _refuse_huge(name, value)
    bits, z = split_saved(saved, n * height * width, c_out, x.dtype)
    if want_slope and z is None:
        raise ValueError("the slope's gradient needs z, and only sign bits were saved")
    if groups:
        _grad_weight_kernel[groups * splits,](
            grad, bits, x if z is None else z, slope, x, gw if want_weight else gslope, gslope if want_slope else gw,
            c_in, c_out, height, width, tiles, tiles_w, splits,
            *grad.stride(), *_slope_strides(slope), *x.stride(),
            int(replicate), int(want_slope),
            WANT_WEIGHT=want_weight, BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=block_in,
            BLOCK_OUT=block_out, PRECISION=_dot_precision(x.dtype, tf32),
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    summed = None
    if want_weight:
        one = gw.sum(1) if weight.dim() == 5 else gw.sum((0, 1)).unsqueeze(0)
        summed = one.permute(0, 2, 3, 1).reshape(weight.shape).to(weight.dtype, copy=True).contiguous()
    return summed, gslope.sum(1) if want_slope else None
