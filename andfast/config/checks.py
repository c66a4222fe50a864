"""The rules that a configuration must keep. Every error names the field, what it must be, and what it was."""

import math
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from andfast.config.schema import TrainConfig

VGG_LAYERS: Final = tuple(
    f"conv{block}_{layer}" for block, layers in enumerate((2, 2, 4, 4, 4), start=1) for layer in range(1, layers + 1)
)
"""The convolutions of VGG19, in order."""

VGG_DISCRIMINATOR_SIZES: Final = (128, 256)
MAX_SEED: Final = 2**63 - 1
_VGG_CHOICES: Final = ("torchvision", "random")
_SSIM_WINDOW: Final = 11
_RGB: Final = 3
_UNET_FACTOR: Final = 8  # three halvings, each undone by a doubling
_GENERATOR_FACTOR: Final = 4  # x2 unshuffles LR by 2, so HR must divide by 4 at either scale


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that is spelled most like ``word``; there is always one."""
    return get_close_matches(word, list(choices), n=1, cutoff=0.0)[0]


def choices_text(choices: Iterable[object]) -> str:
    """``'a', 'b' or 'c'``."""
    *first, last = [repr(choice) for choice in choices]
    return f"{', '.join(first)} or {last}" if first else last


def validate(config: TrainConfig) -> None:
    """Check a configuration in itself; nothing outside of it is looked at.

    Raises:
        ValueError: the first rule that is broken.
    """
    _stages(config)
    _run(config)
    _networks(config)
    _adversary(config)
    _losses(config)
    _data(config)
    _validation(config)


def validate_machine(config: TrainConfig) -> None:
    """Check what a configuration needs of this machine: the device, and the weight files that it names.

    Raises:
        ValueError: the first thing that is missing.
    """
    device = resolve_device(config.device)
    if config.precision == "fp16" and device != "cuda":
        raise ValueError(
            f"precision must be 'bf16' or 'fp32' without CUDA, was 'fp16' (device {config.device!r} is {device!r} here)"
        )
    if config.cuda_graph and device != "cuda":
        raise ValueError(
            f"cuda_graph must be false or null without CUDA, was true (device {config.device!r} is {device!r} here)"
        )
    if config.adversary.precision == "fp8" and config.ops == "auto" and (reason := _no_fp8(device)) is not None:
        raise ValueError(
            f"adversary.precision must be 'same' here, was 'fp8': {reason} (ops=reference emulates fp8, slowly)"
        )
    if config.init_weights is not None and not config.init_weights.is_file():
        raise ValueError(f"init_weights must be a weights file, was {str(config.init_weights)!r}, which is not a file")
    weights = config.loss.vgg_weights
    uses_vgg = "gan" in config.stages and config.loss.perceptual > 0
    if uses_vgg and weights not in _VGG_CHOICES and not Path(weights).is_file():
        raise ValueError(
            "loss.vgg_weights must be 'torchvision', 'random' or the path of a weights file, "
            f"was {weights!r}, which is not a file; did you mean {nearest(weights, _VGG_CHOICES)!r}?"
        )


def _no_fp8(device: str) -> str | None:
    """Why G's dense blocks cannot have 8-bit operands on this device, None if they can."""
    from andfast.functional import dispatch  # noqa: PLC0415  (torch, as below)
    from andfast.functional.residual_dense_block_fp8 import NAME  # noqa: PLC0415

    return dispatch.unavailable(device).get(NAME, {}).get("triton")


def resolve_device(name: str) -> str:
    """Return "cpu" or "cuda" for a ``device`` setting.

    Raises:
        ValueError: ``name`` is no such setting, or it is "cuda" and PyTorch sees no CUDA device.
    """
    import torch  # noqa: PLC0415  (--help and configuration errors come without its seconds)

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', was {name!r}")
    if name == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise ValueError("device must be 'auto' or 'cpu' here, was 'cuda': PyTorch sees no CUDA device")
    return "cpu"


def _number(name: str, value: float | None, rule: Callable[[float], bool], must: str) -> None:
    """Refuse a number that is not finite or breaks ``rule``; None stands for a default."""
    if value is None:
        return
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError(f"{name} must be {must} and below 2**63, was larger")
    if not (math.isfinite(value) and rule(value)):
        raise ValueError(f"{name} must be {must}, was {value}")


