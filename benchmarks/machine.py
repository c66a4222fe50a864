"""Device, versions and commit, recorded with every result."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numpy", "torchvision", "pytest", "pytest-benchmark", "pytest-timeout", "hypothesis")
COMMIT_FILE = "COMMIT"
"""File in the root that names the commit where the checkout travels without git; ignored by git."""


def device() -> str:
    """The device that benchmarks run on: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def slug(name: str) -> str:
    """Folder name of a device: "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def commit() -> str:
    """The commit of the checkout, "+changes" if files differ from it; from git, from the file COMMIT, or "unknown"."""
    try:
        # Without this git would find a repository that the checkout merely lies in.
        if (ROOT / ".git").exists():
            head = _git("rev-parse", "HEAD")
            return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        pass
    file = ROOT / COMMIT_FILE
    return file.read_text().strip() or "unknown" if file.is_file() else "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def version(package: str) -> str | None:
    """A package's installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """Device, driver, versions, commit."""
    return {
        "device": device(),
        "name": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else None,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "platform": sys.platform,
    }


def cpu_name() -> str:
    """Name of the processor from /proc/cpuinfo, else from Python."""
    try:
        match = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def _driver() -> str | None:
    if not torch.cuda.is_available():
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    print(json.dumps(describe()))
