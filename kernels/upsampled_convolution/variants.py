"""Kernel variants that the upsampled convolution's launchers can request."""

import itertools
from typing import Any, Final, NamedTuple

from triton.compiler import ASTSource

from ..common.compilation import image_kernel_options, image_kernel_source
from ..common.config import CHANNEL_BLOCKS, PRECISIONS, KernelConfig
from . import kernels as module
from .configs import TABLE

KERNELS: Final = ("forward", "grad_input")
TYPES: Final = {"bits_ptr": "*u8", "slope": "fp32"}


class Variant(NamedTuple):
    """One kernel with a configuration of the table."""

    architecture: str
    kernel: str
    """Of :data:`KERNELS`."""
    precision: str
    dtype: str
    factor: int
    block_in: int
    block_out: int
    activated: bool = True
    """Whether the gradient is multiplied by the slope of the saved signs."""
    layout: str = "aligned"
    """"aligned", "odd" or "general", see :func:`~..common.compilation.image_kernel_source`."""

    def name(self) -> str:
        blocks = f"x{self.factor} {self.block_in}->{self.block_out}" + ("" if self.activated else " no signs")
        return f"{self.architecture} {self.kernel} {self.precision} {self.dtype} {blocks} {self.layout}"

    def source(self) -> ASTSource:
        config = self._config()
        constants: dict[str, Any] = {
            "FACTOR": self.factor,
            "BLOCK_H": config.block_h,
            "BLOCK_W": config.block_w,
            "BLOCK_IN": self.block_in,
            "BLOCK_OUT": self.block_out,
            "PRECISION": "tf32" if self.precision == "half" else self.precision,
        }
        if self.kernel == "grad_input":
            constants["ACTIVATED"] = self.activated
        return image_kernel_source(
            getattr(module, f"_{self.kernel}_kernel"),
            constants,
            dtype=self.dtype,
            types=TYPES,
            unit_stride=lambda name: name.endswith("_stride_c"),
            layout=self.layout,
        )

    def options(self) -> dict[str, int]:
        return image_kernel_options(self._config(), self.layout)

    def register_ceiling(self) -> int:
        return self.options()["maxnreg"]

    def _config(self) -> KernelConfig:
        return TABLE[self.architecture][self.kernel, self.precision]


def variants(architecture: str) -> list[Variant]:
    """All variants for an architecture of the table."""
    if architecture not in TABLE:
        return []
    return [
        variant
        for kernel, precision in itertools.product(KERNELS, PRECISIONS)
        for variant in _variants(architecture, kernel, precision)
    ]


def _variants(architecture: str, kernel: str, precision: str) -> list[Variant]:
    """Layouts other than "aligned" only with the largest blocks, and where G has 3 channels on one side."""
    dtypes = ("bf16", "fp16") if precision == "half" else ("fp32",)
    limit = TABLE[architecture][kernel, precision].block_k
    steps = tuple(sorted({min(block, limit) for block in CHANNEL_BLOCKS}))
    sizes = (steps, CHANNEL_BLOCKS) if kernel == "forward" else (CHANNEL_BLOCKS, steps)
    listed = [
        Variant(architecture, kernel, precision, dtypes[0], factor, block_in, block_out)
        for factor, block_in, block_out in itertools.product((1, 2), *sizes)
    ]
    if kernel == "grad_input":  # layers without an activation, and trained ones
        listed += [variant._replace(activated=False) for variant in listed]
    large = [variant for variant in listed if (variant.block_in, variant.block_out) == (sizes[0][-1], sizes[1][-1])]
    narrow = [variant for variant in listed if variant.block_in != variant.block_out and variant.factor == 1]
    activated = [variant for variant in large if variant.activated]
    odd = [variant._replace(layout="odd") for variant in dict.fromkeys([*large, *narrow])]
    general = [variant._replace(layout="general") for variant in activated]
    return [*listed, *odd, *general, *(variant._replace(dtype=dtype) for dtype in dtypes[1:] for variant in activated)]


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
