"""What a machine has for training, and what it lacks: versions, devices, ops and their self-test, files of weights."""

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
from andfast.functional.selftest import self_test
from andfast.training.logging import commit_of

PACKAGES: Final = ("torch", "triton", "torchvision", "numpy", "safetensors", "lpips", "spandrel", "scikit-image")
LPIPS_BACKBONES: Final = {
    "LPIPS alex": "AlexNet_Weights",
    "LPIPS vgg": "VGG16_Weights",
    "LPIPS squeeze": "SqueezeNet1_1_Weights",
}
"""torchvision's names for the backbones of LPIPS."""

Mark = Literal["ok", "note", "problem", ""]


@dataclass
class Diagnosis:
    """Findings in the order in which they were made.

    Attributes:
        lines: (section, mark, text) for people.
        data: the same for programs, by section.
        problems: why training would not run; empty if it would.
    """

    lines: list[tuple[str, Mark, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def say(self, section: str, text: str, mark: Mark = "") -> None:
        """Add a line."""
        self.lines.append((section, mark, text))

    def problem(self, section: str, text: str) -> None:
        """Add a line, and a reason why training would not run."""
        self.say(section, text, "problem")
        self.problems.append(text)


def gigabytes(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def versions(found: Diagnosis) -> None:
    """andfast, its commit in a checkout, Python, torch and what else is there."""
    packages: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            packages[package] = None
    commit, changed = commit_of(Path(andfast.__file__).parent)
    found.data["versions"] = {
        "andfast": andfast.__version__,
        "commit": commit,
        "changed": changed,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        **packages,
    }
    where = "" if commit is None else f" at {commit[:10]}{', changed' if changed else ''}"
    cuda = f" (CUDA {torch.version.cuda})" if torch.version.cuda else " (no CUDA)"
    found.say("Versions", f"andfast {andfast.__version__}{where}, Python {platform.python_version()}")
    have = [f"{name} {version}{cuda if name == 'torch' else ''}" for name, version in packages.items() if version]
    found.say("", ", ".join(have))
    if missing := [name for name, version in packages.items() if version is None]:
        found.say("", "not installed: " + ", ".join(missing))


def memory() -> tuple[int, int]:
    """Bytes of the machine's memory that are available, and all; (0, 0) where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        return kilobytes["MemAvailable"] * 1024, kilobytes["MemTotal"] * 1024
    except (OSError, KeyError, ValueError, IndexError):
        pages = os.sysconf_names.get("SC_PHYS_PAGES")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if pages is not None else 0
        return total, total


def devices(found: Diagnosis) -> None:
    """The CPU and the GPUs, with their memory."""
    available, total = memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found.data["devices"] = {"cpu": {"cores": cores, "memory_available": available, "memory": total}}
    found.say("Devices", f"cpu: {cores} cores, {gigabytes(available)} of {gigabytes(total)} memory available")
    if not torch.cuda.is_available():
        why = "torch is built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        found.say("", f"cuda: none, {why}", "note")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        free, size = torch.cuda.mem_get_info(index)
        found.data["devices"][f"cuda:{index}"] = {
            "name": name,
            "compute_capability": list(capability),
            "memory_available": free,
            "memory": size,
        }
        version = ".".join(map(str, capability))
        text = f"cuda:{index}: {name}, compute capability {version}, {gigabytes(free)} of {gigabytes(size)} free"
        found.say("", text)


def extension(found: Diagnosis) -> None:
    """Whether the compiled extension is there, and for what it was built."""
    try:
        from andfast import _C  # noqa: PLC0415
    except ImportError as error:
        found.data["extension"] = {"built": False, "error": str(error)}
        found.say("Extension", f"andfast._C is not there: {error}", "note")
        return
    architectures = str(getattr(_C, "CUDA_ARCHS", ""))
    found.data["extension"] = {"built": True, "cuda_architectures": architectures}
    found.say("Extension", "built for the CPU " + (f"and CUDA ({architectures})" if architectures else "only"))


def ops(found: Diagnosis, device_types: Sequence[str]) -> None:
    """The implementation that each op has on these devices, and why it has not the others."""
    found.data["ops"] = {}
    for place in device_types:
        reasons = dispatch.unavailable(place)
        found.data["ops"][place] = {}
        for number, (op, used) in enumerate(dispatch.chosen(place).items()):
            why_not = reasons.get(op, {})
            found.data["ops"][place][op] = {
                "used": used,
                "available": list(dispatch.available(op, place)),
                "unavailable": why_not,
            }
            others = "; ".join(f"no {name}: {reason}" for name, reason in why_not.items())
            section = f"Ops on {place}" if number == 0 else ""
            found.say(section, f"{op:<21} {used:<10}" + (f" ({others})" if others else ""))


def tests(found: Diagnosis, device_type: str, dtypes: Sequence[torch.dtype]) -> None:
    """The ops' self-test on a device; a failure of what "auto" takes is a problem."""
    results = self_test(device_type, dtypes)
    used = dispatch.chosen(device_type)
    found.data["self_test"] = [
        {
            **one._asdict(),
            "dtype": str(one.dtype).removeprefix("torch."),
            "error": one.error if math.isfinite(one.error) else None,  # JSON has no NaN
            "device": device_type,
        }
        for one in results
    ]
    failed = [one for one in results if not one.passed]
    seconds = sum(one.seconds for one in results)
    text = f"{len(results) - len(failed)} of {len(results)} passed on {device_type}, in {seconds:.1f} s"
    found.say("Self-test", f"{text}, against float64", "" if failed else "ok")
    for one in failed:
        line = f"{one.op}, {one.impl}, {str(one.dtype).removeprefix('torch.')}: {one.message}"
        if used[one.op] == one.impl:
            found.problem("", f"the self-test failed: {line}")
        else:
            found.say("", f"failed, but is not used by itself: {line}", "note")


def weights(found: Diagnosis) -> None:
    """The files of weights that stage gan and LPIPS want, and where they are looked for."""
    found.data["weights"] = {}
    texts: dict[str, list[str]] = {"found": [], "missing": []}
    for label, name in {"VGG19 (stage gan)": "VGG19_Weights", **LPIPS_BACKBONES}.items():
        file = cached(name)
        found.data["weights"][label] = {"path": str(file), "found": file.is_file()}
        texts["found" if file.is_file() else "missing"].append(f"{label} {file.name}")
    section = "Weights"
    for state, some in texts.items():
        if some:
            found.say(section, f"{state}: {', '.join(some)}", "note" if state == "missing" else "")
            section = ""
    found.say("", f"looked for in {Path(torch.hub.get_dir()) / 'checkpoints'}; TORCH_HOME moves it")


def cached(name: str) -> Path:
    """Where torch.hub keeps torchvision's weights of that name."""
    return torchvision_weights.cached(weights_url(name))


def weights_url(name: str) -> str:
    """Where torchvision gets the first ImageNet weights of that name."""
    from torchvision import models  # noqa: PLC0415  (a second, which only this needs)

    return str(getattr(models, name).IMAGENET1K_V1.url)


def reachable(url: str, *, seconds: float = 3.0) -> str | None:
    """Why a file cannot be downloaded from here, or None if its server answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
            return None
    except (OSError, ValueError) as error:
        return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
