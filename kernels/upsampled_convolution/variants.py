"""Kernel variants that the upsampled convolution's launchers can request."""

import itertools
from dataclasses import dataclass, replace
from typing import Any, Final

from triton.compiler import ASTSource

from ..common.compilation import image_kernel_source
from ..common.config import CHANNEL_BLOCKS
from ..common.variants import DTYPES, TableVariant, table_variants
from . import kernels as module
from .configs import TABLE

KERNELS: Final = ("forward", "grad_input")
TYPES: Final = {"bits_ptr": "*u8", "slope": "fp32"}


@dataclass(frozen=True)
class Variant(TableVariant):
    """One of :data:`KERNELS` with a configuration of the table."""

    table = TABLE

    factor: int
    block_in: int
    block_out: int
    activated: bool = True
    """Whether the gradient is multiplied by the slope of the saved signs."""

    def name(self) -> str:
        blocks = f"x{self.factor} {self.block_in}->{self.block_out}" + ("" if self.activated else " no signs")
        return f"{self.architecture} {self.kernel} {self.precision} {self.dtype} {blocks} {self.layout}"

    def source(self) -> ASTSource:
        config = self.config
        constants: dict[str, Any] = {
            "FACTOR": self.factor,
            "BLOCK_H": config.block_h,
            "BLOCK_W": config.block_w,
            "BLOCK_IN": self.block_in,
            "BLOCK_OUT": self.block_out,
            "PRECISION": self.dot_precision,
        }
        if self.kernel == "grad_input":
            constants["ACTIVATED"] = self.activated
        return image_kernel_source(
            getattr(module, f"_upsampled_{self.kernel}_kernel"),
            constants,
            dtype=self.dtype,
            types=TYPES,
            unit_stride=lambda name: name.endswith("_stride_c"),
            layout=self.layout,
        )


def variants(architecture: str) -> list[Variant]:
    """All variants for an architecture of the table."""
    return table_variants(TABLE, architecture, KERNELS, _variants)


def _variants(architecture: str, kernel: str, precision: str) -> list[Variant]:
    """Layouts other than "aligned" only with the largest blocks, and where G has 3 channels on one side."""
    dtypes = DTYPES[precision]
    limit = TABLE[architecture][kernel, precision].block_k
    steps = tuple(sorted({min(block, limit) for block in CHANNEL_BLOCKS}))
    sizes = (steps, CHANNEL_BLOCKS) if kernel == "forward" else (CHANNEL_BLOCKS, steps)
    listed = [
        Variant(architecture, kernel, precision, dtypes[0], factor, block_in, block_out)
        for factor, block_in, block_out in itertools.product((1, 2), *sizes)
    ]
    if kernel == "grad_input":  # layers without an activation, and trained ones
        listed += [replace(variant, activated=False) for variant in listed]
    large = [variant for variant in listed if (variant.block_in, variant.block_out) == (sizes[0][-1], sizes[1][-1])]
    narrow = [variant for variant in listed if variant.block_in != variant.block_out and variant.factor == 1]
    activated = [variant for variant in large if variant.activated]
    odd = [replace(variant, layout="odd") for variant in dict.fromkeys([*large, *narrow])]
    general = [replace(variant, layout="general") for variant in activated]
    return [*listed, *odd, *general, *(replace(variant, dtype=dtype) for dtype in dtypes[1:] for variant in activated)]


def representatives(architecture: str) -> list[Variant]:
    """The variants that use the most resources: largest blocks, and in half precision also any strides."""
    return [
        variant
        for variant in variants(architecture)
        if variant.factor == 2
        and variant.activated
        and variant.dtype != "fp16"
        and (variant.layout == "aligned" or (variant.layout == "general" and variant.precision == "half"))
        and max(variant.block_in, variant.block_out) == CHANNEL_BLOCKS[-1]
        and min(variant.block_in, variant.block_out)
        == min(CHANNEL_BLOCKS[-1], TABLE[architecture][variant.kernel, variant.precision].block_k)
    ]
