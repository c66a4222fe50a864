"""Every launchable configuration of the upsampled convolution's Triton kernels compiles for sm_80 and sm_90, and fits.

Registers, spills and shared memory are compared with a committed table, ``upsampled_convolution_resources.json``, which
``python tests/test_kernels_compile_upsampled_convolution.py`` writes anew.
"""

import itertools
from typing import Any, NamedTuple

import kernel_resources
import pytest
from kernel_resources import Resources
from triton.compiler import ASTSource

from andfast.kernels.common.config import CHANNEL_BLOCKS, PRECISIONS, KernelConfig
from andfast.kernels.upsampled_convolution import kernels as module
from andfast.kernels.upsampled_convolution.configs import TABLE

KERNELS = ("forward", "grad_input")
LAYOUTS = ("aligned", "odd", "general")  # channels_last in multiples of 16; of any number of channels; any strides
TYPES = {"bits_ptr": "*u8", "slope": "fp32"}

pytestmark = pytest.mark.usefixtures("fresh_triton_cache")


class Variant(NamedTuple):
    """One compiled kernel: a configuration of the table, at channel blocks and a way of being called."""

    architecture: str
    kernel: str
    precision: str
    dtype: str
    factor: int
    block_in: int
    block_out: int
    activated: bool  # whether the gradient meets signs
    layout: str  # of LAYOUTS

    def name(self) -> str:
        blocks = f"x{self.factor} {self.block_in}->{self.block_out}" + ("" if self.activated else " no signs")
        return f"{self.architecture} {self.kernel} {self.precision} {self.dtype} {blocks} {self.layout}"

    def config(self) -> KernelConfig:
        return TABLE[self.architecture][self.kernel, self.precision]


def variants(architecture: str, kernel: str, precision: str) -> list[Variant]:
    """All that the launchers can ask for; in every layout where the blocks are largest, and where G has 3 channels."""
    dtypes = ("bf16", "fp16") if precision == "half" else ("fp32",)
    one = Variant(architecture, kernel, precision, dtypes[0], 1, 0, 0, True, "aligned")
    steps = sorted({min(block, one.config().block_k) for block in CHANNEL_BLOCKS})
    sizes = (steps, CHANNEL_BLOCKS) if kernel == "forward" else (CHANNEL_BLOCKS, steps)
    found = [
        one._replace(factor=factor, block_in=into, block_out=out)
        for factor, into, out in itertools.product((1, 2), *sizes)
    ]
    if kernel == "grad_input":  # layers without an activation, and trained ones
        found += [each._replace(activated=False) for each in found]
    large = [each for each in found if (each.block_in, each.block_out) == (max(sizes[0]), max(sizes[1]))]
    found += [each._replace(layout="general") for each in large if each.activated]
    few = [each for each in found if each.block_in != each.block_out and each.factor == 1]
    found += [each._replace(layout="odd") for each in {*large, *few} if each.layout == "aligned"]
    if len(dtypes) > 1:  # the same instructions but for the type
        found += [each._replace(dtype=dtypes[1]) for each in large if each.activated]
    return sorted(found)


def source(variant: Variant) -> ASTSource:
    """The kernel with the signature that a launch of this kind gets from Triton's own specialisation."""
    config, function = variant.config(), getattr(module, f"_{variant.kernel}_kernel")
    constants: dict[str, Any] = {
        "FACTOR": variant.factor,
        "BLOCK_H": config.block_h,
        "BLOCK_W": config.block_w,
        "BLOCK_IN": variant.block_in,
        "BLOCK_OUT": variant.block_out,
        "PRECISION": "tf32" if variant.precision == "half" else variant.precision,
    }
    if variant.kernel == "grad_input":
        constants["ACTIVATED"] = variant.activated
    return kernel_resources.launched_source(
        function,
        constants,
        dtype=variant.dtype,
        types=TYPES,
        unit=lambda name: name.endswith("_stride_c"),
        layout=variant.layout,
    )


def resources(variant: Variant) -> Resources:
    """Compile one variant; what one program takes of a multiprocessor."""
    options = kernel_resources.launch_options(variant.config(), variant.layout)
    return kernel_resources.resources(source(variant), variant.architecture, **options)


RESOURCES = kernel_resources.Table(
    "upsampled_convolution",
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
