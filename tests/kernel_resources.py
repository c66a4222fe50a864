"""Compile Triton kernels without a GPU and hold what they take of a multiprocessor against a committed table.

An op's test lists its variants, each with a name that starts with its architecture, and what compiles them. The table
is written anew by running that test as a program, see :func:`write`.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
SHARED_LIMIT = {"8.0": 163 * 1024, "8.9": 99 * 1024, "9.0": 227 * 1024}
"""Shared memory that one program may take, in bytes."""
ARCHITECTURES = ("8.0", "9.0")
"""What every table holds; kernels in fp8, which needs 8.9, have their own."""

Resources = dict[str, int]


class Named(Protocol):
    """A variant of a kernel: picklable, with a name that is unique in its table, such as "9.0 forward bf16"."""

    def name(self) -> str: ...


V = TypeVar("V", bound=Named)


def source(
    function: Any,
    types: Mapping[str, str | tuple[str, ...]],
    constants: Mapping[str, Any],
    divisible: Collection[str] = (),
) -> ASTSource:
    """A kernel with the signature that Triton's own specialisation gives a launch.

    Args:
        function: the jit function.
        types: Triton's types ("*fp32", "i32") by parameter; a tuple of them for a tuple of arguments. A parameter that
            is not named is a 32-bit integer.
        constants: values of the constexprs, and of integers that are specialised on 1.
        divisible: parameters (pointers and integers) that are multiples of 16.
    """
    names = [parameter.name for parameter in function.params]
    unknown = {*types, *constants, *divisible} - set(names)
    assert not unknown, f"{function.__name__} has no parameters {sorted(unknown)}"
    signature: dict[str, str | tuple[str, ...]] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(names):
        kind = "constexpr" if name in constants else types.get(name, "i32")
        signature[name] = kind
        if isinstance(constants.get(name), str):
            attributes[(index,)] = []  # as a launch says it, so that both mean one kernel in the cache
        if name in divisible:
            paths = [(index,)] if isinstance(kind, str) else [(index, place) for place in range(len(kind))]
            attributes.update({path: [["tt.divisibility", 16]] for path in paths})
    by_index = {(names.index(name),): value for name, value in constants.items()}
    return ASTSource(fn=function, signature=signature, constexprs=by_index, attrs=attributes)


def resources(compiled_from: ASTSource, architecture: str, **options: int) -> Resources:
    """Registers, spilled bytes and shared memory of one program, read off the compiled code itself.

    Args:
        compiled_from: of :func:`source`.
        architecture: of SHARED_LIMIT.
        options: num_warps, num_stages, maxnreg, as a launch gives them.
    """
    target = GPUTarget("cuda", int(architecture.replace(".", "")), 32)
    compiled = triton.compile(compiled_from, target=target, options=options)
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


def check(variant: Named, found: Resources, table_file: Path) -> None:
    """No spill, no more shared memory than there is, and what the committed table says, under the same Triton."""
    name, table = variant.name(), json.loads(table_file.read_text())
    assert found["spilled"] == 0, f"{name} spills: {found}"
    assert found["shared"] <= SHARED_LIMIT[name.split()[0]], f"{name}: too much shared memory: {found}"
    assert name in table["kernels"], f"{name} is not in {table_file.name}: write it anew"
    if table["triton"] == triton.__version__:
        assert found == table["kernels"][name], f"{name} changed: write {table_file.name} anew"


def check_table(variants: Sequence[Named], table_file: Path) -> None:
    """The committed table holds every launchable variant and no other, and nothing that does not fit."""
    table = json.loads(table_file.read_text())
    assert set(table["kernels"]) == {variant.name() for variant in variants}
    for name, row in table["kernels"].items():
        assert row["spilled"] == 0, name
        assert row["shared"] <= SHARED_LIMIT[name.split()[0]], name


def write(variants: Sequence[V], compile_one: Callable[[V], Resources], table_file: Path) -> None:
    """Compile all variants and write the table."""
    rows = {}
    with ProcessPoolExecutor(2) as pool:
        for variant, row in zip(variants, pool.map(compile_one, variants), strict=True):
            rows[variant.name()] = row
            print(variant.name(), row, file=sys.stderr, flush=True)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    table_file.write_text(f'{{"triton": "{triton.__version__}", "kernels": {{\n{lines}\n}}}}\n')
