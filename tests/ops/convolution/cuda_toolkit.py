"""The CUDA compiler, for tests that build kernels by themselves."""

import os
import shutil


def nvcc() -> str | None:
    """The compiler of CUDA_HOME if there is one: nvcc on the PATH may be a wrapper outside its toolkit."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
