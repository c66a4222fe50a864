"""Launch configurations of the residual dense block's kernels, per architecture. Plain data: needs no triton, no GPU.

``TABLE[architecture][kernel, precision]`` is what a benchmark regenerates; precisions and fields are those of the
degradation block. Entries go by the block of output channels that a program has. A convolution's tile is
block_h * block_w pixels in the order of rows. Chosen by counts, registers and
occupancy (docs/kernels.md); not measured yet. tests/test_kernels_compile_residual_dense_block.py holds
each against spills.
"""

from typing import Final

from ..degradation_block.configs import Config

CHANNEL_BLOCKS: Final = (16, 32, 64)
"""Channel block sizes; the matrix units take no less than 16."""

FP8_CHANNEL_BLOCKS: Final = (32, 64)
"""Of a reduction over operands in fp8, of which the matrix units take no less than 32."""

OUTPUT_BLOCKS: Final = (16, 32)
"""Of a convolution's output: a program has three sums, one a column of the kernel, which would not fit with 64."""

# fmt: off
TABLE: Final[dict[str, dict[tuple[str, str], Config]]] = {
    "8.0": {
        ("convolution_16", "half"): Config(1, 64, 32, 8, 1, registers=128),
        ("convolution_16", "tf32"): Config(1, 64, 16, 8, 1, registers=128),
        ("convolution_16", "tf32x3"): Config(1, 64, 16, 8, 1),
        ("convolution_32", "half"): Config(1, 64, 32, 8, 1, registers=128),
        ("convolution_32", "tf32"): Config(1, 64, 16, 8, 1, registers=128),
        ("convolution_32", "tf32x3"): Config(1, 64, 16, 8, 1),
        ("grad_weight_16", "half"): Config(4, 8, 16, 4, 1, 432),
        ("grad_weight_16", "tf32"): Config(4, 8, 16, 4, 1, 432),
        ("grad_weight_16", "tf32x3"): Config(4, 8, 16, 4, 1, 432),
        ("grad_weight_32", "half"): Config(4, 8, 32, 4, 1, 432, registers=168),
        ("grad_weight_32", "tf32"): Config(4, 8, 32, 4, 1, 432, registers=168),
        ("grad_weight_32", "tf32x3"): Config(4, 8, 32, 4, 1, 432, registers=168),
        ("grad_weight_64", "half"): Config(4, 8, 64, 8, 1, 432),
        ("grad_weight_64", "tf32"): Config(4, 8, 64, 8, 1, 432),
        ("grad_weight_64", "tf32x3"): Config(4, 4, 64, 8, 1, 432),
    },
    "9.0": {
        ("convolution_16", "half"): Config(1, 128, 64, 8, 1, registers=128),
        ("convolution_16", "tf32"): Config(1, 128, 16, 8, 1, registers=128),
        ("convolution_16", "tf32x3"): Config(1, 64, 16, 8, 1, registers=128),
        ("convolution_32", "half"): Config(1, 128, 64, 8, 1, registers=128),
        ("convolution_32", "tf32"): Config(1, 128, 16, 8, 1, registers=128),
        ("convolution_32", "tf32x3"): Config(1, 64, 16, 8, 1, registers=128),
        ("grad_weight_16", "half"): Config(4, 8, 16, 4, 1, 528),
        ("grad_weight_16", "tf32"): Config(4, 8, 16, 4, 1, 528),
        ("grad_weight_16", "tf32x3"): Config(4, 8, 16, 4, 1, 528),
        ("grad_weight_32", "half"): Config(4, 8, 32, 4, 1, 528, registers=168),
        ("grad_weight_32", "tf32"): Config(4, 8, 32, 4, 1, 528, registers=168),
        ("grad_weight_32", "tf32x3"): Config(4, 8, 32, 4, 1, 528, registers=168),
        ("grad_weight_64", "half"): Config(4, 16, 64, 8, 1, 528, registers=80),
        ("grad_weight_64", "tf32"): Config(4, 8, 64, 8, 1, 528, registers=128),
        ("grad_weight_64", "tf32x3"): Config(4, 4, 64, 8, 1, 528),
    },
}
# fmt: on

FP8_TABLE: Final[dict[str, dict[int, Config]]] = {
    "8.9": {16: Config(1, 64, 32, 8, 1, registers=128), 32: Config(1, 64, 32, 8, 1, registers=128)},
    "9.0": {16: Config(1, 128, 64, 8, 1, registers=128), 32: Config(1, 128, 64, 8, 1, registers=128)},
}
"""The convolution with operands in fp8, by the block of output channels; before 8.9 the matrix units take no fp8."""


def block_of(channels: int, blocks: tuple[int, ...] = CHANNEL_BLOCKS) -> int:
    """The smallest block that holds all channels, or the largest."""
    return next((block for block in blocks if block >= channels), blocks[-1])


def reduction_block(segments: tuple[int, int], limit: int, blocks: tuple[int, ...] = CHANNEL_BLOCKS) -> int:
    """The block of at most ``limit`` that pads the two segments of a reduction least; of equals, the largest."""
    blocks = tuple(block for block in blocks if block <= limit)
    return min(reversed(blocks), key=lambda block: sum(-(-channels // block) * block for channels in segments))
