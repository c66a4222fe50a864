"""Launch configurations of the convolution kernels: the type, channel blocks, and choice of architecture.

Plain data: importing it needs neither Triton nor a GPU.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

MAX_REGISTERS: Final = 255
"""The most registers a thread can address."""

PRECISIONS: Final = ("half", "tf32", "tf32x3")
"""How dot products are computed: bf16 or fp16 inputs; fp32 rounded to tf32; fp32 as three tf32 products."""

CHANNEL_BLOCKS: Final = (16, 64)
"""Channel block sizes of the degradation block and upsampled convolution; tl.dot needs at least 16."""


class KernelConfig(NamedTuple):
    """Tile shape and launch options of one kernel. All but ``programs`` and ``registers`` are powers of two."""

    block_h: int
    """Rows of a pixel tile."""
    block_w: int
    """Columns of a pixel tile; block_h * block_w is at least 16."""
    block_k: int
    """Upper limit of the channel block: of a reduction step, or of a weight gradient's inputs and outputs."""
    warps: int
    """Warps per program, 4 or 8."""
    stages: int
    """Software pipeline depth. 1 keeps plain loads, which L1 caches; asynchronous copies bypass L1."""
    programs: int = 0
    """Weight gradients only: number of programs to aim for when splitting an image's pixel tiles."""
    registers: int = MAX_REGISTERS
    """Register limit per thread for channels_last images with channels in multiples of 16.

    Other layouts need more registers for addresses and get all of them. With 65,536 registers per multiprocessor and 8
    warps, a limit of 128 lets two programs share one. Without a limit ptxas may spill to reach the next occupancy step.
    """
    design: str = ""
    """Name of the kernel where an op has several; empty for its first one."""


def newest_architecture(capability: tuple[int, int], architectures: Iterable[str]) -> str:
    """Return the newest of ``architectures`` ("8.0", "9.0") that is not newer than ``capability``.

    Raises:
        ValueError: the device is older than all of them.
    """
    known = {tuple(map(int, name.split("."))): name for name in architectures}
    supported = [version for version in known if version <= capability]
    if not supported:
        raise ValueError(
            f"compute capability must be at least {known[min(known)]}, was {capability[0]}.{capability[1]}"
        )
    return known[max(supported)]


def channel_block(channels: int, limit: int = CHANNEL_BLOCKS[-1]) -> int:
    """The smallest of :data:`CHANNEL_BLOCKS` that holds all channels, or else the largest; at most ``limit``."""
    return min(smallest_block(channels, CHANNEL_BLOCKS), limit)


def smallest_block(channels: int, blocks: tuple[int, ...]) -> int:
    """The smallest of ``blocks`` (ascending) that holds all channels, or else the largest."""
    return next((block for block in blocks if block >= channels), blocks[-1])


def reduction_block(segments: tuple[int, int], limit: int, blocks: tuple[int, ...]) -> int:
    """The block of at most ``limit`` that pads the two segments of a reduction least; the largest of equals."""
    blocks = tuple(block for block in blocks if block <= limit)
    return min(reversed(blocks), key=lambda block: sum(-(-channels // block) * block for channels in segments))
