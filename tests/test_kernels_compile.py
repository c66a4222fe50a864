"""Every launchable configuration of the Triton kernels compiles for sm_80 and sm_90, without a GPU, and fits.

Registers, spills and shared memory are compared with a committed table, ``kernels/resources.json``, which
``python tests/test_kernels_compile.py`` writes anew.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from andfast.kernels.degradation_block_configs import CHANNEL_BLOCKS, MAX_REGISTERS, PRECISIONS, TABLE, Config

RESOURCES = Path(__file__).resolve().parents[1] / "kernels" / "resources.json"
SHARED_LIMIT = {"8.0": 163 * 1024, "9.0": 227 * 1024}
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
    from importlib import import_module  # noqa: PLC0415

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
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, parameter in enumerate(function.params):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = POINTERS.get(name, "*" + variant.dtype)
            attributes[index,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if parameter.do_not_specialize or variant.layout == "general":
                continue
            if (name.endswith("_stride_c") and name != "slope_stride_c") or name == "slope_stride_n":
                constants[name], signature[name] = 1, "constexpr"
            elif variant.layout == "aligned":
                attributes[index,] = [["tt.divisibility", 16]]
    names = [parameter.name for parameter in function.params]
    by_index = {(names.index(name),): value for name, value in constants.items()}
    return ASTSource(fn=function, signature=signature, constexprs=by_index, attrs=attributes)


def resources(variant: Variant) -> dict[str, int]:
    """Compile one variant; what one program takes of a multiprocessor, from the compiled code itself."""
    config = TABLE[variant.architecture][variant.kernel, variant.precision]
    target = GPUTarget("cuda", int(variant.architecture.replace(".", "")), 32)
    registers = config.registers if variant.layout == "aligned" else MAX_REGISTERS
    options = {"num_warps": config.warps, "num_stages": config.stages, "maxnreg": registers}
    compiled = triton.compile(source(variant, config), target=target, options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    assert found, report
    registers, stack, local = map(int, found.groups())
    return {"registers": registers, "spilled": stack + local, "shared": compiled.metadata.shared}


def everything() -> list[Variant]:
    return [
        variant
        for architecture, kernel, precision in itertools.product(TABLE, KERNELS, PRECISIONS)
        for variant in variants(architecture, kernel, precision)
    ]


def check(variant: Variant, found: dict[str, int]) -> None:
    """No spill, no more shared memory than there is, and what the committed table says, under the same Triton."""
    assert found["spilled"] == 0, f"{variant.name()} spills: {found}"
    assert found["shared"] <= SHARED_LIMIT[variant.architecture], f"{variant.name()}: too much shared memory: {found}"
    table = json.loads(RESOURCES.read_text())
    assert variant.name() in table["kernels"], f"{variant.name()} is not in {RESOURCES.name}: write it anew"
    if table["triton"] == triton.__version__:
        assert found == table["kernels"][variant.name()], f"{variant.name()} changed: write {RESOURCES.name} anew"


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", TABLE)
def test_compiles_and_fits(architecture: str, kernel: str, precision: str) -> None:
    for variant in variants(architecture, kernel, precision):
        check(variant, resources(variant))


def test_the_table_holds_every_launchable_kernel_and_no_other() -> None:
    table = json.loads(RESOURCES.read_text())
    assert set(table["kernels"]) == {variant.name() for variant in everything()}
    for name, row in table["kernels"].items():
        assert row["spilled"] == 0, name
        assert row["shared"] <= SHARED_LIMIT[name.split()[0]], name


if __name__ == "__main__":
    wanted = everything()
    with ProcessPoolExecutor(2) as pool:
        rows = {}
        for variant, row in zip(wanted, pool.map(resources, wanted), strict=True):
            rows[variant.name()] = row
            print(variant.name(), row, file=sys.stderr, flush=True)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    RESOURCES.write_text(f'{{"triton": "{triton.__version__}", "kernels": {{\n{lines}\n}}}}\n')
