"""Triton kernels of the ascent step for convolutions in parts (color, kernel, rest), and their launches.

Notation: t tap of 9, w the center tap of the center (W0), d = value - center, g gradient, both replaced by their
point-symmetric half where the parts are symmetric::

    sums    one program per image and tensor, twice over its kernels: k[t] = sum(w d[t]) / sum(w^2) minus its mean,
            of d and of g; then partial [g,g], [d,g], [d,d] of the three parts
    update  out = center + the sum over parts p of f_p (d_p + s_p g_p), where
            d_color = mean of d over t,  d_kernel = w k,  d_rest = d - d_color - d_kernel

The second read comes from L2: weights are 1.5% of theta's bytes.
"""

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batches import KernelBatch
from .tensors import find_chunk, pick

TAPS: Final = tl.constexpr(9)
PADDED: Final = tl.constexpr(16)  # taps of a tile, a power of two
KERNELS: Final = 64
"""3x3 kernels per iteration of a program."""
BLOCKS: Final = 4
"""Iterations per program of the update."""
WARPS: Final = 8


@triton.jit
def _load_taps(
    base,  # pointer to kernels (kernels, 9)
    kernel,  # indices (KERNELS, 1)
    kernels,  # number of kernels
    SYMMETRIC: tl.constexpr,  # the point-symmetric half
):
    """(KERNELS, 16) fp32, zero outside of the kernels and past tap 8."""
    tap = tl.arange(0, PADDED)[None, :]
    inside = (kernel < kernels) & (tap < TAPS)
    x = tl.load(base + kernel * TAPS + tap, mask=inside, other=0.0).to(tl.float32)
    if SYMMETRIC:
        x = (x + tl.load(base + kernel * TAPS + (TAPS - 1 - tap), mask=inside, other=0.0).to(tl.float32)) * 0.5
    return x


@triton.jit
def _split(
    x,  # (KERNELS, 16)
    w,  # (KERNELS, 1)
    k,  # (1, 16)
):
    """(color (KERNELS, 1), kernel, rest); taps past 8 of the last two are zero."""
    tap = tl.arange(0, PADDED)[None, :]
    color = tl.sum(x, axis=1)[:, None] / TAPS
    kernel = w * k
    return color, kernel, tl.where(tap < TAPS, x - color - kernel, 0.0)


@triton.jit
def _without_mean(
    k,  # (16,), zero past tap 8
    power,  # sum of w^2
):
    """k / power minus its mean over 9 taps; zero where power is."""
    tap = tl.arange(0, PADDED)
    k = k / tl.where(power == 0, 1.0, power)
    return tl.where(tap < TAPS, k - tl.sum(k, axis=0) / TAPS, 0.0)


