"""The frozen residual dense block with fp8 operands in Triton: quantization, convolution with epilogue, launchers.

The structure is that of residual_dense_block/block.py, five convolutions forward and five backward. Both tensors that a
convolution sums over are fp8: x (or the incoming gradient), quantized once by a separate kernel, and the growth (or its
gradients), which each convolution writes in fp8. Weights are fp8 with a factor per output channel; sums
are fp32; the residual is added in x's dtype.

fp8 products need both operands contiguous along the *reduction* in shared memory, so weights are (9, Cout, R) instead
of (9, R, Cout). All fp8 tensors are dense, so the pixel index gives the address.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.config import MAX_REGISTERS, KernelConfig, reduction_block, smallest_block
from ..common.convolution import BITS, shift_pixels
from ..common.launch import architecture_of
from ..common.layout import aligned, check_int32_extent, pixel_strides, with_contiguous_channels
from ..residual_dense_block.buffers import ACTIVATIONS, CONVOLUTIONS
from .configs import CHANNEL_BLOCKS, OUTPUT_BLOCKS, REDUCTION_BLOCKS, TABLE

QUANTIZED_PIXELS = 64  # per program

ACTIVATE, GRADIENT, RESIDUAL = range(3)


@triton.jit
def _rounded(
    value,  # fp32
    DTYPE: tl.constexpr,  # e4m3 or e5m2
):
    """Round to the nearest fp8 number, saturating; NaN stays NaN."""
    LARGEST: tl.constexpr = 448.0 if tl.float8e4nv == DTYPE else 57344.0
    return tl.clamp(value, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL).to(DTYPE)


@triton.jit(do_not_specialize=["height", "width", "tiles"])
def _quantize_kernel(
    x_ptr,  # (N, C, H, W), contiguous channels
    out_ptr,  # (N, H, W, C) fp8, contiguous
    channels,  # C
    height,  # of the images
    width,  # of the images
    tiles,  # blocks of pixels per image
    stride_n,  # strides of x, in values
    stride_h,
    stride_w,
    PIXELS: tl.constexpr,  # pixels per program
    BLOCK_C: tl.constexpr,  # channels per step
):
    """One program: PIXELS pixels of an image."""
    program = tl.program_id(0)
    n = (program // tiles).to(tl.int64)
    pixel = (program % tiles) * PIXELS + tl.arange(0, PIXELS)
    exists = pixel < height * width
    offset = (pixel // width) * stride_h + (pixel % width) * stride_w
    out = out_ptr + n * height * width * channels
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        mask = exists[:, None] & (c < channels)[None, :]
        value = tl.load(x_ptr + n * stride_n + offset[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(
            out + (pixel * channels)[:, None] + c[None, :],
            _rounded(value, out_ptr.dtype.element_ty),
            mask=mask,
        )


@triton.jit
def _add_products(
    left,  # [P, BLOCK_OUT] per kernel column: sums at the pixel that is read
    middle,
    right,
    source,  # image n of the fp8 tensor that is read, from the first channel read
    channels,  # number of channels read
    stride,  # distance between pixels: all of its channels
    w,  # the weights of the first channel, output channel 0, the first tap
    w_rows,  # distance between output channels
    pixel,  # [P] pixels read
    exists,  # [P] whether the pixel lies in the image
    pixels,  # of an image
    width,  # of an image
    o,  # [BLOCK_OUT] output channels
    c_out,  # number of output channels
    BLOCK_K: tl.constexpr,  # channels per step
):
    """Return the three sums plus the products of ``channels`` channels with the three kernel columns."""
    for first in range(0, channels, BLOCK_K):
        i = first + tl.arange(0, BLOCK_K)
        offset = (pixel * stride)[:, None] + i[None, :]
        w_offset = i[:, None] + (o * w_rows)[None, :]
        w_mask = (i < channels)[:, None] & (o < c_out)[None, :]
        for tap_row in range(3):
            at = pixel + (tap_row - 1) * width
            mask = (exists & (at >= 0) & (at < pixels))[:, None] & (i < channels)[None, :]
            x = tl.load(source + (tap_row - 1) * width * stride + offset, mask=mask, other=0.0)
            tap = w + tap_row * 3 * c_out * w_rows
            left = tl.dot(x, tl.load(tap + w_offset, mask=w_mask, other=0.0), left)
            tap += c_out * w_rows
            middle = tl.dot(x, tl.load(tap + w_offset, mask=w_mask, other=0.0), middle)
            tap += c_out * w_rows
            right = tl.dot(x, tl.load(tap + w_offset, mask=w_mask, other=0.0), right)
    return left, middle, right


@triton.jit(do_not_specialize=["bias_channels", "images", "height", "width", "tiles", "plane"])
def _fp8_convolution_kernel(
    a_ptr,  # (N, H, W, A) fp8, contiguous: x, or the incoming gradient
    b_ptr,  # (N, H, W, 4G) fp8, contiguous: the growth, or its gradients
    w_ptr,  # (9, Cout, A + B) fp8, contiguous
    w_scale_ptr,  # (Cout) fp32: factors of the sums
    bias_ptr,  # (Cout) fp32; unused if bias_channels is 0
    bits_ptr,  # (4, N, H, W, ceil(G / 8)) bytes: signs of the activations; unused with RESIDUAL
    residual_ptr,  # (N, Cout, H, W), contiguous channels; RESIDUAL only
    out_ptr,  # (N, Cout, H, W), any strides; RESIDUAL only, the others write b
    a_channels,  # A
    b_channels,  # B, channels read of b
    b_first,  # the first of them
    b_all,  # 4G
    c_out,  # output channels
    out_first,  # the first of them in b
    bias_channels,  # Cout, or 0 without a bias
    images,  # N
    height,  # of the images
    width,  # of the images
    tiles,  # pixel tiles per image
    residual_stride_n,  # strides of residual, in values
    residual_stride_h,
    residual_stride_w,
    out_stride_n,  # strides of out, in values
    out_stride_c,
    out_stride_h,
    out_stride_w,
    plane,  # index of the activation that bits belong to
    slope,  # of the leaky ReLU
    KIND: tl.constexpr,  # epilogue: ACTIVATE, GRADIENT or RESIDUAL
    PIXELS: tl.constexpr,  # pixels of a tile, row by row
    BLOCK_K: tl.constexpr,  # channels per step of the reduction
    BLOCK_OUT: tl.constexpr,  # output channels per program
):
    """One program: BLOCK_OUT channels of one pixel tile. Program order: channel blocks, tiles, images."""
    program = tl.program_id(0)
    blocks = tl.cdiv(c_out, BLOCK_OUT)
    n = (program // (blocks * tiles)).to(tl.int64)
    # The first and last pixels of a tile only serve their neighbors; tiles overlap by two pixels.
    place = tl.arange(0, PIXELS)
    pixel = ((program // blocks) % tiles) * (PIXELS - 2) - 1 + place
    pixels = height * width
    row, column = pixel // width, pixel % width
    o = (program % blocks) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    exists = (pixel >= 0) & (pixel < pixels)
    inside = exists & (place > 0) & (place < PIXELS - 1)
    a = a_ptr + n * pixels * a_channels
    b = b_ptr + n * pixels * b_all

    left = tl.zeros((PIXELS, BLOCK_OUT), dtype=tl.float32)
    middle = tl.zeros((PIXELS, BLOCK_OUT), dtype=tl.float32)
    right = tl.zeros((PIXELS, BLOCK_OUT), dtype=tl.float32)
    for segment in range(2):
        of_a = segment == 0
        left, middle, right = _add_products(
            left, middle, right, tl.where(of_a, a, b + b_first), tl.where(of_a, a_channels, b_channels),
            tl.where(of_a, a_channels, b_all), tl.where(of_a, w_ptr, w_ptr + a_channels), a_channels + b_channels,
            pixel, exists, pixels, width, o, c_out, BLOCK_K,
        )  # fmt: skip
    left = tl.where((column > 0)[:, None], shift_pixels(left, -1, PIXELS, BLOCK_OUT), 0.0)
    right = tl.where((column < width - 1)[:, None], shift_pixels(right, 1, PIXELS, BLOCK_OUT), 0.0)

    store = inside[:, None] & (o < c_out)[None, :]
    w_scale = tl.load(w_scale_ptr + o, mask=o < c_out, other=0.0)
    bias = tl.load(bias_ptr + o, mask=o < bias_channels, other=0.0)
    value = (left + middle + right) * w_scale[None, :] + bias[None, :]
    if KIND == 2:  # RESIDUAL
        at = (row * residual_stride_h + column * residual_stride_w)[:, None] + o[None, :]
        residual = tl.load(residual_ptr + n * residual_stride_n + at, mask=store, other=0.0)
        value = residual.to(tl.float32) + value
        at = (row * out_stride_h + column * out_stride_w)[:, None] + (o * out_stride_c)[None, :]
        tl.store(out_ptr + n * out_stride_n + at, value.to(out_ptr.dtype.element_ty), mask=store)
    else:
        c_bytes = (c_out + BITS - 1) // BITS
        byte = (program % blocks) * (BLOCK_OUT // BITS) + tl.arange(0, BLOCK_OUT // BITS)
        bits = bits_ptr + (plane * images + n) * pixels * c_bytes
        at_byte = (pixel * c_bytes)[:, None] + byte[None, :]
        byte_exists = inside[:, None] & (byte < c_bytes)[None, :]
        if KIND == 0:  # ACTIVATE
            value = tl.where(value > 0, value, value * slope)
            # Use the sign before rounding: values that underflow in fp8 still pass their gradient.
            flags = tl.reshape((value > 0).to(tl.int32), (PIXELS, BLOCK_OUT // BITS, BITS))
            packed = tl.sum(flags << tl.arange(0, BITS)[None, None, :], axis=2)
            tl.store(bits + at_byte, packed.to(tl.uint8), mask=byte_exists)
        else:
            flags = tl.load(bits + at_byte, mask=byte_exists, other=255).to(tl.int32)
            flags = (flags[:, :, None] >> tl.arange(0, BITS)[None, None, :]) & 1
            by_byte = tl.reshape(value, (PIXELS, BLOCK_OUT // BITS, BITS))
            value = tl.reshape(tl.where(flags != 0, by_byte, by_byte * slope), (PIXELS, BLOCK_OUT))
        tl.store(
            b + (pixel * b_all)[:, None] + (out_first + o)[None, :], _rounded(value, b_ptr.dtype.element_ty), mask=store
        )


def quantize(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert x (N, C, H, W), with contiguous channels, to an fp8 dtype, (N, H, W, C), contiguous."""
    n, channels, height, width = x.shape
    out = x.new_empty((n, height, width, channels), dtype=dtype)
    check_int32_extent("x", x.shape, x.stride())
    if out.numel():
        tiles = triton.cdiv(height * width, QUANTIZED_PIXELS)
        _quantize_kernel[n * tiles,](
            x, out, channels, height, width, tiles, *pixel_strides(x),
            PIXELS=QUANTIZED_PIXELS, BLOCK_C=smallest_block(channels, CHANNEL_BLOCKS), num_warps=4,
        )  # fmt: skip
    return out


