"""CUDA kernels of the installed extension: resource usage and instructions, read off its libraries without a GPU."""

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import triton

import andfast

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
LIBRARIES = sorted(
    path for pattern in ("_C.*.so", "_ops*.so") for path in Path(andfast.__file__).parent.glob(pattern)
)  # fmt: skip
RESOURCES = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


class Resources(NamedTuple):
    """Registers per thread, and bytes of stack, static shared memory and local memory (spills)."""

    registers: int
    stack: int
    shared: int
    local: int


def _dump(option: str, library: Path, *arguments: str) -> str:
    # cuobjdump runs nvdisasm, which lies beside it.
    environment = os.environ | {"PATH": os.pathsep.join([str(CUOBJDUMP.parent), os.environ["PATH"]])}
    command = [str(CUOBJDUMP), option, *arguments, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stdout


@functools.cache
def resources() -> dict[tuple[str, str], Resources]:
    """Resources by architecture ("sm_80") and mangled kernel name, of all kernels of the installed extension."""
    kernels = {}
    for library in LIBRARIES:
        for part in _dump("-res-usage", library).split("Fatbin elf code:")[1:]:
            architecture = re.search(r"arch = (sm_\w+)", part)
            assert architecture is not None
            for name, *numbers in RESOURCES.findall(part):
                kernels[architecture[1], name] = Resources(*map(int, numbers))
    return kernels


def built_for(*architectures: str) -> dict[tuple[str, str], Resources]:
    """:func:`resources`, or skip if the installed extension lacks one of the architectures."""
    kernels = resources()
    missing = set(architectures) - {architecture for architecture, _ in kernels}
    if missing:
        pytest.skip(f"the installed extension has no kernels for {', '.join(sorted(missing))}")
    return kernels


@functools.cache
def instructions(architecture: str) -> dict[str, list[str]]:
    """Instruction names in order, without predicates and operands, by mangled kernel name."""
    kernels = {}
    for library in LIBRARIES:
        text = _dump("-sass", library, "-arch", architecture)
        for part in text.split("Function : ")[1:]:
            name, _, body = part.partition("\n")
            kernels[name.strip()] = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", body)
    return kernels