def _at_least(name: str, value: int | None, least: int) -> None:
    _number(name, value, lambda number: number >= least, f"at least {least}")


def _multiple(name: str, value: int, factor: int, why: str) -> None:
    if value % factor:
        below = value // factor * factor
        near = f"{below} or {below + factor}" if below else f"{factor}"
        raise ValueError(f"{name} must be divisible by {factor} ({why}), was {value}; the nearest are {near}")


def _stages(config: TrainConfig) -> None:
    if config.stages not in (["net"], ["gan"], ["net", "gan"]):
        raise ValueError(f"stages must be [net], [gan] or [net, gan], was [{', '.join(config.stages)}]")
    if config.stages == ["gan"] and config.init_weights is None:
        raise ValueError(
            "init_weights must name the weights of a trained ANDNet when stages is [gan], was null "
            "(or set stages to [net, gan])"
        )
    for name, stage in (("net", config.net), ("gan", config.gan)):
        _at_least(f"{name}.steps", stage.steps, 1)
        _number(f"{name}.lr", stage.lr, lambda rate: rate > 0, "a number above 0")
        for beta in stage.betas:
            if not 0 <= beta < 1:
                raise ValueError(f"{name}.betas must be two numbers from 0 to below 1, was {list(stage.betas)}")


def _run(config: TrainConfig) -> None:
    _number("seed", config.seed, lambda seed: 0 <= seed <= MAX_SEED, f"from 0 to {MAX_SEED}")
    _at_least("batch_size", config.batch_size, 1)
    _at_least("accumulate", config.accumulate, 1)
    _number("ema_decay", config.ema_decay, lambda decay: 0 <= decay < 1, "from 0 to below 1")
    _at_least("log_every", config.log_every, 1)
    _at_least("checkpoint_every", config.checkpoint_every, 1)
    _at_least("keep_checkpoints", config.keep_checkpoints, 1)
    if config.reuse.discriminator_pass and config.compile:
        raise ValueError(
            "reuse.discriminator_pass must be false or null with compile, was true: "
            "a compiled D cannot go backward twice"
        )


def _networks(config: TrainConfig) -> None:
    _at_least("generator.features", config.generator.features, 1)
    _at_least("generator.blocks", config.generator.blocks, 1)
    _at_least("generator.growth", config.generator.growth, 1)
    if config.generator.start == "interpolation":
        if config.scale != 4:
            raise ValueError(f"generator.start must be 'random' for scale {config.scale}, was 'interpolation'")
        _at_least("generator.features", config.generator.features, _RGB)
    _at_least("discriminator.features", config.discriminator.features, 1)
    _at_least("degradation.channels", config.degradation.channels, _RGB)
    shared = config.degradation.images_per_network
    _at_least("degradation.images_per_network", shared, 0)
    if shared and config.batch_size % shared:
        divisors = [number for number in range(1, config.batch_size + 1) if config.batch_size % number == 0]
        best = min(divisors, key=lambda number: abs(number - shared))
        raise ValueError(
            f"degradation.images_per_network must divide batch_size, {config.batch_size}, or be 0, "
            f"was {shared}; the nearest is {best}"
        )


def _adversary(config: TrainConfig) -> None:
    adversary = config.adversary
    _at_least("adversary.steps", adversary.steps, 1)
    if adversary.precision == "fp8" and config.precision == "fp32":
        raise ValueError(
            "adversary.precision must be 'same' with precision 'fp32', was 'fp8': 8-bit products are for runs in "
            "'bf16' or 'fp16'"
        )
    _number("adversary.step_size", adversary.step_size, lambda size: size > 0, "a number above 0 or null")
    _at_least("adversary.chunk_size", adversary.chunk_size, 0)
    separate = {
        "adversary.radius_convolution": adversary.radius_convolution,
        "adversary.radius_noise": adversary.radius_noise,
        "adversary.radius_slope": adversary.radius_slope,
    }
    for name, radius in separate.items():
        _number(name, radius, lambda radius: radius >= 0, "a number of at least 0 or null")
    if all(radius == 0 for radius in separate.values()):
        raise ValueError("adversary.radius_convolution, radius_noise or radius_slope must be above 0, all were 0")
    _number(
        "adversary.radius_joint",
        adversary.radius_joint,
        lambda radius: radius > 0,
        "a number above 0 or null",
    )
    if adversary.preset != "paper" and adversary.radius_joint is not None:
        raise ValueError(
            f"adversary.radius_joint must be null with adversary.preset {adversary.preset!r}, which has a "
            f"ball for each group, was {adversary.radius_joint}; set adversary.preset to 'paper' or use "
            "adversary.radius_convolution, radius_noise and radius_slope"
        )
    for name, radius in separate.items():
        if adversary.preset == "paper" and radius is not None:
            raise ValueError(
                f"{name} must be null with adversary.preset 'paper', which has one joint ball, was {radius}; "
                "use adversary.radius_joint"
            )