def convolve(
    a: Tensor,
    b: Tensor,
    b_range: tuple[int, int],
    weight: Tensor,
    w_scale: Tensor,
    kind: int,
    *,
    bias: Tensor | None = None,
    bits: Tensor | None = None,
    out_first: int = 0,
    plane: int = 0,
    slope: float = 1.0,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    config: KernelConfig | None = None,
) -> None:
    """Run one convolution. ACTIVATE and GRADIENT write channels of b from ``out_first`` on, RESIDUAL writes ``out``.

    Args:
        a: (N, H, W, A) fp8, contiguous.
        b: (N, H, W, 4G) fp8, contiguous.
        b_range: begin and end of the channels read from b.
        weight: (9, Cout, R) fp8, contiguous; R runs over the channels of a, then those read from b.
        w_scale: (Cout,) fp32, factors of the sums.
        kind: epilogue, one of the constants above.
        bias: (Cout,) fp32.
        bits: (4, N, H, W, ceil(Cout / 8)) bytes, written with ACTIVATE and read with GRADIENT.
        out_first: first channel of b that is written.
        plane: index of the activation, 0 to 3.
        slope: of the leaky ReLU.
        residual: (N, Cout, H, W), with contiguous channels, added with RESIDUAL.
        out: (N, Cout, H, W), any strides.
        config: overrides the table.
    """
    n, height, width, a_channels = a.shape
    c_out, b_channels, b_all = weight.shape[1], b_range[1] - b_range[0], b.shape[3]
    if a.numel() == 0:
        return
    for name, value in (("x", a), ("the growth of x", b), ("the result", b if out is None else out)):
        check_int32_extent(name, value.shape, value.stride())
    simple = aligned(a_channels, *b_range, b_all, c_out, out_first)
    if out is not None and residual is not None:
        simple = simple and out.stride(1) == 1 and aligned(*pixel_strides(out), *pixel_strides(residual))
    block_out = smallest_block(c_out, OUTPUT_BLOCKS) if simple else OUTPUT_BLOCKS[0]
    config = config or TABLE[architecture_of(a.device, tuple(TABLE))][block_out]
    limit = config.block_k if simple else REDUCTION_BLOCKS[0]
    block_k = reduction_block((a_channels, b_channels), limit, REDUCTION_BLOCKS)
    pixels = config.block_h * config.block_w
    tiles = triton.cdiv(height * width, pixels - 2)
    _fp8_convolution_kernel[n * tiles * triton.cdiv(c_out, block_out),](
        a, b, weight, w_scale, w_scale if bias is None else bias, weight if bits is None else bits,
        weight if residual is None else residual, weight if out is None else out,
        a_channels, b_channels, b_range[0], b_all, c_out, out_first, 0 if bias is None else c_out,
        n, height, width, tiles,
        *((0, 0, 0) if residual is None else pixel_strides(residual)), *((0, 1, 0, 0) if out is None else out.stride()),
        plane, slope,
        KIND=kind, PIXELS=pixels, BLOCK_K=block_k, BLOCK_OUT=block_out,
        num_warps=config.warps, num_stages=config.stages, maxnreg=config.registers if simple else MAX_REGISTERS,
    )  # fmt: skip


