"""Launch configurations of the degradation block's kernels, per architecture. Plain data: needs no Triton, no GPU.

``TABLE[architecture][kernel, precision]``, as ``python -m benchmarks.tuning.degradation_block`` regenerates it. Channel
blocks follow from the channel counts (:func:`~..common.config.channel_block`), so one entry serves every shape. The
entries were chosen by counts, registers and occupancy (docs/kernels/degradation_block.md), not yet by measurement.
"""

from typing import Final

from ..common.config import KernelConfig

ROWS: Final = "rows"
"""``design`` of the kernels that walk down rows, in half precision; block_h and block_w are a program's strip."""

TILES: Final[dict[str, KernelConfig]] = {
    "forward": KernelConfig(8, 16, 64, 8, 1, registers=128),
    "grad_input": KernelConfig(8, 8, 32, 4, 1, registers=168),
    "grad_weight": KernelConfig(4, 8, 64, 8, 1, 528),
}
"""For calls that the kernels by rows do not cover, where the table's entry has their design."""

ROWS_CANDIDATES: Final[dict[str, dict[str, tuple[KernelConfig, ...]]]] = {
    "8.0": {
        "forward": (
            KernelConfig(32, 32, 64, 4, 3, design=ROWS),
            KernelConfig(32, 32, 64, 4, 2, design=ROWS),
            KernelConfig(64, 32, 64, 4, 3, design=ROWS),
            KernelConfig(32, 32, 64, 8, 3, design=ROWS),
        ),
        "grad_input": (
            KernelConfig(32, 32, 64, 4, 1, design=ROWS),
            KernelConfig(32, 32, 64, 8, 1, design=ROWS),
            KernelConfig(64, 32, 64, 4, 1, design=ROWS),
        ),
        "grad_weight": (
            KernelConfig(16, 32, 32, 8, 2, 864, design=ROWS),
            KernelConfig(16, 32, 32, 8, 3, 864, design=ROWS),
            KernelConfig(16, 32, 16, 4, 2, 1728, design=ROWS),
        ),
    },
    "9.0": {
        "forward": (
            KernelConfig(32, 128, 64, 8, 2, design=ROWS),
            KernelConfig(64, 128, 64, 8, 2, design=ROWS),
            KernelConfig(32, 64, 64, 4, 3, design=ROWS),
            KernelConfig(64, 64, 64, 4, 3, design=ROWS),
            KernelConfig(32, 64, 64, 4, 2, design=ROWS),
        ),
        "grad_input": (
            KernelConfig(32, 128, 64, 8, 2, design=ROWS),
            KernelConfig(32, 128, 64, 8, 1, design=ROWS),
            KernelConfig(64, 128, 64, 8, 2, design=ROWS),
            KernelConfig(32, 64, 64, 8, 2, design=ROWS),
            KernelConfig(32, 64, 64, 4, 2, design=ROWS),
        ),
        "grad_weight": (
            KernelConfig(16, 64, 64, 8, 2, 768, design=ROWS),
            KernelConfig(16, 64, 64, 8, 3, 768, design=ROWS),
            KernelConfig(16, 32, 64, 8, 3, 768, design=ROWS),
            KernelConfig(16, 32, 32, 4, 2, 1536, design=ROWS),
        ),
    },
}
"""Candidates for ``TABLE[architecture][kernel, "half"]``, not measured yet: ``benchmarks.gpu_check --part tune``."""

# fmt: off
TABLE: Final[dict[str, dict[tuple[str, str], KernelConfig]]] = {
    "8.0": {
        ("forward", "half"): KernelConfig(8, 16, 64, 8, 1, registers=128),
        ("forward", "tf32"): KernelConfig(8, 8, 16, 8, 1),
        ("forward", "tf32x3"): KernelConfig(8, 8, 16, 4, 1),
        ("grad_input", "half"): KernelConfig(8, 8, 32, 4, 1, registers=168),
        ("grad_input", "tf32"): KernelConfig(8, 8, 32, 8, 1),
        ("grad_input", "tf32x3"): KernelConfig(8, 8, 16, 8, 1),
        ("grad_weight", "half"): KernelConfig(4, 8, 64, 8, 1, 432),
        ("grad_weight", "tf32"): KernelConfig(4, 8, 64, 8, 1, 432),
        ("grad_weight", "tf32x3"): KernelConfig(4, 4, 32, 4, 1, 432),
    },
    "9.0": {
        ("forward", "half"): KernelConfig(8, 16, 64, 8, 1, registers=128),
        ("forward", "tf32"): KernelConfig(8, 8, 32, 8, 1),
        ("forward", "tf32x3"): KernelConfig(8, 8, 16, 8, 1),
        ("grad_input", "half"): KernelConfig(8, 16, 32, 8, 1, registers=128),
        ("grad_input", "tf32"): KernelConfig(8, 8, 32, 8, 1),
        ("grad_input", "tf32x3"): KernelConfig(8, 8, 16, 8, 1),
        ("grad_weight", "half"): KernelConfig(4, 16, 64, 8, 1, 528, registers=128),
        ("grad_weight", "tf32"): KernelConfig(4, 8, 64, 8, 1, 528),
        ("grad_weight", "tf32x3"): KernelConfig(4, 4, 32, 4, 1, 528),
    },
}
# fmt: on
