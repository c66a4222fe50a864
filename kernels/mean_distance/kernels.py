"""Triton kernels of the mean distance and their launchers: partial sums, their mean, and the gradient.

Both tensors are dense, in the same memory order, and read as vectors of n values. With d = x - target::

    sums      partial sum of |d| or d^2 per chunk, in float32; one program per chunk
    mean      sum of all partial sums in float64, in a fixed order, over n; one program
    gradient  sign(d) g / n or 2 d g / n in x's dtype; g is read from device memory

Deterministic (no atomics) and free of host synchronization.
"""

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.layout import in_order

PARTIALS_BLOCK: Final = 2048  # partial sums per iteration of the mean kernel


class Config(NamedTuple):
    """Launch configuration. The kernels are memory-bound, so one configuration serves every architecture."""

    block: int = 1024
    """Values per iteration of a program, a power of two."""
    blocks: int = 16
    """Iterations per program; a chunk is ``block * blocks`` values."""
    warps: int = 4
    """Warps per program."""


CONFIG: Final = Config()


@triton.jit
def _distance_sums_kernel(
    x_ptr,  # n values
    target_ptr,  # n values
    partials_ptr,  # (programs,) fp32
    n,  # number of values
    SQUARE: tl.constexpr,  # d^2 instead of |d|
    BLOCK: tl.constexpr,  # values per iteration
    BLOCKS: tl.constexpr,  # iterations per program
):
    """Grid: one program per chunk."""
    chunk = tl.program_id(0)
    begin = chunk.to(tl.int64) * (BLOCK * BLOCKS)
    x_ptr += begin
    target_ptr += begin
    left = tl.minimum(n - begin, BLOCK * BLOCKS).to(tl.int32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for block in range(BLOCKS):
        at = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < left, other=0.0).to(tl.float32)
        target = tl.load(target_ptr + at, mask=at < left, other=0.0).to(tl.float32)
        d = x - target
        total += d * d if SQUARE else tl.abs(d)
    tl.store(partials_ptr + chunk, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["n", "count"])
def _distance_mean_kernel(
    partials_ptr,  # (count,) fp32
    mean_ptr,  # fp32 scalar
    n,  # number of values
    count,  # number of partial sums
    BLOCK: tl.constexpr,  # partial sums per iteration
):
    """Grid: a single program."""
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(partials_ptr + at, mask=at < count, other=0.0).to(tl.float64)
    tl.store(mean_ptr, (tl.sum(total, axis=0) / n.to(tl.float64)).to(tl.float32))


@triton.jit
def _distance_gradient_kernel(
    grad_ptr,  # fp32 scalar: gradient to the mean
    x_ptr,  # n values
    target_ptr,  # n values
    grad_x_ptr,  # n values
    n,  # number of values
    SQUARE: tl.constexpr,  # gradient of d^2 instead of |d|
    BLOCK: tl.constexpr,  # values per iteration
    BLOCKS: tl.constexpr,  # iterations per program
):
    """Grid: one program per chunk."""
    begin = tl.program_id(0).to(tl.int64) * (BLOCK * BLOCKS)
    x_ptr += begin
    target_ptr += begin
    grad_x_ptr += begin
    left = tl.minimum(n - begin, BLOCK * BLOCKS).to(tl.int32)
    # Same rounding as PyTorch: n to fp32, then the quotient.
    scale = tl.div_rn(tl.load(grad_ptr), tl.zeros((), dtype=tl.float32) + n)
    if SQUARE:
        scale *= 2
    for block in range(BLOCKS):
        at = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < left, other=0.0).to(tl.float32)
        target = tl.load(target_ptr + at, mask=at < left, other=0.0).to(tl.float32)
        d = x - target
        # Like torch.sign, 0 for NaN.
        slope = d if SQUARE else tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
        tl.store(grad_x_ptr + at, (slope * scale).to(grad_x_ptr.dtype.element_ty), mask=at < left)


def forward(x: Tensor, target: Tensor, square: bool, config: Config | None = None) -> Tensor:
    """Return the mean of |d|, or of d^2 if ``square``, as a float32 scalar; x must not be empty."""
    config = config or CONFIG
    x, target = _in_same_order(x, target)
    n = x.numel()
    programs = triton.cdiv(n, config.block * config.blocks)
    partials = torch.empty(programs, dtype=torch.float32, device=x.device)
    mean = torch.empty((), dtype=torch.float32, device=x.device)
    _distance_sums_kernel[programs,](x, target, partials, n, **_constants(square, config))
    _distance_mean_kernel[1,](partials, mean, n, programs, BLOCK=PARTIALS_BLOCK, num_warps=4)
    return mean


def backward(grad: Tensor, x: Tensor, target: Tensor, square: bool, config: Config | None = None) -> Tensor:
    """Return the gradient to x from the gradient to the mean."""
    config = config or CONFIG
    x, target = _in_same_order(x, target)
    grad_x = torch.empty_like(x)
    programs = triton.cdiv(x.numel(), config.block * config.blocks)
    _distance_gradient_kernel[programs,](grad, x, target, grad_x, x.numel(), **_constants(square, config))
    return grad_x


def _in_same_order(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both dense and in the same memory order; x is copied only if it has gaps, target if its order differs."""
    like = torch.empty_like(x, device="meta")
    return in_order(x.detach(), like), in_order(target, like)


def _constants(square: bool, config: Config) -> dict[str, int]:
    return {"SQUARE": int(square), "BLOCK": config.block, "BLOCKS": config.blocks, "num_warps": config.warps}
