"""Every launchable configuration of the Triton kernels compiles for sm_80 and sm_90, without a GPU, and fits.

Registers, spills and shared memory are compared with a committed table,
``kernels/degradation_block_resources.json``, which ``python tests/test_kernels_compile_degradation_block.py`` writes
anew.
"""

import itertools
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import kernel_resources
import pytest
from kernel_resources import KERNELS as FOLDER
from kernel_resources import Resources
from triton.compiler import ASTSource

from andfast.kernels.degradation_block_configs import CHANNEL_BLOCKS, MAX_REGISTERS, PRECISIONS, TABLE, Config

RESOURCES = FOLDER / "degradation_block_resources.json"
KERNELS = ("forward", "grad_input", "grad_weight")
LAYOUTS = ("aligned", "odd", "general")  # channels_last in multiples of 16; of any number of channels; any strides
POINTERS = {"bits_ptr": "*u8", "slope_ptr": "*fp32", "gw_ptr": "*fp32", "gslope_ptr": "*fp32"}


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


def source(variant: Variant, config: Config) -> ASTSource:
    """The kernel with the signature that a launch of this kind gets from Triton's own specialisation."""
    module = import_module(f"andfast.kernels.degradation_block_{variant.kernel}")
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
    types: dict[str, str] = {}
    divisible = []
    for parameter in function.params:
        name = parameter.name
        if name.endswith("_ptr"):
            types[name] = POINTERS.get(name, "*" + variant.dtype)
            divisible.append(name)
        elif not (parameter.is_constexpr or parameter.do_not_specialize or variant.layout == "general"):
            if (name.endswith("_stride_c") and name != "slope_stride_c") or name == "slope_stride_n":
                constants[name] = 1
            elif variant.layout == "aligned":
                divisible.append(name)
    return kernel_resources.source(function, types, constants, divisible)


def resources(variant: Variant) -> Resources:
    """Compile one variant; what one program takes of a multiprocessor."""
    config = TABLE[variant.architecture][variant.kernel, variant.precision]
    registers = config.registers if variant.layout == "aligned" else MAX_REGISTERS
    return kernel_resources.resources(
        source(variant, config),
        variant.architecture,
        num_warps=config.warps,
        num_stages=config.stages,
        maxnreg=registers,
    )


def everything() -> list[Variant]:
    return [
        variant
        for architecture, kernel, precision in itertools.product(TABLE, KERNELS, PRECISIONS)
        for variant in variants(architecture, kernel, precision)
    ]


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", TABLE)
def test_compiles_and_fits(architecture: str, kernel: str, precision: str) -> None:
    for variant in variants(architecture, kernel, precision):
        kernel_resources.check(variant, resources(variant), RESOURCES)


def test_the_table_holds_every_launchable_kernel_and_no_other() -> None:
    kernel_resources.check_table(everything(), RESOURCES)


if __name__ == "__main__":
    kernel_resources.write(everything(), resources, RESOURCES)
