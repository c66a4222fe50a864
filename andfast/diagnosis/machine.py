"""Diagnosis of the machine: versions, devices, ops and their self-test, weight files."""

import math
import os
import platform
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import torch

import andfast
from andfast import torchvision_weights
from andfast.functional import dispatch
from andfast.functional import extension as compiled
from andfast.functional.selftest import self_test
from andfast.provenance import commit_of

PACKAGES: Final = ("torch", "triton", "torchvision", "numpy", "safetensors", "lpips", "spandrel", "scikit-image")
LPIPS_BACKBONES: Final = {
    "LPIPS alex": "AlexNet_Weights",
    "LPIPS vgg": "VGG16_Weights",
    "LPIPS squeeze": "SqueezeNet1_1_Weights",
}
"""torchvision's names of the LPIPS backbones."""

Mark = Literal["ok", "note", "problem", ""]


@dataclass
class Diagnosis:
    """Collected findings, in order.

    Attributes:
        lines: (section, mark, text), to print.
        data: machine-readable findings by section.
        problems: reasons why training would fail; empty if it would run.
    """

    lines: list[tuple[str, Mark, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, section: str, text: str, mark: Mark = "") -> None:
        """Add a line."""
        self.lines.append((section, mark, text))

    def problem(self, section: str, text: str) -> None:
        """Add a line that is also a reason why training would fail."""
        self.add(section, text, "problem")
        self.problems.append(text)


def gigabytes(size: float) -> str:
    """Format a number of bytes in MB or GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def versions(report: Diagnosis) -> None:
    """Versions of andfast (with the commit of a checkout), Python and packages."""
    packages: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            packages[package] = None
    commit, changed = commit_of(Path(andfast.__file__).parent)
    report.data["versions"] = {
        "andfast": andfast.__version__,
        "commit": commit,
        "changed": changed,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        **packages,
    }
    where = "" if commit is None else f" at {commit[:10]}{', changed' if changed else ''}"
    cuda = f" (CUDA {torch.version.cuda})" if torch.version.cuda else " (no CUDA)"
    report.add("Versions", f"andfast {andfast.__version__}{where}, Python {platform.python_version()}")
    installed = [f"{name} {version}{cuda if name == 'torch' else ''}" for name, version in packages.items() if version]
    report.add("", ", ".join(installed))
    if missing := [name for name, version in packages.items() if version is None]:
        report.add("", "not installed: " + ", ".join(missing))


def host_memory() -> tuple[int, int]:
    """Available and total host memory in bytes; (0, 0) if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return kilobytes["MemAvailable"] * 1024, kilobytes["MemTotal"] * 1024
    except (OSError, KeyError, ValueError, IndexError):
        pages = os.sysconf_names.get("SC_PHYS_PAGES")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if pages is not None else 0
        return total, total


def devices(report: Diagnosis) -> None:
    """CPU and GPUs with their memory."""
    available, total = host_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    report.data["devices"] = {"cpu": {"cores": cores, "memory_available": available, "memory": total}}
    report.add("Devices", f"cpu: {cores} cores, {gigabytes(available)} of {gigabytes(total)} memory available")
    if not torch.cuda.is_available():
        reason = "torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        report.add("", f"cuda: none, {reason}", "note")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        free, size = torch.cuda.mem_get_info(index)
        report.data["devices"][f"cuda:{index}"] = {
            "name": name,
            "compute_capability": list(capability),
            "memory_available": free,
            "memory": size,
        }
        version = ".".join(map(str, capability))
        text = f"cuda:{index}: {name}, compute capability {version}, {gigabytes(free)} of {gigabytes(size)} free"
        report.add("", text)


def extension(report: Diagnosis) -> None:
    """Whether the compiled library is available, and its CUDA architectures."""
    if (reason := compiled.why_missing()) is not None:
        report.data["extension"] = {"built": False, "error": reason}
        report.add("Extension", reason, "note")
        return
    architectures = compiled.cuda_archs()
    report.data["extension"] = {"built": True, "cuda_architectures": architectures}
    report.add("Extension", "built for the CPU " + (f"and CUDA ({architectures})" if architectures else "only"))
    if torch.cuda.is_available() and (reason := compiled.why_no_cuda_part()) is not None:
        report.add("", f"{reason}; blur_pool and convolutions run other implementations", "note")


def ops(report: Diagnosis, device_types: Sequence[str]) -> None:
    """Implementation of each op on these device types, and why others are unavailable."""
    report.data["ops"] = {}
    for device_type in device_types:
        unavailable = dispatch.unavailable(device_type)
        report.data["ops"][device_type] = {}
        for index, (op, used) in enumerate(dispatch.chosen(device_type).items()):
            reasons, basis = unavailable.get(op, {}), dispatch.basis(op, device_type)
            report.data["ops"][device_type][op] = {
                "used": used,
                "available": list(dispatch.available(op, device_type)),
                "unavailable": reasons,
                "unmeasured": basis,
            }
            details = "; ".join(f"no {name}: {reason}" for name, reason in reasons.items())
            section = f"Ops on {device_type}" if index == 0 else ""
            text = f"{op:<21} {used:<10}"
            if basis is not None:
                text += f", chosen by {basis}, not measured"
            report.add(section, text + (f" ({details})" if details else ""))


def tests(report: Diagnosis, device_type: str, dtypes: Sequence[torch.dtype]) -> None:
    """Self-test of the ops on a device; a failure of the implementation that "auto" selects is a problem."""
    results = self_test(device_type, dtypes)
    used = dispatch.chosen(device_type)
    report.data["self_test"] = [
        {
            **result._asdict(),
            "dtype": str(result.dtype).removeprefix("torch."),
            "error": result.error if math.isfinite(result.error) else None,  # JSON has no NaN
            "device": device_type,
        }
        for result in results
    ]
    failed = [result for result in results if not result.passed]
    seconds = sum(result.seconds for result in results)
    text = f"{len(results) - len(failed)} of {len(results)} passed on {device_type}, in {seconds:.1f} s"
    report.add("Self-test", f"{text}, against float64", "" if failed else "ok")
    for result in failed:
        line = f"{result.op}, {result.impl}, {str(result.dtype).removeprefix('torch.')}: {result.message}"
        if used[result.op] == result.impl:
            report.problem("", f"self-test failed: {line}")
        else:
            report.add("", f"failed, but not selected by auto: {line}", "note")


def weights(report: Diagnosis) -> None:
    """Weight files required by stage gan and LPIPS, and the cache folder."""
    report.data["weights"] = {}
    labels: dict[str, list[str]] = {"found": [], "missing": []}
    for label, name in {"VGG19 (stage gan)": "VGG19_Weights", **LPIPS_BACKBONES}.items():
        file = cached(name)
        report.data["weights"][label] = {"path": str(file), "found": file.is_file()}
        labels["found" if file.is_file() else "missing"].append(f"{label} {file.name}")
    section = "Weights"
    for state, names in labels.items():
        if names:
            report.add(section, f"{state}: {', '.join(names)}", "note" if state == "missing" else "")
            section = ""
    report.add("", f"cache: {Path(torch.hub.get_dir()) / 'checkpoints'} (set by TORCH_HOME)")


def cached(name: str) -> Path:
    """Path of torchvision's weights of that name in torch.hub's cache."""
    return torchvision_weights.cached(weights_url(name))


def weights_url(name: str) -> str:
    """URL of torchvision's first ImageNet weights of that name."""
    from torchvision import models  # noqa: PLC0415 - takes a second

    return str(getattr(models, name).IMAGENET1K_V1.url)


def reachable(url: str, *, seconds: float = 3.0) -> str | None:
    """None if the URL answers, otherwise why it cannot be downloaded."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return None
    except (OSError, ValueError) as error:
        return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
