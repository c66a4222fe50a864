"""Kernel variants that the fp8 residual dense block's launchers can request."""

import itertools
from typing import Any, Final, NamedTuple

from triton.compiler import ASTSource

from ..common.compilation import image_kernel_options, image_kernel_source
from .configs import OUTPUT_BLOCKS, REDUCTION_BLOCKS, TABLE
from .kernels import QUANTIZED_PIXELS, _fp8_convolution_kernel, _quantize_kernel

KINDS: Final = ("activate", "gradient", "residual", "residual_gradient")
"""By the kernel's KIND; the last convolution of the backward pass has operands of another fp8 type."""


class Variant(NamedTuple):
    """One kernel with a configuration of the table."""

    architecture: str
    kind: str
    """Of :data:`KINDS`, or "quantize"."""
    dtype: str
    """Of x and of the result."""
    block_out: int
    block_k: int
    layout: str = "aligned"
    """"aligned", "odd" or "general", see :func:`~..common.compilation.image_kernel_source`."""

    def name(self) -> str:
        return f"{self.architecture} {self.kind} {self.dtype} {self.block_out} {self.block_k} {self.layout}"

    def source(self) -> ASTSource:
        wide, e4m3, e5m2 = "*" + self.dtype, "*fp8e4nv", "*fp8e5"
        if self.kind == "quantize":
            function: Any = _quantize_kernel
            types = {"x_ptr": wide, "out_ptr": e4m3}
            constants: dict[str, Any] = {"PIXELS": QUANTIZED_PIXELS, "BLOCK_C": self.block_k}
        else:
            function = _fp8_convolution_kernel
            config = TABLE[self.architecture][self.block_out]
            operand = e5m2 if self.kind.endswith("gradient") else e4m3
            last = self.kind.startswith("residual")
            types = {"a_ptr": operand, "b_ptr": operand, "w_ptr": e4m3, "w_scale_ptr": "*fp32", "bias_ptr": "*fp32"}
            types |= {"bits_ptr": e4m3 if last else "*u8", "slope": "fp32"}
            types |= dict.fromkeys(("residual_ptr", "out_ptr"), wide if last else e4m3)
            constants = {"KIND": min(KINDS.index(self.kind), 2), "PIXELS": config.block_h * config.block_w}
            constants |= {"BLOCK_K": self.block_k, "BLOCK_OUT": self.block_out}
        return image_kernel_source(
            function,
            constants,
            dtype=self.dtype,
            types=types,
            unit_stride=lambda name: name == "out_stride_c",
            layout=self.layout,
        )

    def options(self) -> dict[str, int]:
        if self.kind == "quantize":
            return {"num_warps": 4}
        return image_kernel_options(TABLE[self.architecture][self.block_out], self.layout)

    def register_ceiling(self) -> int:
        return 64 if self.kind == "quantize" else self.options()["maxnreg"]


def variants(architecture: str) -> list[Variant]:
    """All variants for an architecture of the table; none where the matrix units take no fp8."""
    if architecture not in TABLE:
        return []
    largest = TABLE[architecture][OUTPUT_BLOCKS[-1]].block_k
    blocks = [block for block in REDUCTION_BLOCKS if block <= largest]
    listed = []
    for kind in KINDS:
        last = kind.startswith("residual")
        aligned = [
            Variant(architecture, kind, "bf16", *pair) for pair in itertools.product(OUTPUT_BLOCKS, blocks)
        ]  # fmt: skip
        # Other layouts use the smallest blocks.
        rare = [aligned[0]._replace(layout=layout) for layout in (("odd", "general") if last else ("odd",))]
        listed += [*aligned, *rare, *([aligned[0]._replace(dtype="fp16")] if last else [])]
    return [*listed, *(Variant(architecture, "quantize", dtype, 64, 64) for dtype in ("bf16", "fp16"))]


def representatives(architecture: str) -> list[Variant]:
    """For each kind the variants that use the most resources: largest blocks, all kinds of layout."""
    largest = {}
    for variant in variants(architecture):
        last = variant.kind.startswith("residual")
        if variant.dtype != "fp16" and not (variant.layout == "odd" and last):
            largest[variant.kind, variant.layout] = variant
    return list(largest.values())