def _losses(config: TrainConfig) -> None:
    loss = config.loss
    for name, weight in (("l1", loss.l1), ("perceptual", loss.perceptual), ("gan", loss.gan)):
        _number(f"loss.{name}", weight, lambda weight: weight >= 0, "a number of at least 0")
    if "net" in config.stages and loss.l1 == 0:
        raise ValueError("loss.l1 must be above 0 for stage net, which has no other loss, was 0")
    if "gan" in config.stages and loss.l1 == loss.perceptual == 0:
        raise ValueError("loss.l1 or loss.perceptual must be above 0 for stage gan, both were 0")
    if loss.perceptual > 0 and not loss.perceptual_layers:
        raise ValueError("loss.perceptual_layers must name at least one layer while loss.perceptual is above 0, was {}")
    for layer, weight in loss.perceptual_layers.items():
        if layer not in VGG_LAYERS:
            raise ValueError(
                f"loss.perceptual_layers must name convolutions of VGG19, conv1_1 to conv5_4, was {layer!r}; "
                f"did you mean {nearest(layer, VGG_LAYERS)!r}?"
            )
        _number(f"loss.perceptual_layers.{layer}", weight, lambda weight: weight > 0, "a number above 0")
    if not loss.vgg_weights:
        raise ValueError("loss.vgg_weights must be 'torchvision', 'random' or the path of a weights file, was ''")


def _data(config: TrainConfig) -> None:
    size = config.data.patch_size
    if not config.data.train:
        raise ValueError("data.train must name at least one folder with photographs, was []")
    _at_least("data.patch_size", size, 1)
    _multiple("data.patch_size", size, _GENERATOR_FACTOR, f"scale {config.scale}")
    _at_least("data.workers", config.data.workers, 0)
    if "gan" not in config.stages:
        return
    if config.discriminator.kind == "vgg" and size not in VGG_DISCRIMINATOR_SIZES:
        best = min(VGG_DISCRIMINATOR_SIZES, key=lambda allowed: abs(allowed - size))
        raise ValueError(
            f"data.patch_size must be {choices_text(VGG_DISCRIMINATOR_SIZES)} with discriminator.kind 'vgg', "
            f"was {size}; the nearest is {best} (discriminator.kind 'unet' takes multiples of {_UNET_FACTOR})"
        )
    if config.discriminator.kind == "unet":
        _multiple("data.patch_size", size, _UNET_FACTOR, "discriminator.kind 'unet'")
    if config.loss.perceptual > 0:
        deepest = max(config.loss.perceptual_layers)
        least = 2 ** (int(deepest[4]) - 1)  # a halving between two blocks
        if size < least:
            raise ValueError(f"data.patch_size must be at least {least} for VGG layer {deepest}, was {size}")


def _validation(config: TrainConfig) -> None:
    settings = config.validation
    if settings.lr is not None and len(settings.hr) != 1:
        raise ValueError(
            "validation.hr must be one folder when validation.lr names the folder of its LR versions, "
            f"was [{', '.join(settings.hr)}]"
        )
    _at_least("validation.every", settings.every, 1)
    _at_least("validation.crops", settings.crops, 1)
    _at_least("validation.crop_border", settings.crop_border, 0)
    _at_least("validation.sheet", settings.sheet, 0)
    _multiple("validation.crop_size", settings.crop_size, _GENERATOR_FACTOR, f"scale {config.scale}")
    border = config.scale if settings.crop_border is None else settings.crop_border
    if settings.crop_size - 2 * border < _SSIM_WINDOW:
        raise ValueError(
            f"validation.crop_size must be at least {_SSIM_WINDOW + 2 * border} (SSIM's window and the "
            f"border of {border} on each side), was {settings.crop_size}"
        )
