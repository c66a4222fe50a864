"""Whether training with a configuration would run: weights, photographs, memory, disk and output folder."""

import os
import resource
import sys
from typing import Final

import torch

from andfast.config.errors import ConfigError
from andfast.config.machine import resolve_device
from andfast.config.parsing import parse_arguments
from andfast.config.schema import TrainConfig
from andfast.data.sources import find_images
from andfast.diagnosis.machine import Diagnosis, cached, gigabytes, host_memory, reachable, weights_url
from andfast.diagnosis.memory import checkpoint_bytes, free_bytes, photographs, step_memory
from andfast.losses import PerceptualLoss
from andfast.training.build import build_generator
from andfast.training.checkpoint import checkpoints

_HEADROOM: Final = 2  # maximum ratio of measured to estimated memory, on a CPU
_NO_OUTPUT: Final = "--output must be given"


def configuration(report: Diagnosis, arguments: list[str]) -> TrainConfig | None:
    """Read a configuration like training does; the output folder defaults to the current folder."""
    try:
        try:
            return parse_arguments(arguments)[0]
        except ConfigError as error:
            if not str(error).startswith(_NO_OUTPUT):
                raise
            return parse_arguments([*arguments, "--output=."])[0]
    except ConfigError as error:
        report.problem("Configuration", str(error))
        return None


def examine(report: Diagnosis, config: TrainConfig, name: str) -> None:
    """Report the requirements of a configuration; unmet ones are problems."""
    report.add(
        "Configuration",
        f"{name}: stages {', '.join(config.stages)}, batch {config.batch_size}, HR "
        f"{config.data.patch_size}, x{config.scale}, {config.precision} on {resolve_device(config.device)}",
    )
    report.data["configuration"] = {"name": name}
    _initial_weights(report, config)
    _vgg(report, config)
    pack = _photographs(report, config)
    _memory_and_disk(report, config, pack)
    folder = config.output.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        report.problem("", f"output must be a writable folder, {folder} is not")
    if checkpoints(config.output):
        report.add("", f"{config.output} contains a run: --resume continues it, --overwrite deletes it", "note")


def _initial_weights(report: Diagnosis, config: TrainConfig) -> None:
    if config.init_weights is None:
        return
    try:
        build_generator(config)
    except (ValueError, OSError) as error:
        report.problem("", str(error))
    else:
        report.add("", f"init_weights: {config.init_weights} fits", "ok")


def _vgg(report: Diagnosis, config: TrainConfig) -> None:
    """VGG19 of stage gan: load it if present, otherwise check that it can be downloaded."""
    if "gan" not in config.stages or config.loss.perceptual == 0:
        return
    weights = config.loss.vgg_weights
    file = cached("VGG19_Weights")
    if weights == "torchvision" and not file.is_file():
        url = weights_url("VGG19_Weights")
        if (reason := reachable(url)) is None:
            report.add("", f"VGG19 will be downloaded to {file}", "note")
        else:
            report.problem(
                "",
                f"VGG19 for stage gan is not at {file} and cannot be downloaded ({reason}): get {url}, or set "
                "loss.vgg_weights=FILE",
            )
        return
    try:
        note = PerceptualLoss(config.loss.perceptual_layers, weights=weights).weights_note
    except (ValueError, OSError) as error:
        report.problem("", str(error))
    else:
        report.add("", f"perceptual loss: VGG19 weights are {note}", "note" if weights == "random" else "ok")


def _photographs(report: Diagnosis, config: TrainConfig) -> int:
    """Check the photographs; returns the size of their pack in bytes."""
    data = config.data
    size = 0
    for setting, sources, min_size, include, exclude in (
        ("data.train", data.train, data.patch_size, data.include, data.exclude),
        (
            "validation.hr",
            config.validation.hr,
            config.validation.crop_size if config.validation.lr is None else 1,
            config.validation.include,
            config.validation.exclude,
        ),
    ):
        if not sources:
            continue
        try:
            files = find_images(sources, include=include, exclude=exclude)
        except (OSError, ValueError) as error:
            report.problem("", f"{setting}: {error}")
            continue
        counts = photographs(files, min_size)
        text = f"{setting}: {counts.usable} of {counts.files} images are at least {min_size} pixels high and wide"
        if not counts.usable:
            report.problem("", f"{text}, at least one must be ({', '.join(sources)})")
        else:
            report.add("", text + ("" if counts.exact else ", estimated from a sample"), "ok")
        report.data["configuration"][setting] = {"files": counts.files, "usable": counts.usable}
        if setting == "data.train":
            size = counts.bytes
    return size


def _memory_and_disk(report: Diagnosis, config: TrainConfig, pack: int) -> None:
    device = torch.device(resolve_device(config.device))
    try:
        estimates = [step_memory(config, stage) for stage in config.stages]
    except Exception as error:  # runs a whole step, so anything may be raised; the diagnosis goes on
        report.add("", f"memory: no estimate, {type(error).__name__}: {' '.join(str(error).split())}", "note")
        estimates = []
    process = _peak_rss()
    if device.type == "cuda":
        available, total = torch.cuda.mem_get_info()
        owner = "the GPU"
    else:
        available, total = host_memory()
        owner = "the machine"
    for estimate in estimates:
        text = (
            f"memory for stage {estimate.stage}, estimated from shapes: at least {gigabytes(estimate.total)} (weights "
            f"and optimizer {gigabytes(estimate.state)}, step {gigabytes(estimate.peak)})"
        )
        free = f"{owner} has {gigabytes(available)} of {gigabytes(total)} available"
        if estimate.total > available:
            report.problem("", f"{text}, but {free}; reduce batch_size and increase accumulate for the same step")
        else:
            tight = estimate.total * _HEADROOM > available
            report.add("", f"{text}; {free}" + (", may be too little" if tight else ""), "note" if tight else "ok")
    report.data["configuration"]["memory"] = {
        "estimated": {estimate.stage: {"state": estimate.state, "step": estimate.peak} for estimate in estimates},
        "available": available,
    }
    if device.type == "cuda":
        host, _ = host_memory()
        needed = process * (1 + min(config.data.workers, 1))
        text = f"CPU memory: about {gigabytes(needed)} for the process and its workers, {gigabytes(host)} available"
        if needed > host:
            report.problem("", text)
        else:
            report.add("", text, "ok")
    _disk(report, config, pack, checkpoint_bytes(config, estimates))


def _disk(report: Diagnosis, config: TrainConfig, pack: int, checkpoints_size: int) -> None:
    folder = config.data.pack or config.output / "data"
    existing = sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) if folder.is_dir() else 0
    pack = max(pack - existing, 0)
    for name, path, size in (
        ("the packed photographs", folder, pack),
        ("checkpoints", config.output, checkpoints_size),
    ):
        free = free_bytes(path)
        same_disk = free_bytes(config.output) == free_bytes(folder)
        needed = pack + checkpoints_size if same_disk else size
        text = f"disk: {name} require about {gigabytes(size)}, {gigabytes(free)} are free at {path}"
        report.data["configuration"][f"disk, {name}"] = {"estimated": size, "free": free, "path": str(path)}
        if needed > free:
            report.problem("", text)
        else:
            report.add("", text, "ok")


def _peak_rss() -> int:
    """Peak resident memory of this process in bytes, which has imported everything training imports."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
