"""Loads the compiled library andfast._ops, and reports why its ops cannot run on a device.

It registers ops with torch's stable ABI, so one binary serves every torch from 2.11 on; andfast._C reports what it was
built for. Without the library andfast works, with a warning: ops run other implementations.
"""

import functools
import logging
from pathlib import Path

import torch

from andfast.functional.constant_result import constant_result

LIBRARY = Path(__file__).parents[1] / "_ops.abi3.so"

_logger = logging.getLogger(__name__)


@functools.cache
def why_missing() -> str | None:
    """Load the library on the first call; return why that failed, or None."""
    if not LIBRARY.is_file():
        return "no compiled extension: this andfast was installed without one (see its setup.py)"
    try:
        torch.ops.load_library(LIBRARY)
    except (OSError, RuntimeError) as error:
        return f"no compiled extension: {LIBRARY.name} does not load with torch {torch.__version__}: {error}"
    if not hasattr(torch.ops.andfast, "blur_pool"):
        return f"no compiled extension: {LIBRARY.name} was built from older sources; build it again"
    return None


def why_no_cuda_part() -> str | None:
    """Why the library has no CUDA ops, whatever the devices, or None if it has."""
    if (reason := why_missing()) is not None:
        return reason
    try:
        from andfast import _C  # noqa: PLC0415
    except ImportError as error:
        return f"andfast._C, which knows what the extension was built for, cannot be imported: {error}"
    if not _C.CUDA_ARCHS:
        return "the extension was built without its CUDA part (a CPU-only wheel, or a build without a CUDA toolkit)"
    return None


def cuda_archs() -> str:
    """Compute capabilities that the library was built for, such as "8.0+PTX:9.0a"; empty without a CUDA part."""
    if why_no_cuda_part() is not None:
        return ""
    from andfast import _C  # noqa: PLC0415

    return str(_C.CUDA_ARCHS)


def why_not_cpu(device_type: str) -> str | None:
    """Why the CPU ops cannot run on tensors of this device type, or None if they can."""
    if device_type != "cpu":
        return f"it runs on the CPU, the tensor is on {device_type!r}"
    return why_missing()


@constant_result  # device queries cannot be traced
def why_not_cuda(device_type: str) -> str | None:
    """Why the CUDA ops cannot run on tensors of this device type, or None if they can."""
    if device_type != "cuda":
        return f"it runs on CUDA devices, the tensor is on {device_type!r}"
    return _why_not_cuda_here()


@functools.cache
def _why_not_cuda_here() -> str | None:
    if (reason := why_no_cuda_part()) is not None:
        return reason
    archs = cuda_archs()
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not _runs_on(archs, capability):
            version, built = ".".join(map(str, capability)), archs.replace(":", ", ")
            return f"device {index} has compute capability {version}, the extension was built for {built}"
    return None


def _runs_on(archs: str, capability: tuple[int, int]) -> bool:
    """Whether a build for ``archs`` runs on a device: same major version and not newer, or by way of PTX."""
    for arch in archs.split(":"):
        built = tuple(map(int, arch.removesuffix("+PTX").rstrip("abcdefghijklmnopqrstuvwxyz").split(".")))
        exact = arch.removesuffix("+PTX")[-1].isalpha()
        if exact and built != capability:
            continue
        if built <= capability and (built[0] == capability[0] or arch.endswith("+PTX")):
            return True
    return False


def lacking() -> str | None:
    """None, or the part of the extension that this installation lacks for the machine's devices.

    Counts GPUs without initializing CUDA, so it does not compare compute capabilities; the first call of an op does.
    """
    if (reason := why_missing()) is not None:
        return f"{reason}; ops run their other implementations"
    if torch.version.cuda is not None and torch.cuda.device_count() > 0 and (reason := why_no_cuda_part()) is not None:
        return f"{reason}; on the GPU, ops run their other implementations"
    return None


if (_lacking := lacking()) is not None:
    _logger.warning("andfast: %s", _lacking)