def forward(
    x: Tensor,
    kernels: Sequence[Tensor],
    factors: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    out: Tensor,
    bits: Tensor,
) -> None:
    """Write the result and the signs, laid out as in the op's registration."""
    width = kernels[0].shape[1]
    kernels = [kernel.view(torch.float8_e4m3fn) for kernel in kernels]
    x = with_contiguous_channels(x)
    incoming = quantize(x, torch.float8_e4m3fn)
    growth = incoming.new_empty((*incoming.shape[:3], ACTIVATIONS * width))
    for k in range(ACTIVATIONS):
        convolve(
            incoming, growth, (0, k * width), kernels[k], factors[k], ACTIVATE,
            bias=biases[k], bits=bits, out_first=k * width, plane=k, slope=slope,
        )  # fmt: skip
    convolve(
        incoming, growth, (0, ACTIVATIONS * width), kernels[ACTIVATIONS], factors[ACTIVATIONS], RESIDUAL,
        bias=biases[ACTIVATIONS], residual=x, out=out,
    )  # fmt: skip


def backward(
    grad: Tensor, bits: Tensor, kernels: Sequence[Tensor], factors: Sequence[Tensor], slope: float, grad_x: Tensor
) -> None:
    """Write the gradient to x."""
    width = kernels[0].shape[1]
    kernels = [kernel.view(torch.float8_e4m3fn) for kernel in kernels]
    grad = with_contiguous_channels(grad)
    incoming = quantize(grad, torch.float8_e5m2)
    growth = incoming.new_empty((*incoming.shape[:3], ACTIVATIONS * width))
    for step, k in enumerate(reversed(range(ACTIVATIONS))):
        convolve(
            incoming, growth, ((k + 1) * width, ACTIVATIONS * width), kernels[CONVOLUTIONS + step],
            factors[CONVOLUTIONS + step], GRADIENT, bits=bits, out_first=k * width, plane=k, slope=slope,
        )  # fmt: skip
    convolve(
        incoming, growth, (0, ACTIVATIONS * width), kernels[-1], factors[-1], RESIDUAL, residual=grad, out=grad_x
    )  # fmt: skip
