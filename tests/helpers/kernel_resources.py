"""Compile Triton kernels without a GPU and hold what they take of a multiprocessor against a committed table.

An op's test lists its variants, each with a name that starts with its architecture, and what compiles one; the rest is
:class:`Table`'s. The table is written anew by running that test as a program.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from andfast.kernels.common.config import MAX_REGISTERS, KernelConfig

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
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


def launched_source(
    function: Any,
    constants: Mapping[str, Any],
    *,
    dtype: str,
    types: Mapping[str, str],
    unit: Callable[[str], bool],
    layout: str,
) -> ASTSource:
    """:func:`source` of a kernel over images, as a launch over a kind of layout specialises it.

    Args:
        function, constants: as there.
        dtype: what the pointers are of that ``types`` does not name.
        types: as there, of some parameters.
        unit: whether an integer by that name is 1 but in the general layout, as the stride of channels_last is.
        layout: "aligned" (integers are multiples of 16), "odd", or "general" (any strides).
    """
    types = {
        parameter.name: types.get(parameter.name, "*" + dtype)
        for parameter in function.params
        if parameter.name in types or parameter.name.endswith("_ptr")
    }
    constants, divisible = dict(constants), [name for name in types if name.endswith("_ptr")]
    for parameter in function.params:
        name = parameter.name
        if name in types or name in constants or parameter.is_constexpr or parameter.do_not_specialize:
            continue
        if unit(name) and layout != "general":
            constants[name] = 1
        elif layout == "aligned":
            divisible.append(name)
    return source(function, types, constants, divisible)


def launch_options(config: KernelConfig, layout: str) -> dict[str, int]:
    """What a configuration of a kernel over images says to the compiler."""
    registers = config.registers if layout == "aligned" else MAX_REGISTERS
    return {"num_warps": config.warps, "num_stages": config.stages, "maxnreg": registers}


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


class Table(Generic[V]):
    """A committed table of what an op's kernels take, and the variants that it must hold.

    Args:
        op: what the table is named for.
        groups: variants by the name of a group, in the order of the table; a test compiles one group.
        compile_one: a variant's resources; a function of a module, as processes of their own call it.
    """

    def __init__(self, op: str, groups: Mapping[str, Sequence[V]], compile_one: Callable[[V], Resources]) -> None:
        self.file, self.groups, self._compile_one = KERNELS / op / "resources.json", groups, compile_one

    def variants(self) -> list[V]:
        """All that can be launched."""
        return [variant for group in self.groups.values() for variant in group]

    def compile_and_check(self, group: str) -> None:
        """Compile a group's variants and check each."""
        for variant in self.groups[group]:
            self.check(variant, self._compile_one(variant))

    def check(self, variant: V, found: Resources) -> None:
        """No spill, no more shared memory than there is, and what the table says, under the same Triton."""
        name, table = variant.name(), json.loads(self.file.read_text())
        assert found["spilled"] == 0, f"{name} spills: {found}"
        assert found["shared"] <= SHARED_LIMIT[name.split()[0]], f"{name}: too much shared memory: {found}"
        assert name in table["kernels"], f"{name} is not in {self.file.name}: write it anew"
        if table["triton"] == triton.__version__:
            assert found == table["kernels"][name], f"{name} changed: write {self.file.name} anew"

    def check_rows(self) -> None:
        """The table holds every launchable variant and no other, and nothing that does not fit."""
        table = json.loads(self.file.read_text())
        assert set(table["kernels"]) == {variant.name() for variant in self.variants()}
        for name, row in table["kernels"].items():
            assert row["spilled"] == 0, name
            assert row["shared"] <= SHARED_LIMIT[name.split()[0]], name

    def write(self) -> None:
        """Compile all variants and write the table."""
        rows, variants = {}, self.variants()
        with ProcessPoolExecutor(2) as pool:
            for variant, row in zip(variants, pool.map(self._compile_one, variants), strict=True):
                rows[variant.name()] = row
                print(variant.name(), row, file=sys.stderr, flush=True)
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        self.file.write_text(f'{{"triton": "{triton.__version__}", "kernels": {{\n{lines}\n}}}}\n')
