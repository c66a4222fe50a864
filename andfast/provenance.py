"""Which code on which machine produced a result: package versions, the commit, the device."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

import torch

_PACKAGES: Final = (
    "andfast",
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "safetensors",
    "pillow",
    "jsonargparse",
)


def versions(device: str = "cpu") -> dict[str, str | bool | None]:
    """Versions of the packages, Python, the platform, the device and, in a checkout, the commit.

    Args:
        device: a torch device, whose name is recorded; with a CUDA device also the CUDA version.
    """
    record: dict[str, str | bool | None] = {}
    for package in _PACKAGES:
        try:
            record[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            record[package] = None
    on_cuda = device.startswith("cuda")
    record["python"] = platform.python_version()
    record["platform"] = platform.platform()
    record["cuda"] = torch.version.cuda if on_cuda else None
    record["device"] = torch.cuda.get_device_name(device) if on_cuda else _cpu_name()
    record["commit"], record["changed"] = commit_of(Path(__file__).parent)
    return record


def commit_of(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout that tracks ``folder``, and whether tracked files differ from it.

    (None, None) if ``folder`` is not tracked, such as a package installed inside another project's checkout.
    """

    def git(*arguments: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=10, env=environment
        ).stdout.strip()

    try:
        if not git("ls-files", "."):
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
