"""The CUDA compiler, for tests that build kernels by themselves."""

import os
import shutil


def nvcc() -> str | None:
    """CUDA_HOME's first: nvcc on the PATH may be a wrapper outside of its toolkit."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
