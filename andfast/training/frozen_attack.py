"""The attack of a configuration on a given G under L1, without a run: for commands that show or calibrate it."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from andfast.adversary import Attack, Objective, ReuseOptions
from andfast.config.parsing import parse_arguments
from andfast.config.schema import TrainConfig
from andfast.nn import DegradationNetwork, RRDBNet
from andfast.training.build import AUTOCAST, build_attack_settings


def read_attack_settings(
    file: str | None, settings: Sequence[str], scale: int, defaults: Sequence[str] = ()
) -> TrainConfig:
    """Read the settings of F and the adversary; those of the run, such as its photographs, are not looked at.

    Args:
        file: a configuration; None for the defaults of ``andfast.train`` in fp32.
        settings: options of ``andfast.train``; they win.
        scale: of G.
        defaults: options of ``andfast.train`` without a file.

    Raises:
        ValueError: a setting is invalid, or the file is for another scale.
    """
    source = ["--config", file] if file else ["--data.train=[.]", "--precision=fp32", *defaults]
    config = parse_arguments([*source, *settings, "--output=."])[0]
    if file and config.scale != scale:
        raise ValueError(f"scale must equal that of the weights, {scale}, was {config.scale} in {file}")
    return config


def target_note(config: TrainConfig) -> list[str]:
    """A line for the terminal if the radii would follow a target in training; here they are as configured."""
    target = config.adversary.target_psnr
    return [] if target is None else [f"radii are as configured: adversary.target_psnr {target:g} applies to training"]


def check_precision(precision: str, device: torch.device) -> None:
    """Raise if G cannot run in a precision ("fp32", "bf16" or "fp16") on a device."""
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"--precision must be fp32 or bf16 on {device.type}, was fp16")


def build_frozen_attack(config: TrainConfig, generator: RRDBNet, device: torch.device, precision: str) -> Attack:
    """Build the attack; G is moved to the device and put into eval mode, F runs in fp32, every image has its own F."""
    return Attack(
        degradation=DegradationNetwork(generator.scale, padding=config.degradation.padding),
        generator=generator.to(device).eval(),
        objective=Objective(l1=1.0),
        settings=replace(build_attack_settings(config, "net"), images_per_network=1),
        reuse=ReuseOptions(closed_form_first_step=False, cast_weights=False),
        autocast=AUTOCAST[precision],
    )
