"""Compile every Triton kernel variant, in parallel, into Triton's cache; needs no GPU.

    python -m benchmarks.gpu_check.compile_kernels --architecture 9.0

Later launches on the same architecture load the kernels from the cache. Fails if a kernel spills registers or exceeds
shared memory.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from andfast.kernels.common.compilation import KernelVariant, Resources, compile_variant, excess, resources
from andfast.kernels.degradation_block.configs import TABLE
from andfast.kernels.variants import all_variants
from benchmarks.tuning.candidates import in_parallel


def compile_one(variant: KernelVariant) -> tuple[str, Resources | None, str | None]:
    """Return the variant's name, its resources, and the reason if it cannot be used."""
    try:
        used = resources(compile_variant(variant))
    except Exception as error:  # a failure must not hide the other results
        return variant.name(), None, f"does not compile: {error!r}"
    return variant.name(), used, excess(used, variant.architecture)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu_check.compile_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", choices=TABLE, default=max(TABLE))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit; later kernels are skipped")
    parser.add_argument("--match", default="", help="only kernels with this in their name")
    options = parser.parse_args(arguments)
    variants = [variant for variant in all_variants(options.architecture) if options.match in variant.name()]
    bad = done = 0
    for name, used, why in in_parallel(compile_one, variants, time.monotonic() + options.seconds, options.processes):
        done += 1
        print(f"{name}: {why or 'fits'} {used or ''}", flush=True)
        bad += why is not None
    print(f"{done} of {len(variants)} kernels compiled, {bad} of them unusable")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
