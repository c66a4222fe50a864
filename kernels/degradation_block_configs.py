"""Launch configurations of the degradation block's kernels, per architecture. Plain data: needs neither triton nor a GPU.

``TABLE[architecture][kernel, precision]`` is what a benchmark regenerates. Channel blocks follow from the channel counts
(:func:`channel_block`), so one entry serves every shape. Chosen by counts (docs/kernels.md), not measured yet.
"""

from typing import Final, NamedTuple

CHANNEL_BLOCKS: Final = (16, 32, 64)
"""Channel block sizes; the matrix units take no less than 16."""

PRECISIONS: Final = ("half", "tf32", "tf32x3")
"""How products are taken: of bf16 or fp16 values; of fp32 values rounded to tf32; of fp32 values split in three products."""


class Config(NamedTuple):
    """One kernel's tile and its resources."""

    block_h: int
    """Rows of a pixel tile."""
    block_w: int
    """Columns of a pixel tile; block_h * block_w is at least 16 and, as is each of them, a power of two."""
    warps: int
    """Warps of a program, 4 or 8."""
    stages: int
    """Software pipeline depth; 1 keeps plain loads, which L1 caches, where asynchronous copies would bypass it."""
    programs: int = 0
    """Weight gradient only: programs to aim at, over which an image's pixel tiles are split."""


# fmt: off
TABLE: Final[dict[str, dict[tuple[str, str], Config]]] = {
    "8.0": {
        ("forward", "half"): Config(8, 16, 4, 1),
        ("forward", "tf32"): Config(8, 16, 8, 1),
        ("forward", "tf32x3"): Config(8, 8, 4, 1),
        ("grad_input", "half"): Config(8, 16, 4, 1),
        ("grad_input", "tf32"): Config(8, 16, 8, 1),
        ("grad_input", "tf32x3"): Config(8, 8, 4, 1),
        ("grad_weight", "half"): Config(4, 16, 8, 1, 432),
        ("grad_weight", "tf32"): Config(4, 8, 8, 1, 432),
        ("grad_weight", "tf32x3"): Config(4, 8, 8, 1, 432),
    },
    "9.0": {
        ("forward", "half"): Config(8, 16, 4, 1),
        ("forward", "tf32"): Config(8, 16, 8, 1),
        ("forward", "tf32x3"): Config(8, 8, 4, 1),
        ("grad_input", "half"): Config(8, 16, 4, 1),
        ("grad_input", "tf32"): Config(8, 16, 8, 1),
        ("grad_input", "tf32x3"): Config(8, 8, 4, 1),
        ("grad_weight", "half"): Config(4, 16, 8, 1, 528),
        ("grad_weight", "tf32"): Config(4, 8, 8, 1, 528),
        ("grad_weight", "tf32x3"): Config(4, 8, 8, 1, 528),
    },
}
# fmt: on


def architecture(capability: tuple[int, int]) -> str:
    """The newest architecture of the table that is not newer than a device's compute capability."""
    known = [name for name in TABLE if tuple(map(int, name.split("."))) <= capability]
    if not known:
        raise ValueError(f"compute capability must be at least {min(TABLE)}, was {capability[0]}.{capability[1]}")
    return max(known)


def channel_block(channels: int) -> int:
    """The smallest block that holds all channels, or the largest one."""
    return next((block for block in CHANNEL_BLOCKS if block >= channels), CHANNEL_BLOCKS[-1])
