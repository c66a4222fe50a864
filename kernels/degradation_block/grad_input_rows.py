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
from ..common.convolution import BITS
from ..common.launch import dot_precision, taps_first, tile_counts
from ..common.layout import slope_strides
from .rows import add_products, load_activated_row, load_taps, strip_pixels


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
    top, column = strip_pixels(tile, tiles_w, BLOCK_H, BLOCK_W)
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
    w00, w01, w02, w10, w11, w12, w20, w21, w22 = load_taps(w, o, i, c_out, c_in)

    # Sums of the rows of x above, at and below the row of g that is read.
    above = tl.zeros((BLOCK_W, BLOCK_IN), dtype=tl.float32)
    here = tl.zeros((BLOCK_W, BLOCK_IN), dtype=tl.float32)
    for read in tl.range(top - 1, bottom + 1, num_stages=STAGES):
        below = tl.zeros((BLOCK_W, BLOCK_IN), dtype=tl.float32)
        gz = load_activated_row(
            g, bits, slope, read, column + 1, c_out, height, width,
            g_stride_c, g_stride_h, g_stride_w, BLOCK_W, BLOCK_OUT,
        )  # fmt: skip
        if left_edge:
            gz += load_activated_row(
                g, bits, slope, read, tl.where(column == 0, 0, -1), c_out, height, width,
                g_stride_c, g_stride_h, g_stride_w, BLOCK_W, BLOCK_OUT,
            )  # fmt: skip
        a = gz.to(w_ptr.dtype.element_ty)
        above, here, below = add_products(a, w00, w10, w20, above, here, below, PRECISION)
        gz = load_activated_row(
            g, bits, slope, read, column, c_out, height, width,
            g_stride_c, g_stride_h, g_stride_w, BLOCK_W, BLOCK_OUT,
        )  # fmt: skip
        a = gz.to(w_ptr.dtype.element_ty)
        above, here, below = add_products(a, w01, w11, w21, above, here, below, PRECISION)
        gz = load_activated_row(
            g, bits, slope, read, column - 1, c_out, height, width,
            g_stride_c, g_stride_h, g_stride_w, BLOCK_W, BLOCK_OUT,
        )  # fmt: skip
        if right_edge:
            gz += load_activated_row(
                g, bits, slope, read, tl.where(column == width - 1, column, -1), c_out, height, width,
                g_stride_c, g_stride_h, g_stride_w, BLOCK_W, BLOCK_OUT,
            )  # fmt: skip
        a = gz.to(w_ptr.dtype.element_ty)
        above, here, below = add_products(a, w02, w12, w22, above, here, below, PRECISION)
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
