"""One 3x3 convolution of the residual dense block in Triton, with all that follows it; and its launcher.

Forward and backward are the same walk. With F channels of x and G of growth, xk the output of activation k::

    forward   xk  = lrelu(bias + conv(x, x1 .. x(k-1)))
              out = x + scale * (bias + conv(x, x1 .. x4))
    backward  gk  = lrelu'(scale * conv'(grad) + conv'(g(k+1) .. g4))
              gx  = grad + scale * conv'(grad) + conv'(g1 .. g4)

where gk is the gradient to what activation k reads and conv' is the transposed convolution: the same sum with flipped
taps. So each convolution sums over two tensors, one of F channels that came in (a) and a run of channels of a buffer
of 4G (b), and writes the next G channels of that buffer, or the result. Nothing is concatenated, accumulated in memory
or activated by a pass of its own.

A tile that is loaded serves three taps: each adds to the sum of its column of the kernel, at the pixel that was read,
and the outer two sums are shifted by one pixel at the end. docs/kernels.md draws and counts.
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

# What follows the sum; a run-time number, as uniform branches of an epilogue cost nothing.
ACTIVATE, ACTIVATE_AND_SAVE, GRADIENT_BY_BITS, GRADIENT_BY_FEATURES, RESIDUAL = range(5)


@triton.jit
def _add_products(
    left,  # [P, BLOCK_OUT] for each column of the kernel: sums at the pixel that is read
    middle,
    right,
    source,  # image n of the tensor that is read
    channels,  # how many of its channels
    w,  # the weights of its first channel, the first tap
    row,  # [P] of the pixels that are read
    column,  # [P]
    exists,  # [P] whether the pixel lies in the image
    o,  # [BLOCK_OUT] output channels
    c_out,  # number of output channels
    height,  # of the images
    stride_h,  # strides of source, in values; its channels are neighbours
    stride_w,
    w_stride_tap,  # stride of the weights from tap to tap; negative for flipped taps
    BLOCK_K: tl.constexpr,  # channels a step
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """The three sums plus the products of ``channels`` channels with the three columns of the kernel.

    Channels outside, kernel rows inside: what three rows read of a block of channels stays in L1 meanwhile.
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
    a_ptr,  # (N, A, H, W), channels are neighbours: x, or the gradient that came in
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
    tiles,  # pixel tiles of an image
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
    kind,  # what follows the sum: ACTIVATE ... RESIDUAL
    plane,  # which of the four activations bits are about
    slope,  # of the leaky ReLU
    a_scale,  # factor of the sum over a
    out_scale,  # RESIDUAL: factor of the sum before a is added
    PIXELS: tl.constexpr,  # pixels of a tile, row by row
    BLOCK_K: tl.constexpr,  # channels a step of the reduction
    BLOCK_OUT: tl.constexpr,  # output channels a program
    PRECISION: tl.constexpr,  # tl.dot's input_precision
):
    """One program: BLOCK_OUT channels of one pixel tile. Channel blocks, then tiles, then images are neighbours."""
    program = tl.program_id(0)
    blocks = tl.cdiv(c_out, BLOCK_OUT)
    n = (program // (blocks * tiles)).to(tl.int64)
    # The first and the last pixel of a tile are there for what their neighbours read; the tiles overlap by two.
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
        # The sign of what is stored: a value that rounds to zero is not positive, as one who reads it would say.
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
    """Write one convolution's channels of ``out``, from ``out_first`` on.

    Args:
        a: (N, A, H, W), whose channels are neighbours in memory.
        b: (N, 4G, H, W), channels_last, of a's dtype.
        b_range: first and one past the last channel that is read of b.
        weight: (9, R, Cout), contiguous; rows for the channels of a, then for those read of b.
        weight_first: the first of these rows.
        out: (N, C, H, W), any strides; b itself, or the result.
        out_first: first channel written.
        kind: what follows the sum, see the constants above.
        bias: (Cout,).
        bits: (4, N, H, W, ceil(Cout / 8)) bytes, for ACTIVATE_AND_SAVE and GRADIENT_BY_BITS.
        features: of b's shape and strides, for GRADIENT_BY_FEATURES.
        plane: index of the activation, 0 to 3.
        slope: of the leaky ReLU.
        a_scale: factor of the sum over a.
        out_scale: factor of the whole sum before a is added, for RESIDUAL.
        flip: take the taps from last to first: the transposed convolution.
        tf32: whether fp32 may be rounded to tf32.
        config: instead of the table's.
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
    """What :func:`convolve` tells a launch of its shapes: programs, sizes, strides of a and b, options.

    Kept, as an ascent launches thousands with a dozen shapes, and the host must not be slower than the GPU.
    """
    for name, shape, stride in (
        ("x", a_shape, a_stride), ("the growth of x", b_shape, b_stride), ("the result", out_shape, out_stride),
    ):  # fmt: skip
        check_int32_extent(name, shape, stride)
    n, a_channels, height, width = a_shape
    b_channels = b_range[1] - b_range[0]
    in_pixels = [(stride[0], stride[2], stride[3]) for stride in (a_stride, b_stride, out_stride)]
    simple = out_stride[1] == 1 and aligned(a_channels, *b_range, c_out, out_first, *in_pixels[0], *in_pixels[2])
    # Addresses that are not simple take registers, which the smallest blocks leave them.
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
