"""The compiled extension: which part this installation lacks is logged on import."""

import subprocess
import sys

import pytest
import torch

from andfast import _C
from andfast.functional import extension

IMPORT = """
import os, sys, torch

def check(devices, archs):
    torch.cuda.device_count = lambda: devices
    torch.version.cuda = "13.0"
    from andfast import _C
    _C.CUDA_ARCHS = archs
    import andfast.functional
    assert not torch.cuda.is_initialized()

for case in {cases!r}:
    if (child := os.fork()) == 0:
        check(*case)
        break
    assert os.waitpid(child, 0)[1] == 0
    print("end of case", file=sys.stderr)
"""
NO_CUDA_PART = (
    "andfast: the extension was built without its CUDA part (a CPU-only wheel, or a build without a CUDA toolkit); "
    "on the GPU, ops run their other implementations"
)


def test_import_warns_without_a_cuda_part() -> None:
    """In new processes, which import the ops for the first time; the number of GPUs and the build are stand-ins."""
    cases = {(1, ""): NO_CUDA_PART + "\n", (0, ""): "", (1, "8.0+PTX:9.0a"): ""}
    code = IMPORT.format(cases=list(cases))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *warnings, rest = done.stderr.split("end of case\n")
    assert dict(zip(cases, warnings, strict=True)) == cases
    assert not rest


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
