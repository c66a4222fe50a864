"""Every launchable configuration of the dense block's Triton kernels compiles for sm_80 and sm_90, and fits.

Registers, spills and shared memory are compared with a committed table, ``residual_dense_block_resources.json``, which
``python tests/test_kernels_compile_residual_dense_block.py`` writes anew.
"""

import itertools
from typing import Any, NamedTuple

import kernel_resources
import pytest
from kernel_resources import Resources
from triton.compiler import ASTSource

from andfast.kernels.common.config import PRECISIONS, KernelConfig
from andfast.kernels.residual_dense_block.configs import CHANNEL_BLOCKS, OUTPUT_BLOCKS, TABLE
from andfast.kernels.residual_dense_block.convolution import _convolution_kernel
from andfast.kernels.residual_dense_block.grad_weight import _grad_weight_kernel

KERNELS = [
    *(f"convolution_{block}" for block in OUTPUT_BLOCKS),
    *(f"grad_weight_{block}" for block in CHANNEL_BLOCKS),
]
# channels_last in multiples of 16; x channels_last of any number of channels; a result of any strides, too
LAYOUTS = ("aligned", "odd", "general")
TYPES = {"bits_ptr": "*u8", "gw_ptr": "*fp32", "slope": "fp32", "a_scale": "fp32", "out_scale": "fp32"}

pytestmark = pytest.mark.usefixtures("fresh_triton_cache")


class Variant(NamedTuple):
    """One compiled kernel: a configuration of the table, at a channel block and a way of being called."""

    architecture: str
    kernel: str
    precision: str
    dtype: str
    block: int  # channels a step of a convolution's reduction; channels of a weight gradient's block, in and out
    layout: str  # of LAYOUTS

    def name(self) -> str:
        return f"{self.architecture} {self.kernel} {self.precision} {self.dtype} {self.block} {self.layout}"

    def config(self) -> KernelConfig:
        return TABLE[self.architecture][self.kernel, self.precision]


def variants(architecture: str, kernel: str, precision: str) -> list[Variant]:
    """All that the launchers can ask for, in every layout where the blocks are largest."""
    limit = TABLE[architecture][kernel, precision].block_k
    dtypes = ("bf16", "fp16") if precision == "half" else ("fp32",)
    of_weights = kernel.startswith("grad_weight")
    blocks = [block for block in CHANNEL_BLOCKS if (block == limit if of_weights else block <= limit)]
    found = [Variant(architecture, kernel, precision, dtypes[0], block, "aligned") for block in blocks]
    # A convolution whose addresses are not simple takes the smallest blocks.
    if of_weights:
        found.append(found[0]._replace(layout="odd"))
    elif kernel == f"convolution_{OUTPUT_BLOCKS[0]}":
        found += [found[0]._replace(layout=layout) for layout in LAYOUTS[1:]]
    if len(dtypes) > 1:  # the same instructions but for the type
        found.append(found[len(blocks) - 1]._replace(dtype=dtypes[1]))
    return found


def source(variant: Variant) -> ASTSource:
    """The kernel with the signature that a launch of this kind gets from Triton's own specialisation."""
    config = variant.config()
    constants: dict[str, Any] = {"PRECISION": "tf32" if variant.precision == "half" else variant.precision}
    if variant.kernel.startswith("grad_weight"):
        function = _grad_weight_kernel
        constants.update(
            BLOCK_H=config.block_h, BLOCK_W=config.block_w, BLOCK_IN=variant.block, BLOCK_OUT=variant.block
        )
    else:
        function = _convolution_kernel
        block_out = int(variant.kernel.split("_")[1])
        constants.update(PIXELS=config.block_h * config.block_w, BLOCK_K=variant.block, BLOCK_OUT=block_out)
    return kernel_resources.launched_source(
        function,
        constants,
        dtype=variant.dtype,
        types=TYPES,
        unit=lambda name: name == "out_stride_c",
        layout=variant.layout,
    )


def resources(variant: Variant) -> Resources:
    """Compile one variant; what one program takes of a multiprocessor."""
    options = kernel_resources.launch_options(variant.config(), variant.layout)
    return kernel_resources.resources(source(variant), variant.architecture, **options)


RESOURCES = kernel_resources.Table(
    "residual_dense_block",
    {"-".join(group): variants(*group) for group in itertools.product(TABLE, KERNELS, PRECISIONS)},
    resources,
)


@pytest.mark.slow
@pytest.mark.parametrize("group", RESOURCES.groups)
def test_compiles_and_fits(group: str) -> None:
    RESOURCES.compile_and_check(group)


def test_the_table_holds_every_launchable_kernel_and_no_other() -> None:
    RESOURCES.check_rows()


if __name__ == "__main__":
    RESOURCES.write()
