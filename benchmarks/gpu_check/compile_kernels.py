"""Compile every Triton kernel that the launchers can ask for, in parallel, into Triton's cache; needs no GPU.

    python -m benchmarks.gpu_check.compile_kernels --architecture 9.0

A launch of the same architecture then finds its kernel compiled: tests and benchmarks do not wait for the compiler one
kernel at a time. Fails where a kernel spills or takes too much shared memory.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from andfast.kernels.degradation_block.configs import TABLE
from benchmarks.tuning.candidates import compilers, in_parallel

ROOT = Path(__file__).resolve().parents[2]

Task = tuple[str, Any]
"""A test module's name and one of its variants."""


def tasks(architecture: str) -> list[Task]:
    """All variants of an architecture, of all files of tests that compile kernels."""
    compilers()  # puts tests/ on the path
    found = []
    for file in sorted((ROOT / "tests" / "ops").rglob("test_*_compile.py")):
        if str(file.parent) not in sys.path:  # pytest, which puts it there itself, is not running
            sys.path.append(str(file.parent))
        every = import_module(file.stem).RESOURCES.variants()
        found += [(file.stem, one) for one in every if one.name().split()[0] == architecture]
    return found


def compile_one(task: Task) -> tuple[str, dict[str, int] | None, str | None]:
    """The variant's name and resources, or why there are none."""
    _, kernel_resources = compilers()
    module, variant = task
    try:
        found = import_module(module).resources(variant)
    except Exception as error:  # one that does not compile must not hide what the others take
        return variant.name(), None, f"does not compile: {error!r}"
    if found["spilled"] or found["shared"] > kernel_resources.SHARED_LIMIT[variant.architecture]:
        return variant.name(), found, "spills, or takes too much shared memory"
    return variant.name(), found, None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_check.compile_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", choices=TABLE, default=max(TABLE))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="what is not compiled then is left out")
    parser.add_argument("--match", default="", help="only kernels with this in their name")
    given = parser.parse_args(arguments)
    some = [one for one in tasks(given.architecture) if given.match in one[1].name()]
    bad = done = 0
    for name, found, why in in_parallel(compile_one, some, time.monotonic() + given.seconds, given.processes):
        done += 1
        print(f"{name}: {why or 'fits'} {found or ''}", flush=True)
        bad += why is not None
    print(f"{done} of {len(some)} kernels compiled, {bad} of them of no use")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
