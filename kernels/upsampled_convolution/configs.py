"""Launch configurations of the upsampled convolution's kernels, per architecture. Plain data: needs no Triton, no GPU.

``TABLE[architecture][kernel, precision]``. A tile's rows and columns are those of the small map. Chosen by counts,
registers and occupancy (docs/kernels/upsampled_convolution.md); test_upsampled_convolution_compile.py checks every
entry for spills.
"""

from typing import Final

from ..common.config import KernelConfig

# fmt: off
TABLE: Final[dict[str, dict[tuple[str, str], KernelConfig]]] = {
    "8.0": {
        ("forward", "half"): KernelConfig(8, 16, 64, 8, 1, registers=128),
        ("forward", "tf32"): KernelConfig(8, 8, 16, 8, 1),
        ("forward", "tf32x3"): KernelConfig(8, 8, 16, 8, 1),
        ("grad_input", "half"): KernelConfig(8, 8, 32, 4, 1, registers=168),
        ("grad_input", "tf32"): KernelConfig(8, 8, 32, 8, 1),
        ("grad_input", "tf32x3"): KernelConfig(8, 8, 16, 8, 1),
    },
    "9.0": {
        ("forward", "half"): KernelConfig(8, 16, 64, 8, 1, registers=128),
        ("forward", "tf32"): KernelConfig(8, 8, 32, 8, 1),
        ("forward", "tf32x3"): KernelConfig(8, 8, 16, 8, 1),
        ("grad_input", "half"): KernelConfig(8, 16, 32, 8, 1, registers=128),
        ("grad_input", "tf32"): KernelConfig(8, 8, 32, 8, 1),
        ("grad_input", "tf32x3"): KernelConfig(8, 8, 16, 8, 1),
    },
}
# fmt: on
