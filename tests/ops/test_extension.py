"""The compiled extension: which part this installation lacks is logged on import."""

import subprocess
import sys

import pytest
import torch

from andfast import _C
from andfast.functional import extension

IMPORT = """
import sys, torch
torch.cuda.device_count = lambda: {devices}
torch.version.cuda = "13.0"
from andfast import _C
_C.CUDA_ARCHS = {archs!r}
import andfast.functional
assert not torch.cuda.is_initialized()
"""
NO_CUDA_PART = (
    "andfast: the extension was built without its CUDA part (a CPU-only wheel, or a build without a CUDA toolkit); "
    "on the GPU, ops run their other implementations"
)


@pytest.mark.parametrize(
    ("devices", "archs", "expected"),
    [(1, "", [NO_CUDA_PART]), (0, "", []), (1, "8.0+PTX:9.0a", [])],
    ids=["GPU, CPU-only build", "no GPU", "GPU, CUDA build"],
)
def test_import_warns_without_a_cuda_part(devices: int, archs: str, expected: list[str]) -> None:
    """In a new process, which imports the op for the first time; the number of GPUs and the build are stand-ins."""
    code = IMPORT.format(devices=devices, archs=archs)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == expected


def test_missing_library_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "why_missing", lambda: "no compiled extension: no such file")
    assert extension.lacking() == "no compiled extension: no such file; ops run their other implementations"
    assert extension.cuda_archs() == ""


def test_missing_queries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose andfast._C was built for another Python: its ops run on the CPU, on CUDA the reason is given."""
    monkeypatch.delattr("andfast._C")
    monkeypatch.setitem(sys.modules, "andfast._C", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    reason = extension.why_no_cuda_part()
    assert reason is not None
    assert reason.startswith("andfast._C, which knows what the extension was built for, cannot be imported: ")
    assert extension.lacking() == f"{reason}; on the GPU, ops run their other implementations"
    assert extension.cuda_archs() == ""
    assert extension.why_not_cpu("cpu") is None


def test_complete_build_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "CUDA_ARCHS", "8.0+PTX:9.0a")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert extension.lacking() is None
    assert extension.cuda_archs() == "8.0+PTX:9.0a"
