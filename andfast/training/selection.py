"""Which weights of a stage are its best ones: by PSNR in RGB, NIQE or LPIPS of the validation images."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from andfast.config.schema import Stage, TrainConfig
from andfast.data.store import PackedImages
from andfast.metrics import LPIPS, NIQE, UndefinedNIQEError, fit_niqe
from andfast.metrics.niqe import BLOCK
from andfast.training.scoring import quantize
from andfast.training.validation_set import ValidationSet

logger = logging.getLogger(__name__)

PSNR: Final = "psnr_rgb"
_PHOTOGRAPHS: Final = 32
_PHOTOGRAPH_SIZE: Final = 6 * BLOCK


@dataclass(frozen=True)
class Selection:
    """The validation score that chooses the best weights, and the metric that computes it.

    Attributes:
        metric: "psnr_rgb", "niqe" or "lpips", a name in the scores of a validation.
        niqe, lpips: the metric, if it is chosen.
    """

    metric: str = PSNR
    niqe: NIQE | None = None
    lpips: LPIPS | None = None

    def score(self, sr: Sequence[Tensor], hr: Sequence[Tensor] | Tensor, *, crop_border: int) -> dict[str, float]:
        """The means of NIQE or LPIPS over images (3, H, W), by name; empty for PSNR, which every validation has.

        Images without enough texture for NIQE are left out; NaN if none is left.
        """
        if self.niqe is not None:
            return {"niqe": _mean(_niqe_values(self.niqe, sr, crop_border))}
        if self.lpips is not None:
            pairs = ((quantize(image).float(), quantize(target).float()) for image, target in zip(sr, hr, strict=True))
            return {"lpips": _mean(self.lpips(*pair, crop_border=crop_border).item() for pair in pairs)}
        return {}

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a score is better than the best so far: higher for PSNR, lower for NIQE and LPIPS; never NaN."""
        if math.isnan(value) or best is None:
            return not math.isnan(value)
        return value > best if self.metric == PSNR else value < best


def build_selection(config: TrainConfig, stage: Stage, validation: ValidationSet, images: PackedImages) -> Selection:
    """How a stage chooses its best weights.

    Without ``validation.best_by``, stage gan uses NIQE, since a GAN loses PSNR as its pictures get better; but PSNR
    where NIQE is undefined: for validation crops of less than two blocks, or too few sharp training photographs.

    Raises:
        FileNotFoundError, ValueError: weights or parameters of the metric are missing or damaged, or cannot be fitted.
    """
    settings = config.validation
    best_by = settings.best_by
    if best_by is None:
        best_by = "niqe" if stage == "gan" else "psnr"
        if best_by == "niqe" and validation.lr is None and not settings.holds_niqe_blocks(config.scale):
            logger.info(
                "stage gan: PSNR chooses the best weights; NIQE requires validation.crop_size of at least %d",
                settings.min_crop_size_for_niqe(config.scale),
            )
            best_by = "psnr"
    if best_by == "psnr":
        return Selection()
    if (selection := _from_files(config)) is not None:
        return selection
    try:
        parameters = fit_niqe(_photographs(images), source="the training photographs")
    except ValueError as error:
        if settings.best_by == "niqe":
            raise ValueError(
                "validation.niqe_parameters must be a file with NIQE's pristine model, was null, and it cannot be "
                f"fitted to the training photographs: {error}"
            ) from error
        logger.info("stage %s: PSNR chooses the best weights; NIQE cannot be fitted: %s", stage, error)
        return Selection()
    logger.info("stage %s: NIQE, fitted to the training photographs, chooses the best weights", stage)
    return Selection("niqe", niqe=NIQE(parameters))


def check_selection(config: TrainConfig) -> None:
    """Check the files of NIQE and LPIPS before a run begins.

    Raises:
        FileNotFoundError, ValueError: weights or parameters of the metric are missing or damaged.
    """
    _from_files(config)


def _from_files(config: TrainConfig) -> Selection | None:
    """The selection by a metric whose weights or parameters are in files; None if there is none."""
    settings = config.validation
    if settings.best_by == "lpips":
        try:
            return Selection("lpips", lpips=LPIPS(weights=settings.lpips_weights))
        except ModuleNotFoundError as error:
            raise ValueError(f"validation.best_by must be 'psnr' or 'niqe' here, was 'lpips': {error}") from error
    if settings.niqe_parameters is not None:
        try:
            return Selection("niqe", niqe=NIQE(settings.niqe_parameters))
        except ModuleNotFoundError as error:
            raise ValueError(f"validation.niqe_parameters must be a .npz file here: {error}") from error
    return None


def _photographs(images: PackedImages) -> Iterator[Tensor]:
    """The centers of some training photographs, evenly spaced, (3, H, W) uint8."""
    count = min(len(images), _PHOTOGRAPHS)
    for number in range(count):
        image = images[number * len(images) // count]
        top, left = (max(side - _PHOTOGRAPH_SIZE, 0) // 2 for side in image.shape[:2])
        center = image[top : top + _PHOTOGRAPH_SIZE, left : left + _PHOTOGRAPH_SIZE]
        yield torch.from_numpy(center.transpose(2, 0, 1).copy())


def _niqe_values(niqe: NIQE, sr: Sequence[Tensor], crop_border: int) -> Iterator[float]:
    for image in sr:
        try:
            yield niqe(quantize(image), crop_border=crop_border)
        except UndefinedNIQEError:
            continue


def _mean(values: Iterator[float]) -> float:
    scores = list(values)
    return math.fsum(scores) / len(scores) if scores else math.nan
