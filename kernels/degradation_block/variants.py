"""Kernel variants that the degradation block's launchers can request."""

import itertools
from importlib import import_module
from typing import Any, Final, NamedTuple

from triton.compiler import ASTSource

from ..common.compilation import image_kernel_options, image_kernel_source
from ..common.config import CHANNEL_BLOCKS, PRECISIONS, KernelConfig
from .configs import ROWS, TABLE, TILES

KERNELS: Final = ("forward", "grad_input", "grad_weight")
TYPES: Final = {"bits_ptr": "*u8", "slope_ptr": "*fp32", "gw_ptr": "*fp32", "gslope_ptr": "*fp32"}


class Variant(NamedTuple):
    """One kernel with a configuration of the table."""

    architecture: str
    kernel: str
    """Of :data:`KERNELS`."""
    precision: str
    dtype: str
    block_in: int
    block_out: int
    layout: str = "aligned"
    """"aligned", "odd" or "general", see :func:`~..common.compilation.image_kernel_source`."""
    weight: bool = True
    """WANT_WEIGHT of the weight gradient; without it only the slope's gradient is computed."""
    config: KernelConfig | None = None
    """In place of the table's."""

    def name(self) -> str:
        blocks = f"{self.block_in}->{self.block_out}" + ("" if self.weight else " slope only")
        design = self._config().design
        kernel = f"{self.kernel} {design}" if design else self.kernel
        return f"{self.architecture} {kernel} {self.precision} {self.dtype} {blocks} {self.layout}"

    def source(self) -> ASTSource:
        config = self._config()
        name = f"{self.kernel}_{config.design}" if config.design else self.kernel
        module = import_module(f".{name}", __package__)
        constants: dict[str, Any] = {
            "BLOCK_W": config.block_w,
            "BLOCK_IN": self.block_in,
            "BLOCK_OUT": self.block_out,
            "PRECISION": "tf32" if self.precision == "half" else self.precision,
        }
        if config.design == ROWS:
            constants["STAGES"] = config.stages
        elif self.kernel == "grad_weight":
            constants["WANT_WEIGHT"] = self.weight
        if name != "grad_weight_rows":
            constants["BLOCK_H"] = config.block_h
        return image_kernel_source(
            getattr(module, f"_{name}_kernel"),
            constants,
            dtype=self.dtype,
            types=TYPES,
            unit_stride=lambda name: (
                name == "slope_stride_n" or (name.endswith("_stride_c") and name != "slope_stride_c")
            ),
            layout=self.layout,
        )

    def options(self) -> dict[str, int]:
        return image_kernel_options(self._config(), self.layout)

    def register_ceiling(self) -> int:
        return self.options()["maxnreg"]

    def _config(self) -> KernelConfig:
        return self.config or TABLE[self.architecture][self.kernel, self.precision]


def variants(architecture: str) -> list[Variant]:
    """All variants for an architecture of the table."""
    if architecture not in TABLE:
        return []
    return [
        variant
        for kernel, precision in itertools.product(KERNELS, PRECISIONS)
        for variant in variants_of(architecture, kernel, precision, TABLE[architecture][kernel, precision])
    ]


def variants_of(architecture: str, kernel: str, precision: str, config: KernelConfig) -> list[Variant]:
    """Variants of one kernel and configuration; layouts other than "aligned" only where F launches them."""
    dtypes = ("bf16", "fp16") if precision == "half" else ("fp32",)
    steps = sorted({min(block, config.block_k) for block in CHANNEL_BLOCKS})
    if kernel == "forward":
        blocks = list(itertools.product(steps, CHANNEL_BLOCKS))
    elif kernel == "grad_input":
        blocks = list(itertools.product(CHANNEL_BLOCKS, steps))
    else:  # by rows a program has all output channels
        blocks = list(itertools.product(steps, CHANNEL_BLOCKS if config.design == ROWS else steps))
    aligned = [Variant(architecture, kernel, precision, dtypes[0], *block, config=config) for block in blocks]
    largest = aligned[-1]
    if kernel == "grad_weight" and config.design != ROWS:
        aligned += [largest._replace(block_in=CHANNEL_BLOCKS[0], block_out=step, weight=False) for step in steps]
    # The first and last layer of F have 3 channels on one side.
    odd = [
        variant._replace(layout="odd")
        for variant in aligned
        if variant is largest or variant.block_in != variant.block_out
    ]
    if config.design == ROWS:  # other layouts, and what the design does not cover, are launched as tiles
        rows = [*aligned, *(largest._replace(dtype=dtype) for dtype in dtypes[1:])]
        return [*rows, *variants_of(architecture, kernel, precision, TILES[kernel])]
    layouts = [*aligned, *odd, largest._replace(layout="general")]
    return [*layouts, *(largest._replace(dtype=dtype) for dtype in dtypes[1:])]


def representatives(architecture: str) -> list[Variant]:
    """The variants that use the most resources: largest blocks; in half precision also other layouts and slope only."""
    largest = {}
    for variant in variants(architecture):
        special = variant.layout != "aligned" or not variant.weight
        if variant.dtype != "fp16" and variant.layout != "odd" and (variant.precision == "half" or not special):
            largest[variant.kernel, variant.precision, variant.layout, variant.weight] = variant
    return list(largest.values())
