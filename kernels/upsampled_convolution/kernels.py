"""Nearest upsampling, 3x3 convolution and leaky ReLU in Triton, without the upsampled map; and the launchers.

With k the equivalent kernel of the transposed convolution (functional/upsampled_kernel.py), f the factor, taps r = -1
to f, i a pixel of the small map, p = f i + a one of the large map and a < f its phase, for rows and columns alike::

    forward      out[f i + a] = lrelu(bias + sum over taps r = a mod f of x[i + (a - r) / f] k[r])
    grad_input   gx[i]        = sum over all taps r of gz[f i + r] k[r]
                 gz[p]        = g[p] if out[p] > 0 else slope * g[p]

Forward has 3 x 3 taps for factor 1, and 2 x 2 per phase for factor 2; a program has one phase of a tile of the small
map. The gradient has 3 x 3 or 4 x 4 taps. Reads outside a map are zero: where taps can reach it, the frame of zeros
around the upsampled map is two phases wide, one pixel of the small map. Sums are in fp32. No atomics: runs are bitwise
reproducible. docs/kernels/upsampled_convolution.md has counts.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..common.config import KernelConfig, channel_block
from ..common.convolution import BITS, load_activated, load_padded, tile_pixels
from ..common.launch import dot_precision, register_limit, table_config, tile_counts
from ..common.layout import check_int32_extent
from .configs import TABLE


@triton.jit(do_not_specialize=["height", "width", "tiles", "tiles_w", "save"])
def _upsampled_forward_kernel(
    x_ptr,  # (N, Cin, H, W), any strides
    w_ptr,  # ((FACTOR + 2)**2, Cin, Cout), contiguous: the taps of k
    bias_ptr,  # (Cout), contiguous
    out_ptr,  # (N, Cout, FACTOR * H, FACTOR * W), any strides
    bits_ptr,  # (N, FACTOR * H, FACTOR * W, ceil(Cout / 8)) bytes; unused if save is 0
    c_in,  # input channels
    c_out,  # output channels
    height,  # of x
    width,  # of x
    tiles,  # pixel tiles per image of x
    tiles_w,  # pixel tiles per row
    x_stride_n,  # strides of x, in values
    x_stride_c,
    x_stride_h,
    x_stride_w,
    out_stride_n,  # strides of out, in values
    out_stride_c,
    out_stride_h,
    out_stride_w,
    slope,  # of the leaky ReLU
    save,  # 1: store the signs of out
    FACTOR: tl.constexpr,  # 1 or 2
    BLOCK_H: tl.constexpr,  # rows of a pixel tile
    BLOCK_W: tl.constexpr,  # columns of a pixel tile
    BLOCK_IN: tl.constexpr,  # input channels per step
    BLOCK_OUT: tl.constexpr,  # output channels per program
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: BLOCK_OUT channels of one phase of one pixel tile. Order: channel blocks, phases, tiles, images."""
    SIDE: tl.constexpr = 3 if FACTOR == 1 else 2  # taps per phase, in rows and in columns
    program = tl.program_id(0)
    blocks = tl.cdiv(c_out, BLOCK_OUT)
    phase = (program // blocks) % (FACTOR * FACTOR)
    place = program // (blocks * FACTOR * FACTOR)
    n = (place // tiles).to(tl.int64)
    row, column = tile_pixels(place % tiles, tiles_w, BLOCK_H, BLOCK_W)
    o = (program % blocks) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    phase_row, phase_column = phase // FACTOR, phase % FACTOR

    inside = (row < height) & (column < width)
    x = x_ptr + n * x_stride_n
    acc = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_OUT), dtype=tl.float32)
    for tap in tl.static_range(SIDE * SIDE):
        # Taps of k are flipped: the further down the pixel that is read, the further up the tap.
        k_row = FACTOR + 1 - phase_row - FACTOR * (tap // SIDE)
        k_column = FACTOR + 1 - phase_column - FACTOR * (tap % SIDE)
        w = w_ptr + (k_row * (FACTOR + 2) + k_column) * c_in * c_out
        for first in range(0, c_in, BLOCK_IN):
            i = first + tl.arange(0, BLOCK_IN)
            a = load_padded(
                x, row + (phase_row - 1 + tap // SIDE), column + (phase_column - 1 + tap % SIDE), inside, i, c_in,
                height, width, x_stride_c, x_stride_h, x_stride_w, 0,
            )  # fmt: skip
            mask = (i < c_in)[:, None] & (o < c_out)[None, :]
            b = tl.load(w + (i * c_out)[:, None] + o[None, :], mask=mask, other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    bias = tl.load(bias_ptr + o, mask=o < c_out, other=0.0).to(tl.float32)
    value = acc + bias[None, :]
    value = tl.where(value > 0, value, value * slope).to(out_ptr.dtype.element_ty)
    row = row * FACTOR + phase_row
    column = column * FACTOR + phase_column
    offset = (row * out_stride_h + column * out_stride_w)[:, None] + (o * out_stride_c)[None, :]
    tl.store(out_ptr + n * out_stride_n + offset, value, mask=inside[:, None] & (o < c_out)[None, :])
    if save == 1:
        # Use the sign of the rounded value, which is what backward reads.
        flags = tl.reshape((value.to(tl.float32) > 0).to(tl.int32), (BLOCK_H * BLOCK_W, BLOCK_OUT // BITS, BITS))
        packed = tl.sum(flags << tl.arange(0, BITS)[None, None, :], axis=2)
        c_bytes = (c_out + BITS - 1) // BITS
        byte = (program % blocks) * (BLOCK_OUT // BITS) + tl.arange(0, BLOCK_OUT // BITS)
        bits = bits_ptr + n * height * width * (FACTOR * FACTOR) * c_bytes
        at_byte = ((row * width * FACTOR + column) * c_bytes)[:, None] + byte[None, :]
        tl.store(bits + at_byte, packed.to(tl.uint8), mask=inside[:, None] & (byte < c_bytes)[None, :])


@triton.jit(do_not_specialize=["height", "width", "tiles", "tiles_w"])
def _upsampled_grad_input_kernel(
    g_ptr,  # (N, Cout, FACTOR * H, FACTOR * W), any strides: the incoming gradient
    bits_ptr,  # (N, FACTOR * H, FACTOR * W, ceil(Cout / 8)) bytes; unused without ACTIVATED
    w_ptr,  # ((FACTOR + 2)**2, Cout, Cin), contiguous: the taps of k
    gx_ptr,  # (N, Cin, H, W), any strides
    c_in,  # input channels
    c_out,  # output channels
    height,  # of x
    width,  # of x
    tiles,  # pixel tiles per image of x
    tiles_w,  # pixel tiles per row
    g_stride_n,  # strides of g, in values
    g_stride_c,
    g_stride_h,
    g_stride_w,
    gx_stride_n,  # strides of gx, in values
    gx_stride_c,
    gx_stride_h,
    gx_stride_w,
    slope,  # of the leaky ReLU
    FACTOR: tl.constexpr,  # 1 or 2
    ACTIVATED: tl.constexpr,  # whether signs tell where g is multiplied by slope
    BLOCK_H: tl.constexpr,  # rows of a pixel tile
    BLOCK_W: tl.constexpr,  # columns of a pixel tile
    BLOCK_IN: tl.constexpr,  # input channels per program
    BLOCK_OUT: tl.constexpr,  # output channels per step
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: BLOCK_IN channels of one tile of x's pixels, gathered from their neighborhoods in the large map."""
    SIDE: tl.constexpr = FACTOR + 2
    program = tl.program_id(0)
    blocks = tl.cdiv(c_in, BLOCK_IN)
    n = (program // (blocks * tiles)).to(tl.int64)
    row, column = tile_pixels((program // blocks) % tiles, tiles_w, BLOCK_H, BLOCK_W)
    i = (program % blocks) * BLOCK_IN + tl.arange(0, BLOCK_IN)

    inside = (row < height) & (column < width)
    large_height, large_width = height * FACTOR, width * FACTOR
    g = g_ptr + n * g_stride_n
    bits = bits_ptr + n * large_height * large_width * ((c_out + BITS - 1) // BITS)
    slopes = tl.zeros((BLOCK_OUT,), dtype=tl.float32) + slope
    acc = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_IN), dtype=tl.float32)
    for tap_row in range(SIDE):
        p_row = row * FACTOR + (tap_row - 1)
        for tap_column in tl.static_range(SIDE):
            p_column = column * FACTOR + (tap_column - 1)
            valid = inside & (p_row >= 0) & (p_row < large_height) & (p_column >= 0) & (p_column < large_width)
            w = w_ptr + (tap_row * SIDE + tap_column) * c_out * c_in
            for first in range(0, c_out, BLOCK_OUT):
                o = first + tl.arange(0, BLOCK_OUT)
                if ACTIVATED:
                    _, gz, _ = load_activated(
                        g, bits, slopes, p_row, p_column, valid, first, c_out, large_width,
                        g_stride_c, g_stride_h, g_stride_w, BLOCK_H * BLOCK_W, BLOCK_OUT,
                    )  # fmt: skip
                else:
                    gz = load_padded(
                        g, p_row, p_column, inside, o, c_out, large_height, large_width,
                        g_stride_c, g_stride_h, g_stride_w, 0,
                    )  # fmt: skip
                mask = (o < c_out)[:, None] & (i < c_in)[None, :]
                b = tl.load(w + (o * c_in)[:, None] + i[None, :], mask=mask, other=0.0)
                acc = tl.dot(gz.to(w_ptr.dtype.element_ty), b, acc, input_precision=PRECISION)

    offset = (row * gx_stride_h + column * gx_stride_w)[:, None] + (i * gx_stride_c)[None, :]
    mask = inside[:, None] & (i < c_in)[None, :]
    tl.store(gx_ptr + n * gx_stride_n + offset, acc.to(gx_ptr.dtype.element_ty), mask=mask)


# -------------------------------------------------------------------------------------------------------- launches


def forward(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor,
    slope: float,
    out: Tensor,
    bits: Tensor,
    *,
    factor: int,
    tf32: bool,
    config: KernelConfig | None = None,
) -> None:
    """Write ``out``, and its signs to ``bits`` unless that is empty.

    Args:
        x: (N, Cin, H, W), any strides.
        kernel: k, ((factor + 2)**2, Cin, Cout), contiguous, of x's dtype.
        bias: (Cout,).
        slope: negative slope of the leaky ReLU.
        out: (N, Cout, factor * H, factor * W), any strides.
        bits: (N, factor * H, factor * W, ceil(Cout / 8)) bytes, or empty.
        factor: 1 or 2.
        tf32: whether fp32 operands may be rounded to tf32.
        config: overrides the table.
    """
    n, c_in, height, width = x.shape
    c_out = kernel.shape[2]
    if out.numel() == 0:
        return
    for name, value in (("x", x), ("the result", out)):
        check_int32_extent(name, value.shape, value.stride())
    config = config or table_config(TABLE, "forward", x.dtype, x.device, tf32)
    tiles, tiles_w = tile_counts(height, width, config)
    block_in, block_out = channel_block(c_in, config.block_k), channel_block(c_out)
    _upsampled_forward_kernel[n * tiles * factor**2 * triton.cdiv(c_out, block_out),](
        x, kernel, bias.contiguous(), out, bits,
        c_in, c_out, height, width, tiles, tiles_w, *x.stride(), *out.stride(), slope, int(bits.numel() > 0),
        FACTOR=factor, BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=block_in, BLOCK_OUT=block_out,
        PRECISION=dot_precision(x.dtype, tf32),
        num_warps=config.warps, num_stages=config.stages, maxnreg=register_limit(config, x, out),
    )  # fmt: skip


def grad_input(
    grad: Tensor,
    bits: Tensor,
    kernel: Tensor,
    slope: float,
    grad_x: Tensor,
    *,
    factor: int,
    tf32: bool,
    config: KernelConfig | None = None,
) -> None:
    """Write the gradient to x.

    Args:
        grad: (N, Cout, factor * H, factor * W), any strides.
        bits: the signs that :func:`forward` wrote; empty if ``grad`` is the gradient to the pre-activation.
        kernel: k, ((factor + 2)**2, Cout, Cin), contiguous, of grad's dtype.
        slope: negative slope of the leaky ReLU.
        grad_x: (N, Cin, H, W), any strides.
        factor: 1 or 2.
        tf32: whether fp32 operands may be rounded to tf32.
        config: overrides the table.
    """
    n, c_in, height, width = grad_x.shape
    c_out = kernel.shape[1]
    if grad_x.numel() == 0:
        return
    for name, value in (("the gradient", grad), ("x", grad_x)):
        check_int32_extent(name, value.shape, value.stride())
    config = config or table_config(TABLE, "grad_input", grad.dtype, grad.device, tf32)
    tiles, tiles_w = tile_counts(height, width, config)
    block_in, block_out = channel_block(c_in), channel_block(c_out, config.block_k)
    _upsampled_grad_input_kernel[n * tiles * triton.cdiv(c_in, block_in),](
        grad, bits, kernel, grad_x,
        c_in, c_out, height, width, tiles, tiles_w, *grad.stride(), *grad_x.stride(), slope,
        FACTOR=factor, ACTIVATED=bits.numel() > 0,
        BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=block_in, BLOCK_OUT=block_out,
        PRECISION=dot_precision(grad.dtype, tf32),
        num_warps=config.warps, num_stages=config.stages, maxnreg=register_limit(config, grad, grad_x),
    )  # fmt: skip
