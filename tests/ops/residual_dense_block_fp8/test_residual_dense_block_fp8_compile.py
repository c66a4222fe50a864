"""Every launchable configuration of the dense block's kernels with 8-bit operands compiles for sm_89 and sm_90.

None spills. Registers, spills and shared memory are compared with a committed table,
``kernels/residual_dense_block_fp8_resources.json``, which
``python tests/test_kernels_compile_residual_dense_block_fp8.py`` writes anew.
"""

import itertools
import re
from typing import Any, NamedTuple

import kernel_resources
import pytest
import triton
from kernel_resources import Resources
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from andfast.kernels.residual_dense_block_fp8.configs import OUTPUT_BLOCKS, REDUCTION_BLOCKS, TABLE
from andfast.kernels.residual_dense_block_fp8.kernels import QUANTISED_PIXELS, _fp8_convolution_kernel, _quantise_kernel

KINDS = ("activate", "gradient", "residual", "residual_gradient")  # by the kernel's number, and the last of backward
# channels in multiples of 16 and a channels_last result; other channels; a result of any strides, too
LAYOUTS = ("aligned", "odd", "general")

pytestmark = pytest.mark.usefixtures("fresh_triton_cache")


class Variant(NamedTuple):
    """One compiled kernel at its channel blocks and a way of being called."""

    architecture: str
    kind: str  # of KINDS, or quantise
    dtype: str  # of x and of the result
    block_out: int
    block_k: int
    layout: str  # of LAYOUTS

    def name(self) -> str:
        return f"{self.architecture} {self.kind} {self.dtype} {self.block_out} {self.block_k} {self.layout}"


def variants(architecture: str, kind: str) -> list[Variant]:
    """All that the launchers can ask for, in every layout where the blocks are largest; fp16 once."""
    largest = TABLE[architecture][OUTPUT_BLOCKS[-1]].block_k
    blocks = [block for block in REDUCTION_BLOCKS if block <= largest]
    found = [Variant(architecture, kind, "bf16", *pair, "aligned") for pair in itertools.product(OUTPUT_BLOCKS, blocks)]
    # Addresses that are not simple take the smallest blocks.
    layouts = LAYOUTS[1:] if kind.startswith("residual") else LAYOUTS[1:2]
    found += [found[0]._replace(layout=layout) for layout in layouts]
    return [*found, found[0]._replace(dtype="fp16")] if kind.startswith("residual") else found


def source(variant: Variant) -> ASTSource:
    """The kernel with the signature that a launch of this kind gets from Triton's own specialisation."""
    wide, e4m3, e5m2 = "*" + variant.dtype, "*fp8e4nv", "*fp8e5"
    if variant.kind == "quantise":
        function: Any = _quantise_kernel
        types = {"x_ptr": wide, "out_ptr": e4m3}
        constants: dict[str, Any] = {"PIXELS": QUANTISED_PIXELS, "BLOCK_C": variant.block_k}
    else:
        function = _fp8_convolution_kernel
        config = TABLE[variant.architecture][variant.block_out]
        operand = e5m2 if variant.kind.endswith("gradient") else e4m3
        last = variant.kind.startswith("residual")
        types = {"a_ptr": operand, "b_ptr": operand, "w_ptr": e4m3, "w_scale_ptr": "*fp32", "bias_ptr": "*fp32"}
        types |= {"bits_ptr": e4m3 if last else "*u8", "slope": "fp32"}
        types |= dict.fromkeys(("residual_ptr", "out_ptr"), wide if last else e4m3)
        constants = {"KIND": min(KINDS.index(variant.kind), 2), "PIXELS": config.block_h * config.block_w}
        constants |= {"BLOCK_K": variant.block_k, "BLOCK_OUT": variant.block_out}
    return kernel_resources.launched_source(
        function,
        constants,
        dtype=variant.dtype,
        types=types,
        unit=lambda name: name == "out_stride_c",
        layout=variant.layout,
    )


def options(variant: Variant) -> dict[str, int]:
    if variant.kind == "quantise":
        return {"num_warps": 4}
    return kernel_resources.launch_options(TABLE[variant.architecture][variant.block_out], variant.layout)


def resources(variant: Variant) -> Resources:
    """Compile one variant; what one program takes of a multiprocessor."""
    return kernel_resources.resources(source(variant), variant.architecture, **options(variant))


RESOURCES = kernel_resources.Table(
    "residual_dense_block_fp8",
    {
        **{"-".join(group): variants(*group) for group in itertools.product(TABLE, KINDS)},
        **{
            f"{architecture}-quantise": [
                Variant(architecture, "quantise", dtype, 64, 64, "aligned") for dtype in ("bf16", "fp16")
            ]
            for architecture in TABLE
        },
    },
    resources,
)


@pytest.mark.slow
@pytest.mark.parametrize("group", RESOURCES.groups)
def test_compiles_and_fits(group: str) -> None:
    RESOURCES.compile_and_check(group)


def test_the_table_holds_every_launchable_kernel_and_no_other() -> None:
    RESOURCES.check_rows()


@pytest.mark.parametrize(("kind", "operand"), [("activate", "e4m3"), ("gradient", "e5m2")])
def test_hopper_multiplies_fp8(kind: str, operand: str) -> None:
    """Its matrix units take the operands as they are, and rounding becomes the largest number, not NaN or infinity."""
    variant = Variant("9.0", kind, "bf16", 32, 64, "aligned")
    compiled = triton.compile(source(variant), target=GPUTarget("cuda", 90, 32), options=options(variant))
    code = compiled.asm["ptx"]
    products = set(re.findall(r"wgmma\.mma_async\S*", code))
    assert products == {f"wgmma.mma_async.sync.aligned.m64n32k32.f32.{operand}.e4m3"}
    assert set(re.findall(r"cvt\.\S*e[45]m[23]x2\S*", code)) == {f"cvt.rn.satfinite.{operand}x2.f32"}


if __name__ == "__main__":
    RESOURCES.write()
