"""Launch configurations of the degradation block's kernels, per architecture. Plain data: needs no triton, no GPU.

``TABLE[architecture][kernel, precision]`` is what a benchmark regenerates. Channel blocks follow from the channel
counts (:func:`channel_block`), so one entry serves every shape. Chosen by counts, registers and occupancy
(docs/kernels.md); not measured yet. tests/test_kernels_compile_degradation_block.py holds each against spills and
shared memory.
"""

from typing import Final, NamedTuple

CHANNEL_BLOCKS: Final = (16, 64)
"""Channel block sizes; the matrix units take no less than 16."""

PRECISIONS: Final = ("half", "tf32", "tf32x3")
"""How products are taken: of bf16 or fp16; of fp32 rounded to tf32; of fp32 as three tf32 products, exact as fp32."""


MAX_REGISTERS: Final = 255
"""What a thread can address."""


class Config(NamedTuple):
    """One kernel's tile and its resources; powers of two, ``programs`` apart."""

    block_h: int
    """Rows of a pixel tile."""
    block_w: int
    """Columns of a pixel tile; block_h * block_w is at least 16."""
    block_k: int
    """Channels a step of the reduction at most; in the weight gradient, channels a program at most, in and out."""
    warps: int
    """Warps of a program, 4 or 8."""
    stages: int
    """Software pipeline depth; 1 keeps plain loads, which L1 caches; asynchronous copies bypass it."""
    programs: int = 0
    """Weight gradient only: programs to aim at, over which an image's pixel tiles are split."""
    registers: int = MAX_REGISTERS
    """Registers a thread may take where all images are channels_last with channels in multiples of 16; addresses of
    others need more, and get all. A multiprocessor has 65,536: at 8 warps, 128 let two programs share it. Without a
    number ptxas spills a few for the next step of occupancy."""


# fmt: off
TABLE: Final[dict[str, dict[tuple[str, str], Config]]] = {
    "8.0": {
        ("forward", "half"): Config(8, 16, 64, 8, 1, registers=128),
        ("forward", "tf32"): Config(8, 8, 16, 8, 1),
        ("forward", "tf32x3"): Config(8, 8, 16, 4, 1),
        ("grad_input", "half"): Config(8, 8, 32, 4, 1, registers=168),
        ("grad_input", "tf32"): Config(8, 8, 32, 8, 1),
        ("grad_input", "tf32x3"): Config(8, 8, 16, 8, 1),
        ("grad_weight", "half"): Config(4, 8, 64, 8, 1, 432),
        ("grad_weight", "tf32"): Config(4, 8, 64, 8, 1, 432),
        ("grad_weight", "tf32x3"): Config(4, 4, 32, 4, 1, 432),
    },
    "9.0": {
        ("forward", "half"): Config(8, 16, 64, 8, 1, registers=128),
        ("forward", "tf32"): Config(8, 8, 32, 8, 1),
        ("forward", "tf32x3"): Config(8, 8, 16, 8, 1),
        ("grad_input", "half"): Config(8, 16, 32, 8, 1, registers=128),
        ("grad_input", "tf32"): Config(8, 8, 32, 8, 1),
        ("grad_input", "tf32x3"): Config(8, 8, 16, 8, 1),
        ("grad_weight", "half"): Config(4, 16, 64, 8, 1, 528, registers=128),
        ("grad_weight", "tf32"): Config(4, 8, 64, 8, 1, 528),
        ("grad_weight", "tf32x3"): Config(4, 4, 32, 4, 1, 528),
    },
}
# fmt: on


def architecture(capability: tuple[int, int]) -> str:
    """The newest architecture of the table that is not newer than a device's compute capability.

    Raises:
        ValueError: the device is older than every architecture of the table.
    """
    known = {tuple(map(int, name.split("."))): name for name in TABLE}
    usable = [number for number in known if number <= capability]
    if not usable:
        oldest = known[min(known)]
        raise ValueError(f"compute capability must be at least {oldest}, was {capability[0]}.{capability[1]}")
    return known[max(usable)]


def channel_block(channels: int, limit: int = CHANNEL_BLOCKS[-1]) -> int:
    """The smallest block that holds all channels, and at most ``limit``."""
    return min(next((block for block in CHANNEL_BLOCKS if block >= channels), CHANNEL_BLOCKS[-1]), limit)
