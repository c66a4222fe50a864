"""Kernel variants that the residual dense block's launchers can request."""

from dataclasses import dataclass, replace
from typing import Any, Final

from triton.compiler import ASTSource

from ..common.compilation import image_kernel_source
from ..common.variants import DTYPES, TableVariant, table_variants
from .configs import CHANNEL_BLOCKS, OUTPUT_BLOCKS, TABLE
from .convolution import _convolution_kernel
from .grad_weight import _dense_block_grad_weight_kernel

KERNELS: Final = (
    *(f"convolution_{block}" for block in OUTPUT_BLOCKS),
    *(f"grad_weight_{block}" for block in CHANNEL_BLOCKS),
)
TYPES: Final = {"bits_ptr": "*u8", "gw_ptr": "*fp32", "slope": "fp32", "a_scale": "fp32", "out_scale": "fp32"}


@dataclass(frozen=True)
class Variant(TableVariant):
    """One of :data:`KERNELS` with a configuration of the table."""

    table = TABLE

    block: int
    """Channels per step of a convolution's reduction; input and output channels of a weight gradient's block."""

    def name(self) -> str:
        return f"{self.architecture} {self.kernel} {self.precision} {self.dtype} {self.block} {self.layout}"

    def source(self) -> ASTSource:
        config = self.config
        constants: dict[str, Any] = {"PRECISION": self.dot_precision}
        if self.kernel.startswith("grad_weight"):
            function = _dense_block_grad_weight_kernel
            constants.update(BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=self.block, BLOCK_OUT=self.block)
        else:
            function = _convolution_kernel
            block_out = int(self.kernel.split("_")[1])
            constants.update(PIXELS=config.block_h * config.block_w, BLOCK_K=self.block, BLOCK_OUT=block_out)
        return image_kernel_source(
            function,
            constants,
            dtype=self.dtype,
            types=TYPES,
            unit_stride=lambda name: name == "out_stride_c",
            layout=self.layout,
        )


def variants(architecture: str) -> list[Variant]:
    """All variants for an architecture of the table."""
    return table_variants(TABLE, architecture, KERNELS, _variants)


def _variants(architecture: str, kernel: str, precision: str) -> list[Variant]:
    limit = TABLE[architecture][kernel, precision].block_k
    dtypes = DTYPES[precision]
    of_weights = kernel.startswith("grad_weight")
    blocks = [block for block in CHANNEL_BLOCKS if (block == limit if of_weights else block <= limit)]
    aligned = [Variant(architecture, kernel, precision, dtypes[0], block) for block in blocks]
    # A convolution of other layouts uses the smallest blocks.
    layouts: tuple[str, ...] = ()
    if of_weights:
        layouts = ("odd",)
    elif kernel == f"convolution_{OUTPUT_BLOCKS[0]}":
        layouts = ("odd", "general")
    rare = [replace(aligned[0], layout=layout) for layout in layouts]
    return [*aligned, *rare, *(replace(aligned[-1], dtype=dtype) for dtype in dtypes[1:])]


def representatives(architecture: str) -> list[Variant]:
    """The variants that use the most resources: largest blocks, and in half precision also other layouts."""
    largest = {}
    for variant in variants(architecture):
        if variant.dtype != "fp16" and (variant.precision == "half" or variant.layout == "aligned"):
            largest[variant.kernel, variant.precision, variant.layout] = variant
    return list(largest.values())
