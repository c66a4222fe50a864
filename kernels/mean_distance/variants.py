"""Kernel variants of the mean distance, as the losses launch them.

Dtypes are equal, or half features against float32 ones; sizes are multiples of 16 or not.
"""

import itertools
from typing import Any, Final, NamedTuple

from triton.compiler import ASTSource

from ..common.compilation import kernel_source
from . import kernels as module

DTYPES: Final = (
    ("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16"), ("bf16", "fp32"), ("fp16", "fp32"), ("fp32", "bf16"),
)  # fmt: skip


class Variant(NamedTuple):
    """One compiled kernel."""

    architecture: str
    kernel: str
    """sums, gradient or mean."""
    kind: str = "l1"
    dtypes: tuple[str, str] = ("fp32", "fp32")
    """Of x and of target."""
    odd: bool = False
    """Whether the number of values is not a multiple of 16."""

    def name(self) -> str:
        if self.kernel == "mean":
            return f"{self.architecture} mean"
        x, target = self.dtypes
        dtypes = x if x == target else f"{x}, target {target}"
        return f"{self.architecture} {self.kernel} {self.kind} {dtypes} {'odd' if self.odd else 'aligned'}"

    def source(self) -> ASTSource:
        function = getattr(module, f"_distance_{self.kernel}_kernel")
        if self.kernel == "mean":
            types = {"partials_ptr": "*fp32", "mean_ptr": "*fp32"}
            return kernel_source(function, types, {"BLOCK": module.PARTIALS_BLOCK}, list(types))
        x, target = ("*" + dtype for dtype in self.dtypes)
        types = {"x_ptr": x, "target_ptr": target}
        types |= {"partials_ptr": "*fp32"} if self.kernel == "sums" else {"grad_ptr": "*fp32", "grad_x_ptr": x}
        constants: dict[str, Any] = {
            "SQUARE": int(self.kind == "l2"),
            "BLOCK": module.CONFIG.block,
            "BLOCKS": module.CONFIG.blocks,
        }
        return kernel_source(function, types, constants, [*types, *([] if self.odd else ["n"])])

    def options(self) -> dict[str, int]:
        return {"num_warps": 4 if self.kernel == "mean" else module.CONFIG.warps}

    def register_ceiling(self) -> int:
        return 64


def variants(architecture: str) -> list[Variant]:
    cases = itertools.product(("sums", "gradient"), ("l1", "l2"), DTYPES, (False, True))
    return [*(Variant(architecture, *case) for case in cases), Variant(architecture, "mean")]


def representatives(architecture: str) -> list[Variant]:
    """Both kernels over half and float32 values, and the kernel that adds."""
    cases = (("sums", "l1", ("bf16", "bf16"), False), ("gradient", "l2", ("bf16", "fp32"), True))
    return [*(Variant(architecture, *case) for case in cases), Variant(architecture, "mean")]
