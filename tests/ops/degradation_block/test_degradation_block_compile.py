"""Every launchable configuration of the Triton kernels compiles for sm_80 and sm_90, without a GPU, and fits.

Registers, spills and shared memory are compared with a committed table,
``kernels/degradation_block_resources.json``, which ``python tests/test_kernels_compile_degradation_block.py`` writes
anew.
"""

import itertools
from importlib import import_module
from typing import Any, NamedTuple

import kernel_resources
import pytest
from kernel_resources import Resources
from triton.compiler import ASTSource

from andfast.kernels.common.config import CHANNEL_BLOCKS, PRECISIONS, KernelConfig
from andfast.kernels.degradation_block.configs import TABLE

KERNELS = ("forward", "grad_input", "grad_weight")
LAYOUTS = ("aligned", "odd", "general")  # channels_last in multiples of 16; of any number of channels; any strides
POINTERS = {"bits_ptr": "*u8", "slope_ptr": "*fp32", "gw_ptr": "*fp32", "gslope_ptr": "*fp32"}

pytestmark = pytest.mark.usefixtures("fresh_triton_cache")


class Variant(NamedTuple):
    """One compiled kernel: a configuration of the table, at channel blocks and a way of being called."""

    architecture: str
    kernel: str
    precision: str
    dtype: str
    block_in: int
    block_out: int
    weight: bool  # WANT_WEIGHT, of the weight gradient
    layout: str  # of LAYOUTS

    def name(self) -> str:
        blocks = f"{self.block_in}->{self.block_out}" + ("" if self.weight else " slope only")
        return f"{self.architecture} {self.kernel} {self.precision} {self.dtype} {blocks} {self.layout}"


def variants(architecture: str, kernel: str, precision: str) -> list[Variant]:
    """All that the launchers can ask for; blocks as they choose them, both kinds of signature where it matters most."""
    config = TABLE[architecture][kernel, precision]
    dtypes = ("bf16", "fp16") if precision == "half" else ("fp32",)
    steps = sorted({min(block, config.block_k) for block in CHANNEL_BLOCKS})
    blocks: list[tuple[int, int, bool]]
    if kernel == "forward":
        blocks = [(step, out, True) for step, out in itertools.product(steps, CHANNEL_BLOCKS)]
    elif kernel == "grad_input":
        blocks = [(into, step, True) for into, step in itertools.product(CHANNEL_BLOCKS, steps)]
    else:
        blocks = [(into, out, True) for into, out in itertools.product(steps, steps)]
        blocks += [(CHANNEL_BLOCKS[0], out, False) for out in steps]
    found = [Variant(architecture, kernel, precision, dtypes[0], *block, "aligned") for block in blocks]
    largest = max(found, key=lambda one: (one.block_in * one.block_out, one.weight))
    # F's first and last layer have 3 channels on one side.
    odd = [one._replace(layout="odd") for one in found if one is largest or one.block_in != one.block_out]
    found += [*odd, largest._replace(layout="general")]
    if len(dtypes) > 1:  # the same instructions but for the type
        found.append(largest._replace(dtype=dtypes[1]))
    return found


def source(variant: Variant, config: KernelConfig) -> ASTSource:
    """The kernel with the signature that a launch of this kind gets from Triton's own specialisation."""
    module = import_module(f"andfast.kernels.degradation_block.{variant.kernel}")
    function = getattr(module, f"_{variant.kernel}_kernel")
    constants: dict[str, Any] = {
        "BLOCK_H": config.block_h,
        "BLOCK_W": config.block_w,
        "BLOCK_IN": variant.block_in,
        "BLOCK_OUT": variant.block_out,
        "PRECISION": "tf32" if variant.precision == "half" else variant.precision,
    }
    if variant.kernel == "grad_weight":
        constants["WANT_WEIGHT"] = variant.weight
    return kernel_resources.launched_source(
        function,
        constants,
        dtype=variant.dtype,
        types=POINTERS,
        unit=lambda name: name == "slope_stride_n" or (name.endswith("_stride_c") and name != "slope_stride_c"),
        layout=variant.layout,
    )


def resources(variant: Variant) -> Resources:
    """Compile one variant; what one program takes of a multiprocessor."""
    config = TABLE[variant.architecture][variant.kernel, variant.precision]
    options = kernel_resources.launch_options(config, variant.layout)
    return kernel_resources.resources(source(variant, config), variant.architecture, **options)


RESOURCES = kernel_resources.Table(
    "degradation_block",
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
