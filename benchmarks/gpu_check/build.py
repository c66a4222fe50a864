"""Build the extension in place while Triton's kernels are compiled into its cache.

    python -m benchmarks.gpu_check.build --architecture 9.0 --seconds 60

A GPU newer than the table of configurations compiles its kernels when they are launched.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from andfast.kernels.degradation_block.configs import TABLE


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.build", description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", help="compute capability, such as 9.0; without it, no kernels are compiled")
    parser.add_argument("--seconds", type=float, default=600.0, help="kernels not compiled by then are left out")
    options = parser.parse_args(arguments)
    commands = {"extension": [sys.executable, "setup.py", "build_ext", "--inplace"]}
    if options.architecture in TABLE:
        compile_kernels = [sys.executable, "-m", "benchmarks.gpu_check.compile_kernels"]
        limits = ["--architecture", options.architecture, "--seconds", f"{options.seconds:.0f}"]
        commands["kernels"] = [*compile_kernels, *limits]
    failed = []
    with tempfile.TemporaryFile("w+") as log:
        # The kernels' output, far longer, goes to a file until the extension is built.
        beside = {
            name: subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            for name, command in commands.items()
            if name != "extension"
        }
        if subprocess.run(commands["extension"], check=False).returncode:
            failed.append("extension")
        failed += [name for name, process in beside.items() if process.wait()]
        log.seek(0)
        print(log.read())
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
