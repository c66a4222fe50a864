"""Launch configurations of the residual dense block's kernels, per architecture. Plain data: needs no Triton, no GPU.

``TABLE[architecture][kernel, precision]``; kernel names end in the block of output channels. A convolution's tile is
block_h * block_w consecutive pixels. Chosen by counts, registers and occupancy (docs/kernels/residual_dense_block.md);
test_residual_dense_block_compile.py checks every entry for spills.
"""

from typing import Final

from ..common.config import KernelConfig

CHANNEL_BLOCKS: Final = (16, 32, 64)
"""Channel block sizes; tl.dot needs at least 16."""

OUTPUT_BLOCKS: Final = (16, 32)
"""Output channel blocks of a convolution: a program keeps three sums, one per kernel column; 64 would not fit."""

# fmt: off
TABLE: Final[dict[str, dict[tuple[str, str], KernelConfig]]] = {
    "8.0": {
        ("convolution_16", "half"): KernelConfig(1, 64, 32, 8, 1, registers=128),
        ("convolution_16", "tf32"): KernelConfig(1, 64, 16, 8, 1, registers=128),
        ("convolution_16", "tf32x3"): KernelConfig(1, 64, 16, 8, 1),
        ("convolution_32", "half"): KernelConfig(1, 64, 32, 8, 1, registers=128),
        ("convolution_32", "tf32"): KernelConfig(1, 64, 16, 8, 1, registers=128),
        ("convolution_32", "tf32x3"): KernelConfig(1, 64, 16, 8, 1),
        ("grad_weight_16", "half"): KernelConfig(4, 8, 16, 4, 1, 432),
        ("grad_weight_16", "tf32"): KernelConfig(4, 8, 16, 4, 1, 432),
        ("grad_weight_16", "tf32x3"): KernelConfig(4, 8, 16, 4, 1, 432),
        ("grad_weight_32", "half"): KernelConfig(4, 8, 32, 4, 1, 432, registers=168),
        ("grad_weight_32", "tf32"): KernelConfig(4, 8, 32, 4, 1, 432, registers=168),
        ("grad_weight_32", "tf32x3"): KernelConfig(4, 8, 32, 4, 1, 432, registers=168),
        ("grad_weight_64", "half"): KernelConfig(4, 8, 64, 8, 1, 432),
        ("grad_weight_64", "tf32"): KernelConfig(4, 8, 64, 8, 1, 432),
        ("grad_weight_64", "tf32x3"): KernelConfig(4, 4, 64, 8, 1, 432),
    },
    "9.0": {
        ("convolution_16", "half"): KernelConfig(1, 128, 64, 8, 1, registers=128),
        ("convolution_16", "tf32"): KernelConfig(1, 128, 16, 8, 1, registers=128),
        ("convolution_16", "tf32x3"): KernelConfig(1, 64, 16, 8, 1, registers=128),
        ("convolution_32", "half"): KernelConfig(1, 128, 64, 8, 1, registers=128),
        ("convolution_32", "tf32"): KernelConfig(1, 128, 16, 8, 1, registers=128),
        ("convolution_32", "tf32x3"): KernelConfig(1, 64, 16, 8, 1, registers=128),
        ("grad_weight_16", "half"): KernelConfig(4, 8, 16, 4, 1, 528),
        ("grad_weight_16", "tf32"): KernelConfig(4, 8, 16, 4, 1, 528),
        ("grad_weight_16", "tf32x3"): KernelConfig(4, 8, 16, 4, 1, 528),
        ("grad_weight_32", "half"): KernelConfig(4, 8, 32, 4, 1, 528, registers=168),
        ("grad_weight_32", "tf32"): KernelConfig(4, 8, 32, 4, 1, 528, registers=168),
        ("grad_weight_32", "tf32x3"): KernelConfig(4, 8, 32, 4, 1, 528, registers=168),
        ("grad_weight_64", "half"): KernelConfig(4, 16, 64, 8, 1, 528, registers=80),
        ("grad_weight_64", "tf32"): KernelConfig(4, 8, 64, 8, 1, 528, registers=128),
        ("grad_weight_64", "tf32x3"): KernelConfig(4, 4, 64, 8, 1, 528),
    },
}
# fmt: on
