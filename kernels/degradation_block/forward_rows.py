"""The degradation block's forward pass by rows, and its launcher: design "rows" of the configurations.

A program walks down a strip of ``block_h`` rows and ``block_w`` columns. It loads each input row three times, once per
kernel column, and adds each to the sums of the three output rows that it serves, one per kernel row. The sums move up
by one with each row, so an output row is complete, and stored, once the row below it has been read. The nine taps of
the weights are loaded before the first row and stay in shared memory. Input rows arrive there by asynchronous copies.

Covers what the shipped configurations ask for (:func:`applies`). Other calls use the design of :mod:`.forward`, because
masks of zero padding or a slope per channel would not fit into registers. Notation: :mod:`..common.convolution`.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..common.config import CHANNEL_BLOCKS, KernelConfig, channel_block
from ..common.convolution import BITS
from ..common.launch import dot_precision, taps_first, tile_counts
from ..common.layout import slope_strides
from .rows import add_products, load_row, load_taps, strip_pixels


@triton.jit(do_not_specialize=["height", "width", "tiles", "tiles_w", "noise_form", "save"])
def _forward_rows_kernel(
    x_ptr,  # (N, Cin, H, W), any strides
    w_ptr,  # (N or 1, 9, Cin, Cout), contiguous
    slope_ptr,  # one slope, or (N)
    noise_ptr,  # (N, Cout or 1, H, W), any strides; unused without noise
    out_ptr,  # (N, Cout, H, W), any strides
    bits_ptr,  # (N, H, W, ceil(Cout / 8)) bytes; unused if save is 0
    c_in,  # input channels, at most BLOCK_IN
    c_out,  # output channels
    height,  # of the images
    width,  # of the images
    tiles,  # strips per image
    tiles_w,  # strips side by side
    x_stride_n,  # strides of x, in values
    x_stride_c,
    x_stride_h,
    x_stride_w,
    w_stride_n,  # 0 for shared weights
    slope_stride_n,  # 0 for a scalar slope
    noise_stride_n,  # strides of noise, in values
    noise_stride_c,
    noise_stride_h,
    noise_stride_w,
    out_stride_n,  # strides of out, in values
    out_stride_c,
    out_stride_h,
    out_stride_w,
    noise_form,  # 0: none, 1: a map per channel, 2: one map
    save,  # 1: also store sign bits
    BLOCK_H: tl.constexpr,  # rows of a strip
    BLOCK_W: tl.constexpr,  # columns of a strip
    BLOCK_IN: tl.constexpr,  # input channels, all of them
    BLOCK_OUT: tl.constexpr,  # output channels per program
    STAGES: tl.constexpr,  # software pipeline depth of the loop over rows
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: BLOCK_OUT channels of one strip. Program order: channel blocks, strips, images."""
    program = tl.program_id(0)
    blocks = tl.cdiv(c_out, BLOCK_OUT)
    n = (program // (blocks * tiles)).to(tl.int64)
    tile = (program // blocks) % tiles
    top, column = strip_pixels(tile, tiles_w, BLOCK_H, BLOCK_W)
    o = (program % blocks) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    i = tl.arange(0, BLOCK_IN)
    bottom = tl.minimum(top + BLOCK_H, height)
    exists = column < width

    x = x_ptr + n * x_stride_n
    w = w_ptr + n * w_stride_n
    noise = noise_ptr + n * noise_stride_n
    out = out_ptr + n * out_stride_n
    c_bytes = (c_out + BITS - 1) // BITS
    byte = (program % blocks) * (BLOCK_OUT // BITS) + tl.arange(0, BLOCK_OUT // BITS)
    bits = bits_ptr + n * height * width * c_bytes
    slope = tl.load(slope_ptr + n * slope_stride_n).to(tl.float32)

    w00, w01, w02, w10, w11, w12, w20, w21, w22 = load_taps(w, i, o, c_in, c_out)

    # Sums of the output rows above, at and below the row that is read.
    above = tl.zeros((BLOCK_W, BLOCK_OUT), dtype=tl.float32)
    here = tl.zeros((BLOCK_W, BLOCK_OUT), dtype=tl.float32)
    for read in tl.range(top - 1, bottom + 1, num_stages=STAGES):
        below = tl.zeros((BLOCK_W, BLOCK_OUT), dtype=tl.float32)
        a = load_row(x, read, column - 1, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w)
        above, here, below = add_products(a, w20, w10, w00, above, here, below, PRECISION)
        a = load_row(x, read, column, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w)
        above, here, below = add_products(a, w21, w11, w01, above, here, below, PRECISION)
        a = load_row(x, read, column + 1, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w)
        above, here, below = add_products(a, w22, w12, w02, above, here, below, PRECISION)

        row = read - 1
        exists_row = exists & (row >= top)
        store = exists_row[:, None] & (o < c_out)[None, :]
        positive = above > 0
        value = tl.where(positive, above, above * slope)
        if noise_form == 1:
            at = (column * noise_stride_w)[:, None] + (o * noise_stride_c)[None, :]
            value += tl.load(noise + row * noise_stride_h + at, mask=store, other=0.0).to(tl.float32)
        if noise_form == 2:
            at_pixel = row * noise_stride_h + column * noise_stride_w
            value += tl.load(noise + at_pixel, mask=exists_row, other=0.0).to(tl.float32)[:, None]
        at_out = (column * out_stride_w)[:, None] + (o * out_stride_c)[None, :]
        tl.store(out + row * out_stride_h + at_out, value.to(out_ptr.dtype.element_ty), mask=store)
        pixel = row * width + column
        if save >= 1:
            flags = tl.reshape(positive.to(tl.int32), (BLOCK_W, BLOCK_OUT // BITS, BITS))
            packed = tl.sum(flags << tl.arange(0, BITS)[None, None, :], axis=2)
            at_byte = (pixel * c_bytes)[:, None] + byte[None, :]
            tl.store(bits + at_byte, packed.to(tl.uint8), mask=exists_row[:, None] & (byte < c_bytes)[None, :])
        # Never true: a use of the sums makes the loop wait for them. Without one ptxas serializes every wgmma.
        above = tl.where(read > height, 0.0, here)
        here = tl.where(read > height, 0.0, below)


def applies(x: Tensor, out: Tensor, slope: Tensor, noise: Tensor | None, *, replicate: bool, save_z: bool) -> bool:
    """Whether the kernel covers this call.

    Channels must be contiguous and multiples of 16, at most 64 on input; padding "replicate"; one slope, or one per
    image; and z is not kept.
    """
    aligned = all(image.stride(1) == 1 and image.shape[1] % 16 == 0 for image in (x, out))
    contiguous = noise is None or noise.stride(1) == 1 or noise.shape[1] == 1
    return replicate and not save_z and slope.dim() <= 1 and x.shape[1] <= CHANNEL_BLOCKS[-1] and aligned and contiguous


def launch(
    x: Tensor,
    weight: Tensor,
    slope: Tensor,
    noise: Tensor | None,
    out: Tensor,
    bits: Tensor | None,
    *,
    noise_form: int,
    tf32: bool,
    config: KernelConfig,
) -> None:
    """Write the output, and the sign bits if there is a buffer for them, for calls that :func:`applies` to."""
    n, c_in, height, width = x.shape
    c_out = weight.shape[-4]
    tiles, tiles_w = tile_counts(height, width, config)
    packed, w_stride_n = taps_first(weight, 2, 1)
    block_out = channel_block(c_out)
    read = out if noise is None else noise
    _forward_rows_kernel[n * tiles * triton.cdiv(c_out, block_out),](
        x, packed, slope, read, out, out if bits is None else bits,
        c_in, c_out, height, width, tiles, tiles_w,
        *x.stride(), w_stride_n, slope_strides(slope)[0], *read.stride(), *out.stride(),
        noise_form, int(bits is not None),
        BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=channel_block(c_in), BLOCK_OUT=block_out,
        STAGES=config.stages, PRECISION=dot_precision(x.dtype, tf32),
        num_warps=config.warps, num_stages=config.stages, maxnreg=config.registers,
    )  # fmt: skip
