"""Availability, dtypes and tf32 setting of the Triton implementations.

Triton is imported on the first call of an op, so that andfast can be imported without it.
"""

import functools
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that the kernels support."""

_OLDEST = (8, 0)


@functools.cache
def _why_not_here() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.version.cuda is None:
        return "it needs an NVIDIA GPU, and this torch is a build without CUDA"
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if capability < _OLDEST:
            have = ".".join(map(str, capability))
            return f"it needs compute capability 8.0 or newer, device {index} has {have}"
    return _why_no_build()


def _why_no_build() -> str | None:
    """Why Triton cannot compile its C launcher, looking for tools where triton/runtime/build.py does."""
    compiler = os.environ.get("CC")
    if compiler is None and shutil.which("gcc") is None and shutil.which("clang") is None:
        return "Triton needs a C compiler, and there is no gcc or clang on the PATH and no CC"
    if compiler is not None and shutil.which(compiler) is None:
        return f"Triton needs a C compiler, and CC={compiler!r} does not exist"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does on Debian
    header = Path(sysconfig.get_paths(scheme=scheme)["include"], "Python.h")
    if not header.is_file():
        return f"Triton needs Python's headers, and {header} is missing (Debian, Ubuntu: python3-dev)"
    return None


def why_not(device_type: str) -> str | None:
    """Why the kernels cannot run on tensors of this device type, or None if they can."""
    if device_type != "cuda":
        return f"it runs on CUDA devices, and the tensors are on {device_type!r}"
    return _why_not_here()


def tf32_allowed() -> bool:
    """Whether tf32 is allowed in matrix products; this flag follows both the old and the new API."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")
