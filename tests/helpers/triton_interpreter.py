"""Run kernel tests in Triton's interpreter, in a process of their own; run code in a process without Triton.

TRITON_INTERPRET must be set before triton is imported and must not leak into other tests. So an op's test file reruns
itself, and others of its op, in a subprocess with TRITON_INTERPRET=1; tests under ``if INTERPRETED`` run there only,
after :func:`repair`.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter computes with NumPy, which warns about non-finite values."""


SCHEMA_AND_FAKE = ("test_schema", "test_faketensor")
"""opcheck's tests of what depends on the implementation; tests of the ops check autograd and tracing."""


def run(file: str, *siblings: str, keyword: str = "") -> None:
    """Rerun the tests of a file, and of files beside it, that match a keyword expression in one interpreter.

    Fails unless all pass.
    """
    files = [file, *(str(Path(file).with_name(name)) for name in siblings)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment.update(TRITON_INTERPRET="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take a second
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "pytest_timeout", "-k", keyword]
    command = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def run_without_triton(code: str) -> None:
    """Run code in a process with torch, andfast.functional as ``f`` and no triton; fail if it does."""
    code = f"import sys; sys.modules['triton'] = None\nimport torch, andfast.functional as f\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def repair() -> None:
    """Let Triton 3.6's interpreter run on NumPy 2.4, and fast enough for hundreds of cases."""
    import triton.language as tl  # noqa: PLC0415
    from triton.runtime import interpreter  # noqa: PLC0415

    interpreter._get_np_dtype = _cached_by_scalar(interpreter._get_np_dtype)
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)

    # Patch triton.language once per process; the interpreter does it in every launch and every call of tl.sum.
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()
    # Scalars are arrays of one element, which NumPy 2.4 no longer converts to int.
    tl.tensor.__index__ = lambda self: int(self.handle.data.item())


def _cached_by_scalar(get_np_dtype: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The interpreter's NumPy dtype of a Triton type, without building its table on each call."""
    dtypes: dict[str, Any] = {}

    def get(triton_type: Any) -> Any:
        name = triton_type.scalar.name
        if name not in dtypes:
            dtypes[name] = get_np_dtype(triton_type)
        return dtypes[name]

    return get
