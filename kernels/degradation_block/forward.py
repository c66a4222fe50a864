"""The degradation block's forward kernel in Triton, and its launcher. Notation: degradation_block_shared."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.config import KernelConfig, channel_block
from ..common.convolution import BITS, TAPS, load_padded, tile_pixels
from ..common.launch import dot_precision, register_limit, table_config, taps_first, tile_counts
from ..common.layout import check_int32_extent, slope_strides
from . import forward_rows
from .configs import ROWS, TABLE, TILES
from .saved import saved_bytes, split_saved

NO_NOISE, FULL_NOISE, ONE_MAP = 0, 1, 2


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
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: BLOCK_OUT channels of one pixel tile. Channel blocks, then tiles, then images are neighbors."""
    program = tl.program_id(0)
    blocks = tl.cdiv(c_out, BLOCK_OUT)
    n = (program // (blocks * tiles)).to(tl.int64)
    row, column = tile_pixels((program // blocks) % tiles, tiles_w, BLOCK_H, BLOCK_W)
    o = (program % blocks) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)

    inside = (row < height) & (column < width)
    x = x_ptr + n * x_stride_n
    w = w_ptr + n * w_stride_n
    acc = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_OUT), dtype=tl.float32)
    for tap in tl.static_range(TAPS):
        for first in range(0, c_in, BLOCK_IN):
            i = first + tl.arange(0, BLOCK_IN)
            a = load_padded(
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
    config: KernelConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """The output in ``memory_format``, and the buffer of :mod:`degradation_block_saved` for ``save``."""
    n, c_in, height, width = x.shape
    c_out = weight.shape[-4]
    pixels = n * height * width
    out = torch.empty((n, c_out, height, width), dtype=x.dtype, device=x.device, memory_format=memory_format)
    saved = x.new_empty(saved_bytes(pixels, c_out, x.element_size(), save), dtype=torch.uint8)
    if out.numel() == 0:
        return out, saved
    bits, z = split_saved(saved, pixels, c_out, x.dtype) if save else (saved, None)
    if z is not None:
        saved[bits.numel() : saved.numel() - z.nbytes].zero_()  # at most 15 bytes, at common sizes none
    for name, value in (("x", x), ("out", out), *([("noise", noise)] if noise is not None else [])):
        check_int32_extent(name, value.shape, value.stride())
    config = config or table_config(TABLE, "forward", x.dtype, x.device, tf32)
    form = NO_NOISE if noise is None else (ONE_MAP if noise.shape[1] != c_out else FULL_NOISE)
    if config.design == ROWS:
        if forward_rows.applies(x, out, slope, noise, replicate=replicate, save_z=z is not None):
            forward_rows.launch(
                x, weight, slope, noise, out, bits if save else None, noise_form=form, tf32=tf32, config=config
            )
            return out, saved
        config = TILES["forward"]
    tiles, tiles_w = tile_counts(height, width, config)
    packed, w_stride_n = taps_first(weight, 2, 1)
    block_in, block_out = channel_block(c_in, config.block_k), channel_block(c_out)
    read = out if noise is None else noise
    _forward_kernel[n * tiles * triton.cdiv(c_out, block_out),](
        x, packed, slope, read, out, bits if save else out, out if z is None else z,
        c_in, c_out, height, width, tiles, tiles_w,
        *x.stride(), w_stride_n, *slope_strides(slope), *read.stride(), *out.stride(),
        int(replicate), form, save,
        BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=block_in, BLOCK_OUT=block_out,
        PRECISION=dot_precision(x.dtype, tf32),
        num_warps=config.warps, num_stages=config.stages, maxnreg=register_limit(config, x, read, out),
    )  # fmt: skip
    return out, saved
