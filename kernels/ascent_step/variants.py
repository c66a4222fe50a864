"""Kernel variants of the ascent step.

Dtypes may be mixed freely, so these are the launches of an ascent through F (11 weights, 10 noises, 10 slopes), a
gradient of another dtype, and the most tensors per launch.
"""

from typing import Any, NamedTuple

from triton.compiler import ASTSource

from ..common.compilation import kernel_source
from . import kernels as module
from .batches import MAX_TENSORS


class Variant(NamedTuple):
    """One compiled kernel."""

    architecture: str
    kernel: str
    """sums, coefficients or update."""
    dtypes: tuple[str, str] = ("fp32", "fp32")
    """Of values, centers and outputs; of gradients."""
    tensors: int = 10
    at_center: bool = False
    expanded: bool = False
    """As in :class:`~.batches.Batch`, like ``at_center``."""
    layout: str = "aligned"
    """"aligned", "odd" (values per image are not a multiple of 16), "ones" (one value per image: slopes)."""
    joint: bool = False
    """Of the coefficients: one ball for all groups."""

    def name(self) -> str:
        if self.kernel == "coefficients":
            return f"{self.architecture} coefficients {'joint' if self.joint else 'three balls'}"
        center = ("expanded" if self.expanded else "full") + " centers" + (", first step" if self.at_center else "")
        value, gradient = self.dtypes
        dtypes = value if value == gradient else f"{value}, gradients {gradient}"
        return f"{self.architecture} {self.kernel} {self.tensors} {dtypes} {self.layout}, {center}"

    def source(self) -> ASTSource:
        function = getattr(module, f"_{self.kernel}_kernel")
        if self.kernel == "coefficients":
            return kernel_source(
                function,
                {"partials_ptr": "*fp32", "coefficients_ptr": "*fp32", "radii": ("fp32",) * 3, "step_size": "fp32"},
                {"GROUPS": 3, "JOINT": self.joint, "BLOCK": module.PARTIALS_BLOCK},
                ["partials_ptr", "coefficients_ptr"],
            )
        value, gradient = ("*" + dtype for dtype in self.dtypes)
        types: dict[str, Any] = {
            "values": (value,) * self.tensors,
            "gradients": (gradient,) * self.tensors,
            "centers": (value,) * self.tensors,
            "sizes": ("i32",) * self.tensors,
        }
        pointers = ["values", "gradients", "centers"]
        if self.kernel == "update":
            types |= {"outs": (value,) * self.tensors, "coefficients_ptr": "*fp32"}
            pointers += ["outs"]
        else:
            types["partials_ptr"] = "*fp32"
        constants: dict[str, Any] = {
            "TENSORS": self.tensors,
            "AT_CENTER": int(self.at_center),
            "EXPANDED": int(self.expanded),
            "BLOCK": module.CONFIG.block,
            "BLOCKS": module.CONFIG.blocks,
        }
        divisible = [name for name in types if name.endswith("_ptr")] + pointers  # torch's allocations are aligned
        if self.layout == "ones":
            constants["sizes"] = (1,) * self.tensors
        if self.layout == "aligned":
            divisible.append("sizes")
        return kernel_source(function, types, constants, divisible)

    def options(self) -> dict[str, int]:
        return {"num_warps": 4 if self.kernel == "coefficients" else module.CONFIG.warps}

    def register_ceiling(self) -> int:
        return {"sums": 128, "coefficients": 64, "update": 80}[self.kernel]


def variants(architecture: str) -> list[Variant]:
    noises = [
        Variant(architecture, "", (dtype, dtype), at_center=first, expanded=True)
        for dtype in ("fp32", "bf16", "fp16")
        for first in (True, False)
    ]
    weights = [Variant(architecture, "", tensors=11, at_center=first) for first in (True, False)]
    slopes = [Variant(architecture, "", at_center=first, layout="ones") for first in (True, False)]
    rare = [
        Variant(architecture, "", ("fp32", "bf16"), expanded=True),
        Variant(architecture, "", layout="odd"),
        Variant(architecture, "", ("bf16", "bf16"), layout="odd"),
        Variant(architecture, "", tensors=MAX_TENSORS),
        Variant(architecture, "", ("bf16", "fp32"), tensors=MAX_TENSORS),
    ]
    batches = [*noises, *weights, *slopes, *rare]
    return [
        *(variant._replace(kernel=kernel) for kernel in ("sums", "update") for variant in batches),
        *(Variant(architecture, "coefficients", joint=joint) for joint in (False, True)),
    ]


def representatives(architecture: str) -> list[Variant]:
    """The variants that use the most registers."""
    batches = [
        Variant(architecture, "", expanded=True),
        Variant(architecture, "", layout="odd"),
        Variant(architecture, "", ("bf16", "fp32"), tensors=MAX_TENSORS),
    ]
    return [
        *(variant._replace(kernel=kernel) for kernel in ("sums", "update") for variant in batches),
        Variant(architecture, "coefficients", joint=True),
    ]
