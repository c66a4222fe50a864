"""Triton's interpreter, for the tests of kernels: chosen in a process of its own, and repaired there.

The interpreter has to be chosen before triton is imported, and must not leak into other tests. So a test file runs
itself again with TRITON_INTERPRET=1; what it has under ``if INTERPRETED`` runs there only, after :func:`repair`.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def run(file: str, keyword: str) -> None:
    """Run the tests of a file that match a keyword expression again, in the interpreter; all must pass."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment.update(TRITON_INTERPRET="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", keyword, file]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def repair() -> None:
    """Let Triton 3.6's interpreter run on NumPy 2.4, and fast enough for hundreds of cases."""
    from triton.runtime import interpreter  # noqa: PLC0415

    patch_tensor = interpreter._patch_lang_tensor
    call = interpreter.InterpretedFunction.__call__

    def patch_tensor_and_index(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        # Scalars are arrays of one element there, which NumPy no longer takes for an int.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def call_without_patching_again(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The kernel that calls has patched triton.language already, for all functions of andfast.
        if self.fn.__module__.startswith("triton"):
            return call(self, *args, **kwargs)
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang_tensor = patch_tensor_and_index
    interpreter.InterpretedFunction.__call__ = call_without_patching_again
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
