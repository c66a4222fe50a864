"""The degradation block's gradient to weight by rows, and its launcher: design "rows" of the configurations.

A program walks down the rows of a strip of ``block_w`` columns and keeps the sums of all nine taps. Each row of x is
loaded three times, once per kernel column, and each row of the gradient once: it is multiplied with the activation's
slope when it is loaded, and then serves the three rows of x around it, one per kernel row. The slope's gradient is
summed by the programs of :mod:`.grad_weight`. Notation: :mod:`..common.convolution`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.config import CHANNEL_BLOCKS, KernelConfig, channel_block
from ..common.convolution import BITS, TAPS, activate, load_gradient
from ..common.launch import dot_precision
from ..common.layout import slope_strides
from .rows import load_row


@triton.jit(do_not_specialize=["height", "width", "strips", "parts"])
def _grad_weight_rows_kernel(
    g_ptr,  # (N, Cout, H, W), contiguous channels: the incoming gradient
    bits_ptr,  # (N, H, W, ceil(Cout / 8)) bytes
    slope_ptr,  # one slope, or (N)
    x_ptr,  # (N, Cin, H, W), contiguous channels
    gw_ptr,  # (N, parts * strips, 9, Cout, Cin) fp32, contiguous: a partial sum per program
    c_in,  # input channels
    c_out,  # output channels, at most BLOCK_OUT
    height,  # of the images
    width,  # of the images
    strips,  # strips side by side
    parts,  # parts that the rows of a strip are split into
    g_stride_n,  # strides of g, in values
    g_stride_c,
    g_stride_h,
    g_stride_w,
    slope_stride_n,  # 0 for a scalar slope
    x_stride_n,  # strides of x, in values
    x_stride_c,
    x_stride_h,
    x_stride_w,
    BLOCK_W: tl.constexpr,  # columns of a strip
    BLOCK_IN: tl.constexpr,  # input channels per program
    BLOCK_OUT: tl.constexpr,  # output channels, all of them
    STAGES: tl.constexpr,  # software pipeline depth of the loop over rows
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: BLOCK_IN channels of one part of a strip. Program order: channel blocks, strips, parts, images."""
    program = tl.program_id(0)
    blocks = tl.cdiv(c_in, BLOCK_IN)
    part = program // blocks  # of all images
    n = (part // (strips * parts)).to(tl.int64)
    column = (part % strips) * BLOCK_W + tl.arange(0, BLOCK_W)
    rows = tl.cdiv(height, parts)
    top = ((part // strips) % parts) * rows
    bottom = tl.minimum(top + rows, height)
    exists = column < width
    i = (program % blocks) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    o = tl.arange(0, BLOCK_OUT)

    g = g_ptr + n * g_stride_n
    x = x_ptr + n * x_stride_n
    bits = bits_ptr + n * height * width * ((c_out + BITS - 1) // BITS)
    slope = tl.zeros((BLOCK_OUT,), dtype=tl.float32) + tl.load(slope_ptr + n * slope_stride_n).to(tl.float32)

    sum00 = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    sum01 = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    sum02 = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    sum10 = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    sum11 = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    sum12 = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    sum20 = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    sum21 = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    sum22 = tl.zeros((BLOCK_OUT, BLOCK_IN), dtype=tl.float32)
    # gz of the rows above, at and below the row of x that is read; zero outside of the part.
    above = tl.zeros((BLOCK_W, BLOCK_OUT), dtype=x_ptr.dtype.element_ty)
    here = tl.zeros((BLOCK_W, BLOCK_OUT), dtype=x_ptr.dtype.element_ty)
    for read in tl.range(top - 1, bottom + 1, num_stages=STAGES):
        row = read + 1
        grad, packed = load_gradient(
            g, bits, row + column * 0, column, exists & (row < bottom), 0, c_out, width,
            g_stride_c, g_stride_h, g_stride_w, BLOCK_OUT,
        )  # fmt: skip
        left = load_row(x, read, column - 1, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w, exists)
        middle = load_row(x, read, column, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w, exists)
        right = load_row(x, read, column + 1, i, c_in, height, width, x_stride_c, x_stride_h, x_stride_w, exists)
        gz = tl.trans(here)
        sum10 = tl.dot(gz, left, sum10, input_precision=PRECISION)
        sum11 = tl.dot(gz, middle, sum11, input_precision=PRECISION)
        sum12 = tl.dot(gz, right, sum12, input_precision=PRECISION)
        gz = tl.trans(above)
        sum20 = tl.dot(gz, left, sum20, input_precision=PRECISION)
        sum21 = tl.dot(gz, middle, sum21, input_precision=PRECISION)
        sum22 = tl.dot(gz, right, sum22, input_precision=PRECISION)
        # Last, because the sign bytes, too small for asynchronous copies, arrive meanwhile.
        gz, _ = activate(grad, packed, slope, BLOCK_W, BLOCK_OUT)
        below = gz.to(x_ptr.dtype.element_ty)
        gz = tl.trans(below)
        sum00 = tl.dot(gz, left, sum00, input_precision=PRECISION)
        sum01 = tl.dot(gz, middle, sum01, input_precision=PRECISION)
        sum02 = tl.dot(gz, right, sum02, input_precision=PRECISION)
        # Never true: Triton pipelines no loop that only passes a value on.
        above = tl.where(read > height, 0.0, here)
        here = below

    gw = gw_ptr + part.to(tl.int64) * TAPS * c_out * c_in
    at = (o * c_in)[:, None] + i[None, :]
    mask = (o < c_out)[:, None] & (i < c_in)[None, :]
    tl.store(gw + at, sum00, mask=mask)
    tl.store(gw + c_out * c_in + at, sum01, mask=mask)
    tl.store(gw + 2 * c_out * c_in + at, sum02, mask=mask)
    tl.store(gw + 3 * c_out * c_in + at, sum10, mask=mask)
    tl.store(gw + 4 * c_out * c_in + at, sum11, mask=mask)
    tl.store(gw + 5 * c_out * c_in + at, sum12, mask=mask)
    tl.store(gw + 6 * c_out * c_in + at, sum20, mask=mask)
    tl.store(gw + 7 * c_out * c_in + at, sum21, mask=mask)
    tl.store(gw + 8 * c_out * c_in + at, sum22, mask=mask)


def applies(grad: Tensor, x: Tensor, slope: Tensor, *, replicate: bool) -> bool:
    """Whether the kernel covers this call.

    Channels must be contiguous and multiples of 16, at most 64 on output; padding "replicate"; one slope, or one per
    image; and tensors must not be empty.
    """
    aligned = all(image.stride(1) == 1 and image.shape[1] % 16 == 0 and image.numel() > 0 for image in (grad, x))
    return replicate and slope.dim() <= 1 and grad.shape[1] <= CHANNEL_BLOCKS[-1] and aligned


def row_parts(images: int, c_in: int, height: int, width: int, config: KernelConfig) -> tuple[int, int]:
    """Strips side by side, and parts that their rows are split into.

    Enough parts for ``config.programs`` programs, each of at least ``config.block_h`` rows and none without rows.
    """
    strips = triton.cdiv(width, config.block_w)
    groups = images * strips * triton.cdiv(c_in, channel_block(c_in, config.block_k))
    parts = min(triton.cdiv(config.programs, groups), triton.cdiv(height, config.block_h))
    return strips, triton.cdiv(height, triton.cdiv(height, parts))


def launch(grad: Tensor, x: Tensor, slope: Tensor, bits: Tensor, *, tf32: bool, config: KernelConfig) -> Tensor:
    """Partial sums (N, parts, 9, Cout, Cin) of the gradient to weight, for calls that :func:`applies` to."""
    n, c_in, height, width = x.shape
    c_out = grad.shape[1]
    strips, parts = row_parts(n, c_in, height, width, config)
    block_in = channel_block(c_in, config.block_k)
    gw = x.new_empty((n, parts * strips, 9, c_out, c_in), dtype=torch.float32)
    _grad_weight_rows_kernel[n * parts * strips * triton.cdiv(c_in, block_in),](
        grad, bits, slope, x, gw,
        c_in, c_out, height, width, strips, parts,
        *grad.stride(), slope_strides(slope)[0], *x.stride(),
        BLOCK_W=config.block_w, BLOCK_IN=block_in, BLOCK_OUT=channel_block(c_out),
        STAGES=config.stages, PRECISION=dot_precision(x.dtype, tf32),
        num_warps=config.warps, num_stages=config.stages, maxnreg=config.registers,
    )  # fmt: skip
    return gw
