"""Triton's interpreter, for the tests of kernels: chosen in a process of its own, and repaired there.

And a process without Triton, where the ops must run all the same.

The interpreter has to be chosen before triton is imported, and must not leak into other tests. So a test file runs
itself again with TRITON_INTERPRET=1; what it has under ``if INTERPRETED`` runs there only, after :func:`repair`.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""NumPy, which the interpreter computes with, warns where values that are not finite meet."""


def run(file: str, keyword: str) -> None:
    """Run the tests of a file that match a keyword expression again, in the interpreter; all must pass."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment.update(TRITON_INTERPRET="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", keyword, file]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def run_without_triton(code: str) -> None:
    """Run a program in a process that has torch, andfast.functional as ``f``, and no triton; it must not fail."""
    code = f"import sys; sys.modules['triton'] = None\nimport torch, andfast.functional as f\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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

    interpreter._convert_float = _with_right_fp8(interpreter._convert_float)
    interpreter._patch_lang_tensor = patch_tensor_and_index
    interpreter.InterpretedFunction.__call__ = call_without_patching_again
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)


def _with_right_fp8(convert: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter's conversion of floats, but for fp8, whose rounding it does without the carry: 1.97 became 1."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415

    names = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
    wide = {"fp16": np.float16, "fp32": np.float32}

    def convert_float(values: Any, source: Any, result: Any, rounding: Any) -> Any:
        if result.name in names and source.name in wide:
            made = torch.from_numpy(np.ascontiguousarray(values).view(wide[source.name])).to(names[result.name])
            return made.view(torch.uint8).numpy()
        if source.name in names and result.name in wide:
            made = torch.from_numpy(np.ascontiguousarray(values)).view(names[source.name])
            number = made.float().numpy().astype(wide[result.name])
            return number.view(np.uint16 if result.name == "fp16" else np.uint32)
        return convert(values, source, result, rounding)

    return convert_float
