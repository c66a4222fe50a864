"""One 3x3 convolution of the residual dense block with its epilogue in Triton, and its launcher.

Forward and backward have the same structure. With F channels of x and G of growth, xk the output of activation k::

    forward   xk  = lrelu(bias + conv(x, x1 .. x(k-1)))
              out = x + scale * (bias + conv(x, x1 .. x4))
    backward  gk  = lrelu'(scale * conv'(grad) + conv'(g(k+1) .. g4))
              gx  = grad + scale * conv'(grad) + conv'(g1 .. g4)

where gk is the gradient to the input of activation k and conv' is the transposed convolution: the same sum with flipped
taps. Each convolution sums over two tensors, one of F input channels (a) and a run of channels of a 4G-channel buffer
(b), and writes the next G channels of that buffer, or the result. There is no concatenation, no accumulation in memory
and no separate activation pass.

A loaded tile serves three taps: each adds to the sum of its kernel column at the pixel that was read, and the outer two
sums are shifted by one pixel at the end. docs/kernels/residual_dense_block.md has a drawing and counts.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.config import MAX_REGISTERS, KernelConfig, reduction_block, smallest_block
from ..common.convolution import BITS, shift_pixels
from ..common.launch import dot_precision, table_config
from ..common.layout import aligned, check_int32_extent
from .configs import CHANNEL_BLOCKS, OUTPUT_BLOCKS, TABLE

# Epilogues. A run-time argument, as uniform branches in an epilogue are free.
ACTIVATE, ACTIVATE_AND_SAVE, GRADIENT_BY_BITS, GRADIENT_BY_FEATURES, RESIDUAL = range(5)


@triton.jit
def _add_products(
    left,  # [P, BLOCK_OUT] per kernel column: sums at the pixel that is read
    middle,
    right,
    source,  # image n of the tensor that is read
    channels,  # number of its channels
    w,  # the weights of its first channel, the first tap
    row,  # [P] of the pixels read
    column,  # [P]
    exists,  # [P] whether the pixel lies in the image
    o,  # [BLOCK_OUT] output channels
    c_out,  # number of output channels
    height,  # of the images
    stride_h,  # strides of source, in values; channels are contiguous
    stride_w,
    w_stride_tap,  # stride of the weights from tap to tap; negative for flipped taps
    BLOCK_K: tl.constexpr,  # channels per step
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """Return the three sums plus the products of ``channels`` channels with the three kernel columns.

    Kernel rows are the inner loop, so that a block of channels stays in L1 for three rows.
    """
    for first in range(0, channels, BLOCK_K):
        i = first + tl.arange(0, BLOCK_K)
        offset = (row * stride_h + column * stride_w)[:, None] + i[None, :]
        w_offset = (i * c_out)[:, None] + o[None, :]
        w_mask = (i < channels)[:, None] & (o < c_out)[None, :]
        for tap_row in range(3):
            at_row = row + (tap_row - 1)
            mask = (exists & (at_row >= 0) & (at_row < height))[:, None] & (i < channels)[None, :]
            x = tl.load(source + (tap_row - 1) * stride_h + offset, mask=mask, other=0.0)
            tap = w + tap_row * 3 * w_stride_tap
            left = tl.dot(x, tl.load(tap + w_offset, mask=w_mask, other=0.0), left, input_precision=PRECISION)
            tap += w_stride_tap
            middle = tl.dot(x, tl.load(tap + w_offset, mask=w_mask, other=0.0), middle, input_precision=PRECISION)
            tap += w_stride_tap
            right = tl.dot(x, tl.load(tap + w_offset, mask=w_mask, other=0.0), right, input_precision=PRECISION)
    return left, middle, right


@triton.jit(
    do_not_specialize=[
        "bias_channels", "images", "height", "width", "tiles", "kind", "plane",
    ]
)  # fmt: skip
def _convolution_kernel(
    a_ptr,  # (N, A, H, W), contiguous channels: x, or the incoming gradient
    b_ptr,  # (N, 4G, H, W), channels_last: the buffer of the growth, or of its gradients
    w_ptr,  # (9, R, Cout), contiguous: rows for the channels of a, then for those read of b
    bias_ptr,  # (Cout), contiguous; unused if bias_channels is 0
    bits_ptr,  # (4, N, H, W, ceil(G / 8)) bytes: signs of the activations
    features_ptr,  # as b: the growth itself, whose signs are those of its activations
    out_ptr,  # (N, >= Cout, H, W), any strides; may be b's buffer
    a_channels,  # A
    b_channels,  # B, channels read of b
    b_first,  # the first of them
    c_out,  # output channels
    out_first,  # the first of them in out, and in features
    bias_channels,  # Cout, or 0 without a bias
    images,  # N
    height,  # of the images
    width,  # of the images
    tiles,  # pixel tiles per image
    a_stride_n,  # strides of a, in values
    a_stride_h,
    a_stride_w,
    b_stride_n,  # strides of b and features, in values
    b_stride_h,
    b_stride_w,
    w_first,  # offset of the first tap, or the ninth for flipped taps, in w
    w_stride_tap,  # from tap to tap; negative for flipped taps
    out_stride_n,  # strides of out, in values
    out_stride_c,
    out_stride_h,
    out_stride_w,
    kind,  # epilogue: ACTIVATE ... RESIDUAL
    plane,  # index of the activation that bits belong to
    slope,  # of the leaky ReLU
    a_scale,  # factor of the sum over a
    out_scale,  # RESIDUAL: factor of the sum before a is added
    PIXELS: tl.constexpr,  # pixels of a tile, row by row
    BLOCK_K: tl.constexpr,  # channels per step of the reduction
    BLOCK_OUT: tl.constexpr,  # output channels per program
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: BLOCK_OUT channels of one pixel tile. Program order: channel blocks, tiles, images."""
    program = tl.program_id(0)
    blocks = tl.cdiv(c_out, BLOCK_OUT)
    n = (program // (blocks * tiles)).to(tl.int64)
    # The first and last pixels of a tile only serve their neighbors; tiles overlap by two pixels.
    place = tl.arange(0, PIXELS)
    pixel = ((program // blocks) % tiles) * (PIXELS - 2) - 1 + place
    row, column = pixel // width, pixel % width
    o = (program % blocks) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    exists = (pixel >= 0) & (pixel < height * width)
    inside = exists & (place > 0) & (place < PIXELS - 1)
    a = a_ptr + n * a_stride_n
    b = b_ptr + n * b_stride_n + b_first
    w = w_ptr + w_first

    left = tl.zeros((PIXELS, BLOCK_OUT), dtype=tl.float32)
    middle = tl.zeros((PIXELS, BLOCK_OUT), dtype=tl.float32)
    right = tl.zeros((PIXELS, BLOCK_OUT), dtype=tl.float32)
    for segment in range(2):
        of_a = segment == 0
        left, middle, right = _add_products(
            left, middle, right, tl.where(of_a, a, b), tl.where(of_a, a_channels, b_channels),
            tl.where(of_a, w, w + a_channels * c_out), row, column, exists, o, c_out, height,
            tl.where(of_a, a_stride_h, b_stride_h), tl.where(of_a, a_stride_w, b_stride_w), w_stride_tap,
            BLOCK_K, PRECISION,
        )  # fmt: skip
        factor = tl.where(of_a, a_scale, 1.0)
        left, middle, right = left * factor, middle * factor, right * factor
    left = tl.where((column > 0)[:, None], shift_pixels(left, -1, PIXELS, BLOCK_OUT), 0.0)
    right = tl.where((column < width - 1)[:, None], shift_pixels(right, 1, PIXELS, BLOCK_OUT), 0.0)
    acc = left + middle + right

    store = inside[:, None] & (o < c_out)[None, :]
    bias = tl.load(bias_ptr + o, mask=o < bias_channels, other=0.0).to(tl.float32)
    value = acc + bias[None, :]
    c_bytes = (c_out + BITS - 1) // BITS
    byte = (program % blocks) * (BLOCK_OUT // BITS) + tl.arange(0, BLOCK_OUT // BITS)
    bits = bits_ptr + (plane * images + n) * height * width * c_bytes
    at_byte = ((row * width + column) * c_bytes)[:, None] + byte[None, :]
    byte_exists = inside[:, None] & (byte < c_bytes)[None, :]
    if kind <= 1:  # ACTIVATE, ACTIVATE_AND_SAVE
        value = tl.where(value > 0, value, value * slope)
    if kind == 1:
        # Use the sign of the rounded value, which is what backward reads.
        positive = value.to(out_ptr.dtype.element_ty).to(tl.float32) > 0
        flags = tl.reshape(positive.to(tl.int32), (PIXELS, BLOCK_OUT // BITS, BITS))
        packed = tl.sum(flags << tl.arange(0, BITS)[None, None, :], axis=2)
        tl.store(bits + at_byte, packed.to(tl.uint8), mask=byte_exists)
    if kind == 2:  # GRADIENT_BY_BITS
        flags = tl.load(bits + at_byte, mask=byte_exists, other=255).to(tl.int32)
        flags = (flags[:, :, None] >> tl.arange(0, BITS)[None, None, :]) & 1
        by_byte = tl.reshape(value, (PIXELS, BLOCK_OUT // BITS, BITS))
        value = tl.reshape(tl.where(flags != 0, by_byte, by_byte * slope), (PIXELS, BLOCK_OUT))
    if kind == 3:  # GRADIENT_BY_FEATURES
        at = (row * b_stride_h + column * b_stride_w)[:, None] + (out_first + o)[None, :]
        feature = tl.load(features_ptr + n * b_stride_n + at, mask=store, other=1.0).to(tl.float32)
        value = tl.where(feature > 0, value, value * slope)
    if kind == 4:  # RESIDUAL
        at = (row * a_stride_h + column * a_stride_w)[:, None] + o[None, :]
        value = tl.load(a + at, mask=store, other=0.0).to(tl.float32) + out_scale * value
    at = (row * out_stride_h + column * out_stride_w)[:, None] + ((out_first + o) * out_stride_c)[None, :]
    tl.store(out_ptr + n * out_stride_n + at, value.to(out_ptr.dtype.element_ty), mask=store)


def convolve(
    a: Tensor,
    b: Tensor,
    b_range: tuple[int, int],
    weight: Tensor,
    weight_first: int,
    out: Tensor,
    out_first: int,
    kind: int,
    *,
    bias: Tensor | None = None,
    bits: Tensor | None = None,
    features: Tensor | None = None,
    plane: int = 0,
    slope: float = 1.0,
    a_scale: float = 1.0,
    out_scale: float = 1.0,
    flip: bool = False,
    tf32: bool,
    config: KernelConfig | None = None,
) -> None:
    """Write the output channels of one convolution to ``out``, from channel ``out_first`` on.

    Args:
        a: (N, A, H, W), with contiguous channels.
        b: (N, 4G, H, W), channels_last, of a's dtype.
        b_range: begin and end of the channels read from b.
        weight: (9, R, Cout), contiguous; rows for the channels of a, then for those read of b.
        weight_first: first of these rows.
        out: (N, C, H, W), any strides; b itself, or the result.
        out_first: first channel written.
        kind: epilogue, one of the constants above.
        bias: (Cout,).
        bits: (4, N, H, W, ceil(Cout / 8)) bytes, for ACTIVATE_AND_SAVE and GRADIENT_BY_BITS.
        features: of b's shape and strides, for GRADIENT_BY_FEATURES.
        plane: index of the activation, 0 to 3.
        slope: of the leaky ReLU.
        a_scale: factor of the sum over a.
        out_scale: factor of the whole sum before a is added, for RESIDUAL.
        flip: flip the taps, for the transposed convolution.
        tf32: whether fp32 operands may be rounded to tf32.
        config: overrides the table.
    """
    if out.numel() == 0:
        return
    c_out, tap_stride = weight.shape[2], weight.stride(0)
    programs, sizes, strides, options = _plan(
        a.shape, a.stride(), b.shape, b.stride(), b_range, c_out, out.shape, out.stride(), out_first,
        a.dtype, a.device, tf32, config,
    )  # fmt: skip
    _convolution_kernel[programs,](
        a, b, weight, weight if bias is None else bias, weight if bits is None else bits,
        b if features is None else features, out,
        *sizes[:5], 0 if bias is None else c_out, *sizes[5:], *strides,
        weight_first * c_out + (8 * tap_stride if flip else 0), -tap_stride if flip else tap_stride, *out.stride(),
        kind, plane, slope, a_scale, out_scale, **options,
    )  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _plan(
    a_shape: torch.Size,
    a_stride: tuple[int, ...],
    b_shape: torch.Size,
    b_stride: tuple[int, ...],
    b_range: tuple[int, int],
    c_out: int,
    out_shape: torch.Size,
    out_stride: tuple[int, ...],
    out_first: int,
    dtype: torch.dtype,
    device: torch.device,
    tf32: bool,
    config: KernelConfig | None,
) -> tuple[int, tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Launch arguments of :func:`convolve` that depend on shapes only: programs, sizes, strides of a and b, options.

    Cached, because an ascent launches thousands of convolutions of a dozen shapes and host time matters.
    """
    for name, shape, stride in (
        ("x", a_shape, a_stride), ("the growth of x", b_shape, b_stride), ("the result", out_shape, out_stride),
    ):  # fmt: skip
        check_int32_extent(name, shape, stride)
    n, a_channels, height, width = a_shape
    b_channels = b_range[1] - b_range[0]
    in_pixels = [(stride[0], stride[2], stride[3]) for stride in (a_stride, b_stride, out_stride)]
    simple = out_stride[1] == 1 and aligned(a_channels, *b_range, c_out, out_first, *in_pixels[0], *in_pixels[2])
    # Other layouts need registers for addresses, which the smallest blocks leave free.
    block_out = smallest_block(c_out, OUTPUT_BLOCKS) if simple else OUTPUT_BLOCKS[0]
    config = config or table_config(TABLE, f"convolution_{block_out}", dtype, device, tf32)
    block_k = reduction_block((a_channels, b_channels), config.block_k if simple else CHANNEL_BLOCKS[0], CHANNEL_BLOCKS)
    pixels = config.block_h * config.block_w
    tiles = triton.cdiv(height * width, pixels - 2)
    sizes = (a_channels, b_channels, b_range[0], c_out, out_first, n, height, width, tiles)
    options = {
        "PIXELS": pixels,
        "BLOCK_K": block_k,
        "BLOCK_OUT": block_out,
        "PRECISION": dot_precision(dtype, tf32),
        "num_warps": config.warps,
        "num_stages": config.stages,
        "maxnreg": config.registers if simple else MAX_REGISTERS,
    }
    return n * tiles * triton.cdiv(c_out, block_out), sizes, (*in_pixels[0], *in_pixels[1]), options
