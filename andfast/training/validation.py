"""Validation on held-out images: scores during training, and at the end of a stage also under attack."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from andfast.adversary import Attack
from andfast.config.adversary import WITH_BALL
from andfast.config.schema import TrainConfig
from andfast.drawing import sample_sheet
from andfast.metrics import MAX_COLOR_SHIFT
from andfast.training.held_out import attack_crops, held_out_crops, input_images
from andfast.training.scoring import Images, bicubic, restore, score, values
from andfast.training.selection import Selection
from andfast.training.validation_set import ValidationSet

logger = logging.getLogger(__name__)

Quality = dict[str, dict[str, Any]]


def color_shift_warning(scores: Mapping[str, float], where: str) -> str | None:
    """A warning if the mean of a channel is off by more than MAX_COLOR_SHIFT levels; None otherwise."""
    shift = [scores[f"color_shift_{channel}"] for channel in "rgb"]
    if max(map(abs, shift)) <= MAX_COLOR_SHIFT:
        return None
    offsets = ", ".join(f"{channel} {value:+.1f}" for channel, value in zip("RGB", shift, strict=True))
    return f"{where}: colors are shifted by {offsets} levels of 255, above {MAX_COLOR_SHIFT:g}"


def validate(
    config: TrainConfig,
    attack: Attack,
    generator: nn.Module,
    validation: ValidationSet,
    *,
    selection: Selection | None = None,
    sheet: Path | None = None,
    heading: str = "",
) -> dict[str, float]:
    """Score ``generator`` on pairs or on clean LR; write a sheet if ``sheet`` is set and validation.sheet is above 0.

    Returns:
        The means of :func:`andfast.training.scoring.values`, and the score by which ``selection`` chooses.
    """
    settings = config.validation
    border = settings.border(config.scale)
    lr, hr = input_images(validation), validation.hr
    with attack.autocast_context(next(generator.parameters())):
        sr = restore(generator, lr)
    if settings.sheet and sheet is not None:
        write_sheet(
            sheet,
            validation.names[: settings.sheet],
            {"HR": hr, "LR": lr, "SR": sr},
            scale=config.scale,
            crop_border=border,
            heading=heading,
        )
    scores = score(sr, hr, crop_border=border)
    return scores if selection is None else scores | selection.score(sr, hr, crop_border=border)


def held_out_quality(
    config: TrainConfig,
    attack: Attack,
    generator: nn.Module,
    validation: ValidationSet,
    sheet: Path,
) -> Quality:
    """Score bicubic upscaling and ``generator`` on clean LR, on adversarially degraded LR, and on pairs if any.

    The degradation is the projected gradient ascent in the run's ball; a strategy without a ball has no such scores.

    Args:
        config: of the run.
        attack: the stage's.
        generator: G, in eval mode.
        validation: the held-out images.
        sheet: path of a sheet of the first crops, written if ``config.validation.sheet`` is above 0.

    Returns:
        "psnr_y" and "psnr_rgb" (dB) and "color_shift" (levels of 255, R, G and B), each of bicubic_X and sr_X, for X
        clean, degraded (with a ball) and pairs (if any).
    """
    settings = config.validation
    border = settings.border(config.scale)
    hr = held_out_crops(validation, settings.crops, settings.crop_size, config.scale)
    strategy = config.adversary.strategy
    degraded: Tensor | None = None
    if strategy in WITH_BALL:
        degraded, clean = attack_crops(attack, generator, hr, seed=config.seed)
    else:
        logger.info("held-out crops are not attacked: adversary.strategy %r has no ball", strategy)
        clean = attack.clean(hr).clamp(0, 1)
    quality: Quality = {"psnr_y": {}, "psnr_rgb": {}, "color_shift": {}}
    outputs: dict[str, list[Tensor]] = {}

    def score_both(name: str, lr: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        with attack.autocast_context(next(generator.parameters())):
            outputs[name] = restore(generator, lr)
        upscaled = [bicubic(image[None], config.scale)[0] for image in lr]
        for kind, images in (("bicubic", upscaled), ("sr", outputs[name])):
            scores = score(images, targets, crop_border=border)
            for metric in ("psnr_y", "psnr_rgb"):
                quality[metric][f"{kind}_{name}"] = scores[metric]
            quality["color_shift"][f"{kind}_{name}"] = [scores[f"color_shift_{channel}"] for channel in "rgb"]

    score_both("clean", list(clean), list(hr))
    if degraded is not None:
        score_both("degraded", list(degraded), list(hr))
    if validation.lr is not None:
        score_both("pairs", validation.lr, list(validation.hr))
    if settings.sheet:
        images: dict[str, Images] = {"HR": hr, "LR": clean, "SR": outputs["clean"]}
        restored = "clean"
        if degraded is not None:
            images = {"HR": hr, "clean LR": clean, "LR": degraded, "SR": outputs["degraded"]}
            restored = "adversarial"
        write_sheet(
            sheet,
            validation.names[: min(settings.sheet, len(hr))],
            images,
            scale=config.scale,
            crop_border=border,
            heading=f"Held-out crops; bicubic and SR restore the {restored} LR. PSNR-Y against HR.",
        )
    return quality


def write_sheet(
    path: Path,
    names: Sequence[str],
    images: Mapping[str, Images],
    *,
    scale: int,
    crop_border: int,
    heading: str,
) -> None:
    """Write a sheet with a row per name: HR, clean LR if present, LR, bicubic of LR, SR.

    Args:
        path: the PNG; its folder is created.
        names: names of the first images.
        images: "HR", "LR", "SR" and optionally "clean LR", each with at least as many images as names.
        scale: HR size over LR size.
        crop_border: HR pixels that the captions' PSNR ignores on each side.
        heading: a line above the sheet.
    """
    titles = ["HR", "LR", "bicubic", "SR"]
    if "clean LR" in images:
        titles = ["HR", "clean LR", "adversarial LR", "bicubic", "SR"]
    rows, captions = [], []
    for index, name in enumerate(names):
        hr, lr, sr = (images[key][index] for key in ("HR", "LR", "SR"))
        upscaled = bicubic(lr[None], scale)[0]
        inputs = [images["clean LR"][index], lr] if "clean LR" in images else [lr]
        rows.append([hr, *inputs, upscaled, sr])
        psnr = [values(image, hr, crop_border=crop_border)["psnr_y"] for image in (upscaled, sr)]
        captions.append([name, *([""] * len(inputs)), *(f"{value:.2f} dB" for value in psnr)])
    path.parent.mkdir(parents=True, exist_ok=True)
    sample_sheet(rows, path, titles=titles, captions=captions, heading=heading)
