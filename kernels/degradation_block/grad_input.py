"""The degradation block's gradient to x in Triton, and its launcher. Notation: degradation_block_shared."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.config import KernelConfig, channel_block
from ..common.convolution import BITS, TAPS, load_activated, load_slope, tile_pixels
from ..common.launch import dot_precision, register_limit, table_config, taps_first, tile_counts
from ..common.layout import check_int32_extent, slope_strides
from . import grad_input_rows
from .configs import ROWS, TABLE, TILES
from .saved import split_saved


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
):
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
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: BLOCK_IN channels of one tile of input pixels q; tap k reads gz at p = q - k.

    Replicate padding: a frame pixel q + s is a copy of the border pixel q, so q also gets what flows into the frame.
    One pixel outside, only the taps with dy = s_row (or dx = s_column) come from a p inside of the image: three at an
    edge, one at a corner. Those are added here, in index arithmetic, by the programs that own q, and only in tiles at
    a border: no atomics, no padded copy, no second pass.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(c_in, BLOCK_IN)
    n = (program // (blocks * tiles)).to(tl.int64)
    tile = (program // blocks) % tiles
    row, column = tile_pixels(tile, tiles_w, BLOCK_H, BLOCK_W)
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
        for first in range(0, c_out, BLOCK_OUT):
            slope = load_slope(slope_ptr + n * slope_stride_n, slope_stride_c, first, c_out, BLOCK_OUT)
            _, gz, _ = load_activated(
                g, bits, slope, p_row, p_column, valid, first, c_out, width,
                g_stride_c, g_stride_h, g_stride_w, BLOCK_H * BLOCK_W, BLOCK_OUT,
            )  # fmt: skip
            acc = _dot_taps_weight(gz, w, acc, tap, first, i, c_in, c_out, BLOCK_OUT, PRECISION)
    if fold:
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
                            for f_first in range(0, c_out, BLOCK_OUT):
                                f_slope = load_slope(
                                    slope_ptr + n * slope_stride_n, slope_stride_c, f_first, c_out, BLOCK_OUT
                                )
                                _, f_gz, _ = load_activated(
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
        for n_first in range(0, c_out, BLOCK_OUT):
            n_o = n_first + tl.arange(0, BLOCK_OUT)
            n_offset = (row * g_stride_h + column * g_stride_w)[:, None] + (n_o * g_stride_c)[None, :]
            grad = tl.load(g + n_offset, mask=inside[:, None] & (n_o < c_out)[None, :], other=0.0)
            total += tl.sum(grad.to(tl.float32), axis=1)
        gnoise = gnoise_ptr + n * height * width
        tl.store(gnoise + row * width + column, total.to(gnoise_ptr.dtype.element_ty), mask=inside)


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
    config: KernelConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient to x in ``memory_format``; with ``noise_map`` also that of a (N, 1, H, W) noise, in that dtype.

    Where x is empty no kernel runs, and None stands for the noise's gradient, wanted or not.
    """
    n, c_in, height, width = x.shape
    c_out = weight.shape[-4]
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    grad_noise = None
    if noise_map is not None and grad_x.numel():
        shape = (n, 1, height, width)
        grad_noise = torch.empty(shape, dtype=noise_map, device=x.device, memory_format=memory_format)
    for name, value in (("grad", grad), ("x", grad_x)):
        check_int32_extent(name, value.shape, value.stride())
    config = config or table_config(TABLE, "grad_input", x.dtype, x.device, tf32)
    bits, _ = split_saved(saved, n * height * width, c_out, x.dtype)
    if config.design == ROWS:
        sum_noise = noise_map is not None
        if grad_x.numel() and grad_input_rows.applies(grad, grad_x, slope, replicate=replicate, sum_noise=sum_noise):
            grad_input_rows.launch(grad, weight, slope, bits, grad_x, tf32=tf32, config=config)
            return grad_x, None
        config = TILES["grad_input"]
    tiles, tiles_w = tile_counts(height, width, config)
    packed, w_stride_n = taps_first(weight, 1, 2)
    block_in, block_out = channel_block(c_in), channel_block(c_out, config.block_k)
    if grad_x.numel():
        _grad_input_kernel[n * tiles * triton.cdiv(c_in, block_in),](
            grad, bits, packed, slope, grad_x, grad_x if grad_noise is None else grad_noise,
            c_in, c_out, height, width, tiles, tiles_w,
            *grad.stride(), w_stride_n, *slope_strides(slope), *grad_x.stride(),
            int(replicate), int(grad_noise is not None),
            BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=block_in, BLOCK_OUT=block_out,
            PRECISION=dot_precision(x.dtype, tf32),
            num_warps=config.warps, num_stages=config.stages, maxnreg=register_limit(config, grad, grad_x),
        )  # fmt: skip
    return grad_x, grad_noise
