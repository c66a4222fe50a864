"""The mean distance's Triton kernels and their launchers: partial sums, their mean, and the gradient.

A program takes a chunk of both tensors, which lie in one order without gaps, as vectors of n values::

    sums      a partial sum of |d| or d^2 of each chunk, in float32, d = x - target
    mean      one program: all partial sums in float64, in a fixed order; over n
    gradient  sign(d) g / n or 2 d g / n in x's dtype; g is read from the device

No atomics, so two runs give the same bits, and nothing that the host would have to wait for.
"""

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTIALS_BLOCK: Final = 2048  # partial sums a step of the kernel that adds them


class Config(NamedTuple):
    """How a pass is cut. Both wait for memory alone, so one choice serves every architecture."""

    block: int = 1024
    """Values that a program has in flight, a power of two."""
    blocks: int = 16
    """Blocks of a chunk, one after another."""
    warps: int = 4
    """Warps of a program."""


CONFIG: Final = Config()


@triton.jit
def _sums_kernel(
    x_ptr,  # n values
    target_ptr,  # n values
    partials_ptr,  # in fp32, one a program
    n,  # how many values
    SQUARE: tl.constexpr,  # d^2, not |d|
    BLOCK: tl.constexpr,  # values at a time
    BLOCKS: tl.constexpr,  # blocks of a chunk
):
    """One program: one chunk."""
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
def _mean_kernel(
    partials_ptr,  # in fp32
    mean_ptr,  # one number in fp32
    n,  # how many values there are
    count,  # how many partial sums
    BLOCK: tl.constexpr,  # partial sums at a time
):
    """One program."""
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(partials_ptr + at, mask=at < count, other=0.0).to(tl.float64)
    tl.store(mean_ptr, (tl.sum(total, axis=0) / n.to(tl.float64)).to(tl.float32))


@triton.jit
def _gradient_kernel(
    grad_ptr,  # one number in fp32: the gradient to the mean
    x_ptr,  # n values
    target_ptr,  # n values
    grad_x_ptr,  # n values
    n,  # how many values
    SQUARE: tl.constexpr,  # of d^2, not |d|
    BLOCK: tl.constexpr,  # values at a time
    BLOCKS: tl.constexpr,  # blocks of a chunk
):
    """One program: one chunk."""
    begin = tl.program_id(0).to(tl.int64) * (BLOCK * BLOCKS)
    x_ptr += begin
    target_ptr += begin
    grad_x_ptr += begin
    left = tl.minimum(n - begin, BLOCK * BLOCKS).to(tl.int32)
    # Rounded as torch does it: n to fp32, then the quotient.
    scale = tl.div_rn(tl.load(grad_ptr), tl.zeros((), dtype=tl.float32) + n)
    if SQUARE:
        scale *= 2
    for block in range(BLOCKS):
        at = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + at, mask=at < left, other=0.0).to(tl.float32)
        target = tl.load(target_ptr + at, mask=at < left, other=0.0).to(tl.float32)
        d = x - target
        # The sign of NaN is 0, as torch.sign has it.
        slope = d if SQUARE else tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
        tl.store(grad_x_ptr + at, (slope * scale).to(grad_x_ptr.dtype.element_ty), mask=at < left)


def mean(x: Tensor, target: Tensor, out: Tensor, square: bool, config: Config | None = None) -> None:
    """Fill out, (), with the mean of two tensors that lie in one order without gaps."""
    config = config or CONFIG
    n = x.numel()
    programs = triton.cdiv(n, config.block * config.blocks)
    partials = torch.empty(programs, dtype=torch.float32, device=x.device)
    _sums_kernel[programs,](x, target, partials, n, **_constants(square, config))
    _mean_kernel[1,](partials, out, n, programs, BLOCK=PARTIALS_BLOCK, num_warps=4)


def gradient(
    grad: Tensor, x: Tensor, target: Tensor, grad_x: Tensor, square: bool, config: Config | None = None
) -> None:
    """Fill grad_x, in the order of x and target."""
    config = config or CONFIG
    programs = triton.cdiv(x.numel(), config.block * config.blocks)
    _gradient_kernel[programs,](grad, x, target, grad_x, x.numel(), **_constants(square, config))


def _constants(square: bool, config: Config) -> dict[str, int]:
    return {"SQUARE": int(square), "BLOCK": config.block, "BLOCKS": config.blocks, "num_warps": config.warps}