@triton.jit(do_not_specialize=["part", "parts", "first", "width"])
def _convolution_sums_kernel(
    values,  # tuple of (N, kernels, 9)
    gradients,  # tuple of (N, kernels, 9)
    centers,  # tuple of (N, kernels, 9)
    sizes,  # tuple: kernels per image of each tensor
    partials_ptr,  # (N, parts, 3, width) fp32
    k_ptr,  # (N, TENSORS, 2, 16) fp32: k of g and of d
    part,  # index of the first of three parts
    parts,  # number of parts
    first,  # offset of this launch in a row of partials
    width,  # length of a row of partials
    TENSORS: tl.constexpr,  # number of tensors
    AT_CENTER: tl.constexpr,  # d is zero; values are not read
    SYMMETRIC: tl.constexpr,  # parts are point-symmetric
    KERNELS: tl.constexpr,  # 3x3 kernels per iteration
):
    """Grid: one program per tensor of one image."""
    program = tl.program_id(0)
    n = (program // TENSORS).to(tl.int64)
    which = program % TENSORS
    kernels = pick(which, sizes, TENSORS)
    gradient = pick(which, gradients, TENSORS) + n * kernels * TAPS
    center = pick(which, centers, TENSORS) + n * kernels * TAPS
    value = center
    if not AT_CENTER:
        value = pick(which, values, TENSORS) + n * kernels * TAPS
    power = tl.zeros((KERNELS, 1), dtype=tl.float32)
    wg = tl.zeros((KERNELS, PADDED), dtype=tl.float32)
    wd = tl.zeros((KERNELS, PADDED), dtype=tl.float32)
    for begin in range(0, kernels, KERNELS):
        kernel = begin + tl.arange(0, KERNELS)[:, None]
        w = tl.load(center + kernel * TAPS + TAPS // 2, mask=kernel < kernels, other=0.0).to(tl.float32)
        power += w * w
        wg += w * _load_taps(gradient, kernel, kernels, SYMMETRIC)
        if not AT_CENTER:
            d = _load_taps(value, kernel, kernels, SYMMETRIC) - _load_taps(center, kernel, kernels, SYMMETRIC)
            wd += w * d
    total = tl.sum(tl.sum(power, axis=1), axis=0)
    k_g = _without_mean(tl.sum(wg, axis=0), total)
    k_out = k_ptr + (n * TENSORS + which) * 2 * PADDED + tl.arange(0, PADDED)
    tl.store(k_out, k_g)
    if not AT_CENTER:
        k_d = _without_mean(tl.sum(wd, axis=0), total)
        tl.store(k_out + PADDED, k_d)

    color_gg = tl.zeros((KERNELS, 1), dtype=tl.float32)
    color_dg = tl.zeros((KERNELS, 1), dtype=tl.float32)
    color_dd = tl.zeros((KERNELS, 1), dtype=tl.float32)
    rest_gg = tl.zeros((KERNELS, PADDED), dtype=tl.float32)
    rest_dg = tl.zeros((KERNELS, PADDED), dtype=tl.float32)
    rest_dd = tl.zeros((KERNELS, PADDED), dtype=tl.float32)
    for begin in range(0, kernels, KERNELS):
        kernel = begin + tl.arange(0, KERNELS)[:, None]
        w = tl.load(center + kernel * TAPS + TAPS // 2, mask=kernel < kernels, other=0.0).to(tl.float32)
        color_g, _, rest_g = _split(_load_taps(gradient, kernel, kernels, SYMMETRIC), w, k_g[None, :])
        color_gg += color_g * color_g
        rest_gg += rest_g * rest_g
        if not AT_CENTER:
            d = _load_taps(value, kernel, kernels, SYMMETRIC) - _load_taps(center, kernel, kernels, SYMMETRIC)
            color_d, _, rest_d = _split(d, w, k_d[None, :])
            color_dg += color_d * color_g
            color_dd += color_d * color_d
            rest_dg += rest_d * rest_g
            rest_dd += rest_d * rest_d
    row = partials_ptr + (n * parts + part) * 3 * width + first + which
    tl.store(row, TAPS * tl.sum(tl.sum(color_gg, axis=1), axis=0))
    tl.store(row + 3 * width, total * tl.sum(k_g * k_g, axis=0))
    tl.store(row + 6 * width, tl.sum(tl.sum(rest_gg, axis=1), axis=0))
    if not AT_CENTER:
        tl.store(row + width, TAPS * tl.sum(tl.sum(color_dg, axis=1), axis=0))
        tl.store(row + 2 * width, TAPS * tl.sum(tl.sum(color_dd, axis=1), axis=0))
        tl.store(row + 4 * width, total * tl.sum(k_d * k_g, axis=0))
        tl.store(row + 5 * width, total * tl.sum(k_d * k_d, axis=0))
        tl.store(row + 7 * width, tl.sum(tl.sum(rest_dg, axis=1), axis=0))
        tl.store(row + 8 * width, tl.sum(tl.sum(rest_dd, axis=1), axis=0))


@triton.jit(do_not_specialize=["chunks", "part", "parts"])
def _convolution_update_kernel(
    values,  # tuple of (N, kernels, 9)
    gradients,  # tuple of (N, kernels, 9)
    centers,  # tuple of (N, kernels, 9)
    outs,  # tuple of (N, kernels, 9)
    sizes,  # tuple: kernels per image of each tensor
    coefficients_ptr,  # (N, parts, 2) fp32: s, f
    k_ptr,  # (N, TENSORS, 2, 16) fp32: k of g and of d
    chunks,  # programs per image
    part,  # index of the first of three parts
    parts,  # number of parts
    TENSORS: tl.constexpr,  # number of tensors
    AT_CENTER: tl.constexpr,  # values are the centers and not read
    SYMMETRIC: tl.constexpr,  # parts are point-symmetric
    KERNELS: tl.constexpr,  # 3x3 kernels per iteration
    BLOCKS: tl.constexpr,  # iterations per program
):
    """Grid: one program per chunk of one tensor of one image."""
    program = tl.program_id(0)
    n = (program // chunks).to(tl.int64)
    which, kernels, begin = find_chunk(program % chunks, sizes, TENSORS, KERNELS * BLOCKS)
    gradient = pick(which, gradients, TENSORS) + n * kernels * TAPS
    center = pick(which, centers, TENSORS) + n * kernels * TAPS
    out = pick(which, outs, TENSORS) + n * kernels * TAPS
    value = center
    if not AT_CENTER:
        value = pick(which, values, TENSORS) + n * kernels * TAPS
    tap = tl.arange(0, PADDED)[None, :]
    k = k_ptr + (n * TENSORS + which) * 2 * PADDED + tap
    k_g = tl.load(k)
    if not AT_CENTER:
        k_d = tl.load(k + PADDED)
    row = coefficients_ptr + (n * parts + part) * 2
    color_s = tl.load(row)
    color_f = tl.load(row + 1)
    kernel_s = tl.load(row + 2)
    kernel_f = tl.load(row + 3)
    rest_s = tl.load(row + 4)
    rest_f = tl.load(row + 5)
    for block in range(BLOCKS):
        kernel = begin + block * KERNELS + tl.arange(0, KERNELS)[:, None]
        w = tl.load(center + kernel * TAPS + TAPS // 2, mask=kernel < kernels, other=0.0).to(tl.float32)
        color, own, rest = _split(_load_taps(gradient, kernel, kernels, SYMMETRIC), w, k_g)
        color *= color_s
        own *= kernel_s
        rest *= rest_s
        if not AT_CENTER:
            d = _load_taps(value, kernel, kernels, SYMMETRIC) - _load_taps(center, kernel, kernels, SYMMETRIC)
            color_d, own_d, rest_d = _split(d, w, k_d)
            color += color_d
            own += own_d
            rest += rest_d
        new = _load_taps(center, kernel, kernels, False) + color_f * color + kernel_f * own + rest_f * rest
        inside = (kernel < kernels) & (tap < TAPS)
        tl.store(out + kernel * TAPS + tap, new.to(out.dtype.element_ty), mask=inside)


class KernelLaunch:
    """Launches of one batch of convolutions; ``columns`` of three rows of partial sums are its own."""

    def __init__(self, batch: KernelBatch) -> None:
        self.batch = batch
        self.columns = len(batch.sizes)
        self.k: Tensor | None = None

    def sums(self, images: int, partials: Tensor, first: int) -> None:
        """Fill this batch's columns of its three rows of partial sums, from ``first``."""
        batch = self.batch
        shape = (images, len(batch.sizes), 2, PADDED.value)
        self.k = torch.empty(shape, dtype=torch.float32, device=partials.device)
        _convolution_sums_kernel[images * len(batch.sizes),](
            tuple(batch.values), tuple(batch.gradients), tuple(batch.centers), tuple(batch.sizes), partials, self.k,
            batch.group, partials.shape[1], first, partials.shape[3],
            **self._constants(),
        )  # fmt: skip

    def update(self, images: int, coefficients: Tensor) -> None:
        """Write the outputs."""
        batch = self.batch
        chunks = sum(-(-size // (KERNELS * BLOCKS)) for size in batch.sizes)
        _convolution_update_kernel[images * chunks,](
            tuple(batch.values), tuple(batch.gradients), tuple(batch.centers), tuple(batch.outs), tuple(batch.sizes),
            coefficients, self.k, chunks, batch.group, coefficients.shape[1],
            BLOCKS=BLOCKS, **self._constants(),
        )  # fmt: skip

    def _constants(self) -> dict[str, Any]:
        return {
            "TENSORS": len(self.batch.sizes),
            "AT_CENTER": int(self.batch.at_center),
            "SYMMETRIC": int(self.batch.symmetric),
            "KERNELS": KERNELS,
            "num_warps": WARPS,
        }
