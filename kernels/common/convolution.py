"""Index arithmetic and loads shared by the convolution kernels.

Notation: n image, p pixel of the output, q pixel of the input, o output and i input channel, k = (dy, dx) one of
nine taps; P pixels of a tile, K channels of a block. With at(p) the clamp to the image, or zero outside of it::

    forward      z[n,p,o]    = sum_k sum_i x[n, at(p + k), i] * w[n,k,i,o]
                 out[n,p,o]  = (z > 0 ? z : slope[n,o] * z) + noise[n,p,o]
    grad_input   gx[n,q,i]   = sum_k sum_o sum_{p: at(p + k) = q} gz[n,p,o] * w[n,k,o,i]
                 gz[n,p,o]   = g if z > 0 else slope[n,o] * g
    grad_weight  gw[n,k,o,i] = sum_p gz[n,p,o] * x[n, at(p + k), i]
                 gslope[n,o] = sum_{p: not z > 0} z * g
                             = sum_{p: not z > 0} (out - noise) * g / slope[n,o]        where the slope is not near 0

Tensors may have any strides; tiles are shaped for channels_last. Sums are taken in fp32, deterministically. See
docs/kernels/degradation_block.md for drawings and counts.
"""

import triton
import triton.language as tl

TAPS = tl.constexpr(9)
BITS = tl.constexpr(8)  # sign bits of eight channels share a byte


@triton.jit
def tile_pixels(
    tile,  # index of the pixel tile within the image
    tiles_w,  # tiles per row
    BLOCK_H: tl.constexpr,  # rows per tile
    BLOCK_W: tl.constexpr,  # columns per tile
):
    """Rows and columns of a tile's pixels, each [BLOCK_H * BLOCK_W]."""
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    row = (tile // tiles_w) * BLOCK_H + pixel // BLOCK_W
    column = (tile % tiles_w) * BLOCK_W + pixel % BLOCK_W
    return row, column


@triton.jit
def load_padded(
    x,  # image n of x
    row,  # [P] row of p + k, which may lie outside of the image
    column,  # [P] likewise
    valid,  # [P] whether p exists; 0 elsewhere, so that non-finite values do not spread
    channel,  # [K] input channels
    c_in,  # number of input channels
    height,  # of the image
    width,  # of the image
    stride_c,  # strides of x, in values
    stride_h,
    stride_w,
    replicate,  # 1: clamp to the image, 0: zero outside of it
):
    """x[at(p + k), i] as [P, K]; zero for channels that do not exist."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row = tl.minimum(tl.maximum(row, 0), height - 1)
    column = tl.minimum(tl.maximum(column, 0), width - 1)
    offset = (row * stride_h + column * stride_w)[:, None] + (channel * stride_c)[None, :]
    mask = (valid & (inside | (replicate != 0)))[:, None] & (channel < c_in)[None, :]
    return tl.load(x + offset, mask=mask, other=0.0)


@triton.jit
def load_gradient(
    g,  # image n of the incoming gradient
    bits,  # image n of the sign bits
    row,  # [P] row of p
    column,  # [P] column of p
    valid,  # [P] whether p exists and counts
    first,  # first output channel
    c_out,  # number of output channels
    width,  # of the image
    stride_c,  # strides of g, in values
    stride_h,
    stride_w,
    BLOCK_K: tl.constexpr,  # K, output channels in the block
):
    """g in fp32, [P, K], and bytes of signs, [P, K/8]."""
    channel = first + tl.arange(0, BLOCK_K)
    offset = (row * stride_h + column * stride_w)[:, None] + (channel * stride_c)[None, :]
    grad = tl.load(g + offset, mask=valid[:, None] & (channel < c_out)[None, :], other=0.0).to(tl.float32)
    c_bytes = (c_out + BITS - 1) // BITS
    byte = first // BITS + tl.arange(0, BLOCK_K // BITS)
    at_byte = ((row * width + column) * c_bytes)[:, None] + byte[None, :]
    # Where there is no p the sign reads as positive: gz is zero there whatever the slope, infinity included.
    packed = tl.load(bits + at_byte, mask=valid[:, None] & (byte < c_bytes)[None, :], other=255).to(tl.int32)
    return grad, packed


@triton.jit
def activate(
    grad,  # [P, K] in fp32
    packed,  # [P, K/8] bytes of signs
    slope,  # [K] in fp32
    PIXELS: tl.constexpr,  # P
    BLOCK_K: tl.constexpr,  # K, output channels in the block
):
    """(gz in fp32, z > 0), each [P, K]; selected as [P, K/8, 8], where a byte meets its channels."""
    positive = ((packed[:, :, None] >> tl.arange(0, BITS)[None, None, :]) & 1) != 0
    by_byte = tl.reshape(grad, (PIXELS, BLOCK_K // BITS, BITS))
    scaled = tl.reshape(grad * slope[None, :], (PIXELS, BLOCK_K // BITS, BITS))
    gz = tl.reshape(tl.where(positive, by_byte, scaled), (PIXELS, BLOCK_K))
    return gz, tl.reshape(positive, (PIXELS, BLOCK_K))


@triton.jit
def load_activated(
    g,  # arguments of load_gradient and activate
    bits,
    slope,
    row,
    column,
    valid,
    first,
    c_out,
    width,
    stride_c,
    stride_h,
    stride_w,
    PIXELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(g, gz, z > 0), the first two in fp32, each [P, K]."""
    grad, packed = load_gradient(
        g, bits, row, column, valid, first, c_out, width, stride_c, stride_h, stride_w, BLOCK_K
    )
    gz, positive = activate(grad, packed, slope, PIXELS, BLOCK_K)
    return grad, gz, positive


@triton.jit
def load_slope(
    slope,  # the slopes of image n
    stride_c,  # 0 for one slope an image
    first,  # first output channel
    c_out,  # number of output channels
    BLOCK_K: tl.constexpr,  # output channels in the block
):
    """The slopes of a block of channels, [K] in fp32."""
    channel = first + tl.arange(0, BLOCK_K)
    return tl.load(slope + channel * stride_c, mask=channel < c_out, other=0.0).to(tl.float32)


@triton.jit
def shift_pixels(
    sums,  # [P, BLOCK_OUT]
    shift,  # 1 or -1
    PIXELS: tl.constexpr,  # P
    BLOCK_OUT: tl.constexpr,  # output channels per program
):
    """The sums of pixel p + shift at p; at the ends the pixel's own, which are never read."""
    pixel = tl.arange(0, PIXELS) + shift
    pixel = tl.minimum(tl.maximum(pixel, 0), PIXELS - 1)
    return tl.gather(sums, tl.broadcast_to(pixel[:, None], (PIXELS, BLOCK_OUT)), axis=0)
