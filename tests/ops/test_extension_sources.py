"""The extension's sources compile with newer versions of torch than its library is built with."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = os.environ.get("CXX", "c++").split()[-1]
CUDA = Path(os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda") / "include"
FLAGS = (
    "-std=c++20",
    "-fsyntax-only",
    "-fvisibility=hidden",
    "-DUSE_CUDA",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
)
SOURCES = sorted(path.relative_to(CSRC) for path in CSRC.rglob("*.cpp") if path.name != "bindings.cpp")


@pytest.mark.skipif(torch.__version__.startswith("2.11."), reason="the extension is built with torch 2.11")
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler")
@pytest.mark.skipif(not (CUDA / "cuda_runtime.h").is_file(), reason="needs a CUDA toolkit")
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_compiles_with_this_torch(source: Path) -> None:
    folders = [f"-I{Path(torch.__file__).parent / 'include'}", f"-I{CUDA}", f"-I{CSRC}"]
    done = subprocess.run([COMPILER, *FLAGS, *folders, str(CSRC / source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
