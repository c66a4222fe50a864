"""Ahead-of-time compilation of kernel variants for a given architecture; needs Triton but no GPU.

An op lists the variants that its launchers can request in its ``variants`` module. A launch finds a variant compiled
here in Triton's cache, because both have the same signature, constants and options.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from .config import MAX_REGISTERS, KernelConfig

SHARED_MEMORY_LIMIT: Final = {"8.0": 163 * 1024, "9.0": 227 * 1024}
"""Shared memory available to one program, in bytes, per architecture."""


class Resources(NamedTuple):
    """What one program of a compiled kernel uses."""

    registers: int
    """Per thread."""
    spilled: int
    """Bytes of local memory per thread."""
    shared: int
    """Bytes of shared memory."""


class KernelVariant(Protocol):
    """One kernel with its dtypes, block sizes and layout: picklable and hashable."""

    @property
    def architecture(self) -> str:
        """ "8.0", "9.0", ..."""

    def name(self) -> str:
        """Unique within the op, such as "9.0 forward half bf16 64->64 aligned"."""

    def source(self) -> ASTSource:
        """The kernel with the signature of its launches."""

    def options(self) -> dict[str, int]:
        """Launch options: num_warps, num_stages, maxnreg."""

    def register_ceiling(self) -> int:
        """The most registers per thread that its occupancy is planned for."""


def compile_variant(variant: KernelVariant) -> CompiledKernel:
    """Compile for the variant's architecture, or load the result from Triton's cache."""
    return compile_source(variant.source(), variant.architecture, variant.options())


def compile_source(source: ASTSource, architecture: str, options: Mapping[str, int]) -> CompiledKernel:
    """Compile a kernel for an architecture."""
    target = GPUTarget("cuda", int(architecture.replace(".", "")), 32)
    return triton.compile(source, target=target, options=dict(options))


def resources(compiled: CompiledKernel) -> Resources:
    """Resources of a compiled kernel, as cuobjdump reports them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    if usage is None:
        raise RuntimeError(f"cuobjdump must report REG, STACK and LOCAL, printed {report!r}")
    registers, stack, local = map(int, usage.groups())
    return Resources(registers, stack + local, compiled.metadata.shared)


def excess(used: Resources, architecture: str, ceiling: int = MAX_REGISTERS) -> str | None:
    """Why a kernel with these resources cannot run well on the architecture, or None if it can."""
    if used.spilled:
        return f"spills {used.spilled} bytes per thread"
    limit = SHARED_MEMORY_LIMIT[architecture]
    if used.shared > limit:
        return f"needs {used.shared} bytes of shared memory, more than {limit}"
    if used.registers > ceiling:
        return f"needs {used.registers} registers per thread, more than {ceiling}"
    return None


# ----------------------------------------------------------------------------------------------------------- signatures


def kernel_source(
    function: Any,
    types: Mapping[str, str | tuple[str, ...]],
    constants: Mapping[str, Any],
    divisible: Collection[str] = (),
) -> ASTSource:
    """A kernel with the signature that Triton's own specialization gives a launch.

    Args:
        function: the jit function.
        types: Triton types ("*fp32", "i32") by parameter; a tuple for a tuple argument. The default is "i32".
        constants: values of constexprs, and of integers (or a tuple of them) that are specialized on 1.
        divisible: parameters (pointers and integers) that are multiples of 16.
    """
    names = [parameter.name for parameter in function.params]
    unknown = {*types, *constants, *divisible} - set(names)
    if unknown:
        raise ValueError(f"types, constants and divisible must name parameters of {function.__name__}, had {unknown}")
    signature: dict[str, str | tuple[str, ...]] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(names):
        kind: str | tuple[str, ...] = types.get(name, "i32")
        if name in constants:
            value = constants[name]
            kind = ("constexpr",) * len(value) if isinstance(value, tuple) else "constexpr"
            paths = [(index, place) for place in range(len(kind))] if isinstance(kind, tuple) else [(index,)]
            constexprs.update(zip(paths, value if isinstance(kind, tuple) else [value], strict=True))
        signature[name] = kind
        if isinstance(constants.get(name), str):
            attributes[(index,)] = []  # as a launch has it, so that both have one key in Triton's cache
        if name in divisible:
            paths = [(index,)] if isinstance(kind, str) else [(index, place) for place in range(len(kind))]
            attributes.update({path: [["tt.divisibility", 16]] for path in paths})
    return ASTSource(fn=function, signature=signature, constexprs=constexprs, attrs=attributes)


def image_kernel_source(
    function: Any,
    constants: Mapping[str, Any],
    *,
    dtype: str,
    types: Mapping[str, str],
    unit_stride: Callable[[str], bool],
    layout: str,
) -> ASTSource:
    """:func:`kernel_source` of a kernel over images, as launches with a given layout specialize it.

    Args:
        function, constants: as in :func:`kernel_source`.
        dtype: of pointers that ``types`` does not name.
        types: Triton types of other parameters.
        unit_stride: whether the integer parameter of this name is 1 in channels_last layouts.
        layout: "aligned" (channels_last, integers are multiples of 16), "odd" (channels_last), "general" (any strides).
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
        if unit_stride(name) and layout != "general":
            constants[name] = 1
        elif layout == "aligned":
            divisible.append(name)
    return kernel_source(function, types, constants, divisible)


def image_kernel_options(config: KernelConfig, layout: str) -> dict[str, int]:
    """Launch options of a kernel over images."""
    registers = config.registers if layout == "aligned" else MAX_REGISTERS
    return {"num_warps": config.warps, "num_stages": config.stages, "maxnreg": registers}
