"""Whether training with a configuration would run here: device, weights, photographs, memory, disk, run folder."""

import os
import resource
import sys
from typing import Final

import torch

from andfast.config.command_line import read_command_line
from andfast.config.errors import ConfigError
from andfast.config.machine import resolve_device
from andfast.config.schema import TrainConfig
from andfast.data.sources import find_images
from andfast.diagnosis.machine import Diagnosis, cached, gigabytes, memory, reachable, weights_url
from andfast.diagnosis.memory import checkpoint_bytes, free_bytes, photographs, step_memory
from andfast.losses import PerceptualLoss
from andfast.training.build import build_generator
from andfast.training.checkpoint import checkpoints

_HEADROOM: Final = 2  # what a step takes over its estimate at most, as measured on a CPU
_NO_OUTPUT: Final = "--output must be given"


def configuration(found: Diagnosis, arguments: list[str]) -> TrainConfig | None:
    """Read a configuration as training does; without an output folder, that of the current folder is taken."""
    try:
        try:
            return read_command_line(arguments)[0]
        except ConfigError as error:
            if not str(error).startswith(_NO_OUTPUT):
                raise
            return read_command_line([*arguments, "--output=."])[0]
    except ConfigError as error:
        found.problem("Configuration", str(error))
        return None


def examine(found: Diagnosis, config: TrainConfig, name: str) -> None:
    """Add what the configuration needs, and a problem for everything that is not there."""
    found.say(
        "Configuration",
        f"{name}: stages {', '.join(config.stages)}, batch {config.batch_size}, HR "
        f"{config.data.patch_size}, x{config.scale}, {config.precision} on {resolve_device(config.device)}",
    )
    found.data["configuration"] = {"name": name}
    _initial_weights(found, config)
    _vgg(found, config)
    pack = _photographs(found, config)
    _memory_and_disk(found, config, pack)
    folder = config.output.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        found.problem("", f"output must be a folder that can be written to, {folder} is not")
    if checkpoints(config.output):
        found.say("", f"{config.output} holds an earlier run: --resume goes on with it, --overwrite deletes it", "note")


def _initial_weights(found: Diagnosis, config: TrainConfig) -> None:
    if config.init_weights is None:
        return
    try:
        build_generator(config)
    except (ValueError, OSError) as error:
        found.problem("", str(error))
    else:
        found.say("", f"init_weights: {config.init_weights} fits", "ok")


def _vgg(found: Diagnosis, config: TrainConfig) -> None:
    """Stage gan's VGG19: read it where it is there, ask whether it can be had where it is not."""
    if "gan" not in config.stages or config.loss.perceptual == 0:
        return
    wanted = config.loss.vgg_weights
    file = cached("VGG19_Weights")
    if wanted == "torchvision" and not file.is_file():
        url = weights_url("VGG19_Weights")
        if (why := reachable(url)) is None:
            found.say("", f"VGG19 will be downloaded to {file}", "note")
        else:
            found.problem(
                "",
                f"VGG19 for stage gan is not at {file} and cannot be downloaded ({why}): get {url}, or name "
                "a file, loss.vgg_weights=FILE",
            )
        return
    try:
        note = PerceptualLoss(config.loss.perceptual_layers, weights=wanted).weights_note
    except (ValueError, OSError) as error:
        found.problem("", str(error))
    else:
        found.say("", f"perceptual loss: VGG19 weights are {note}", "note" if wanted == "random" else "ok")


def _photographs(found: Diagnosis, config: TrainConfig) -> int:
    """Bytes that the pack of the photographs will take."""
    data = config.data
    size = 0
    for what, sources, least, include, exclude in (
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
            found.problem("", f"{what}: {error}")
            continue
        there = photographs(files, least)
        text = f"{what}: {there.usable} of {there.files} pictures are {least} pixels high and wide or more"
        if not there.usable:
            found.problem("", f"{text}, one must be ({', '.join(sources)})")
        else:
            about = "" if there.exact else ", as far as a sample tells"
            found.say("", f"{text}{about}", "ok")
        found.data["configuration"][what] = {"files": there.files, "usable": there.usable}
        if what == "data.train":
            size = there.bytes
    return size


def _memory_and_disk(found: Diagnosis, config: TrainConfig, pack: int) -> None:
    device = torch.device(resolve_device(config.device))
    try:
        steps = [step_memory(config, stage) for stage in config.stages]
    except Exception as error:  # what runs a whole step may meet anything; the rest of the diagnosis goes on
        found.say("", f"memory: no estimate, {type(error).__name__}: {' '.join(str(error).split())}", "note")
        steps = []
    process = _resident()
    if device.type == "cuda":
        available, total = torch.cuda.mem_get_info()
        place = "the GPU"
    else:
        available, total = memory()
        place = "the machine"
    for one in steps:
        text = (
            f"memory for stage {one.stage}, an estimate from shapes: {gigabytes(one.total)} or more (weights and "
            f"optimizer {gigabytes(one.state)}, a step {gigabytes(one.peak)})"
        )
        free = f"{place} has {gigabytes(available)} of {gigabytes(total)} left"
        if one.total > available:
            found.problem("", f"{text}, but {free}; a smaller batch_size with accumulate does the same step")
        else:
            tight = one.total * _HEADROOM > available
            found.say("", f"{text}; {free}" + (", which may be too little" if tight else ""), "note" if tight else "ok")
    found.data["configuration"]["memory"] = {
        "estimated": {one.stage: {"state": one.state, "step": one.peak} for one in steps},
        "available": available,
    }
    if device.type == "cuda":
        host, _ = memory()
        wanted = process * (1 + min(config.data.workers, 1))
        text = f"CPU memory: about {gigabytes(wanted)} for the process and its workers, {gigabytes(host)} are available"
        if wanted > host:
            found.problem("", text)
        else:
            found.say("", text, "ok")
    _disk(found, config, pack, checkpoint_bytes(config, steps))


def _disk(found: Diagnosis, config: TrainConfig, pack: int, kept: int) -> None:
    folder = config.data.pack or config.output / "data"
    there = sum(one.stat().st_size for one in folder.glob("*") if one.is_file()) if folder.is_dir() else 0
    pack = max(pack - there, 0)
    for what, place, size in (("the packed photographs", folder, pack), ("checkpoints", config.output, kept)):
        free = free_bytes(place)
        same = free_bytes(config.output) == free_bytes(folder)
        needed = pack + kept if same else size
        text = f"disk: {what} take about {gigabytes(size)}, {gigabytes(free)} are free at {place}"
        found.data["configuration"][f"disk, {what}"] = {"estimated": size, "free": free, "path": str(place)}
        if needed > free:
            found.problem("", text)
        else:
            found.say("", text, "ok")


def _resident() -> int:
    """The most memory that this process has had, which has imported what training imports."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
