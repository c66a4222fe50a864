"""Launch configurations of the fp8 residual dense block, per architecture. Plain data: needs no Triton, no GPU."""

from typing import Final

from ..common.config import KernelConfig

CHANNEL_BLOCKS: Final = (16, 32, 64)
"""Channel block sizes of the quantization."""

REDUCTION_BLOCKS: Final = (32, 64)
"""Block sizes of the reduction; tl.dot needs at least 32 with fp8 operands."""

OUTPUT_BLOCKS: Final = (16, 32)
"""Block sizes of the convolution's output: a program keeps three sums, one per kernel column; 64 would not fit."""

# fmt: off
TABLE: Final[dict[str, dict[int, KernelConfig]]] = {
    "8.9": {16: KernelConfig(1, 64, 32, 8, 1, registers=128), 32: KernelConfig(1, 64, 32, 8, 1, registers=128)},
    "9.0": {16: KernelConfig(1, 128, 64, 8, 1, registers=128), 32: KernelConfig(1, 128, 64, 8, 1, registers=128)},
}
"""The fp8 convolution, by the block of output channels; needs compute capability 8.9."""
# fmt: on
