"""Held-out images of a run: fixed crops of images, or LR/HR pairs."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from andfast import checks
from andfast.config.schema import TrainConfig
from andfast.data.images import SUFFIXES, UnusableImageError, decode
from andfast.data.sources import find_images, matches, resolve_source, walk_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Held-out images, decoded once.

    Attributes:
        names: a name per image, e.g. "astronaut.png"; further crops of it are "astronaut.png #2" and so on.
        hr: a uint8 batch (N, 3, P, P) of crops, or a tuple of (3, H, W) images (pairs).
        lr: LR of pairs, a tuple of (3, H / scale, W / scale) images; None for crops, whose LR the caller makes.
        scale: HR size over LR size.
    """

    names: tuple[str, ...]
    hr: Tensor | tuple[Tensor, ...]
    lr: tuple[Tensor, ...] | None
    scale: int

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_images(
        cls,
        images: Sequence[NDArray[np.uint8]],
        names: Sequence[str],
        *,
        crop_size: int,
        crops: int,
        scale: int,
        seed: int,
    ) -> "ValidationSet":
        """Take fixed square crops, spread over images.

        The first crop of an image is its center; further ones are at positions drawn from (seed, index of the image,
        number of the crop). Images take turns until there are enough crops; with fewer crops than images, evenly spaced
        images are used.

        Args:
            images: (H, W, 3) uint8 arrays.
            names: their names, for captions and errors.
            crop_size: side of a crop in HR pixels, a multiple of scale.
            crops: number of crops.
            scale: HR size over LR size.
            seed: for crops other than the centers.

        Raises:
            TypeError, ValueError: an invalid argument, or an image smaller than a crop; the message names it.
        """
        for argument, value in {"crop_size": crop_size, "crops": crops, "scale": scale}.items():
            checks.positive_int(argument, value)
        if crop_size % scale:
            raise ValueError(f"crop_size must be a multiple of scale, {scale}, was {crop_size}")
        if not images or len(images) != len(names):
            raise ValueError(
                f"images must be at least 1 and as many as names, was {len(images)} for {len(names)} names"
            )
        for image, name in zip(images, names, strict=True):
            _check_image(image, name, crop_size)

        hr: list[Tensor] = []
        crop_names: list[str] = []
        for number in range(math.ceil(crops / len(images))):
            count = min(len(images), crops - len(hr))
            for index in (i * len(images) // count for i in range(count)):
                image = images[index]
                spare = [side - crop_size for side in image.shape[:2]]
                if number:
                    corner = np.random.default_rng([seed % 2**64, index, number]).integers(0, spare, endpoint=True)
                    top, left = (int(offset) for offset in corner)
                else:
                    top, left = spare[0] // 2, spare[1] // 2
                hr.append(_tensor(image[top : top + crop_size, left : left + crop_size]))
                crop_names.append(names[index] + (f" #{number + 1}" if number else ""))
        return cls(tuple(crop_names), torch.stack(hr), None, scale)

    @classmethod
    def from_pairs(
        cls,
        hr_folder: str | Path,
        lr_folder: str | Path,
        scale: int,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> "ValidationSet":
        """Read images of two folders, searched recursively and paired by relative path, suffix included.

        Args:
            hr_folder, lr_folder: the folders.
            scale: HR size over LR size.
            include, exclude: see :func:`andfast.data.sources.find_images`; other images need no counterpart.

        Raises:
            TypeError, ValueError: invalid scale; no images; or an image that has no counterpart, cannot be read, or has
                an HR size other than scale times its LR size; the message names it.
            FileNotFoundError: a folder does not exist.
        """
        checks.positive_int("scale", scale)
        hr_names = _image_files("hr_folder", Path(hr_folder), include, exclude)
        lr_names = _image_files("lr_folder", Path(lr_folder), include, exclude)
        for name in sorted(hr_names ^ lr_names):
            folder, counterpart = (hr_folder, lr_folder) if name in hr_names else (lr_folder, hr_folder)
            raise ValueError(f"images must be paired by name, but {name} is in {folder} and not in {counterpart}")
        if not hr_names:
            raise ValueError(
                f"hr_folder must hold images ({', '.join(sorted(SUFFIXES))}) that match the patterns, if any; "
                f"{hr_folder} holds none"
            )
        names, hr, lr = tuple(sorted(hr_names)), [], []
        for name in names:
            high, low = _read(Path(hr_folder) / name), _read(Path(lr_folder) / name)
            if high.shape[1:] != (scale * low.shape[1], scale * low.shape[2]):
                raise ValueError(
                    f"{name} must be {scale} times as wide and high in {hr_folder} as in {lr_folder}, was "
                    f"{high.shape[2]}x{high.shape[1]} and {low.shape[2]}x{low.shape[1]}"
                )
            hr.append(high)
            lr.append(low)
        return cls(names, tuple(hr), tuple(lr), scale)


def load_validation_set(config: TrainConfig) -> ValidationSet:
    """Read the images that ``config.validation`` names; images that cannot be used are logged and skipped.

    Raises:
        TypeError, ValueError, FileNotFoundError: see :class:`ValidationSet`; or no image can be used.
    """
    settings = config.validation
    if settings.lr is not None:
        return ValidationSet.from_pairs(
            resolve_source(settings.hr[0]),
            resolve_source(settings.lr),
            config.scale,
            include=settings.include,
            exclude=settings.exclude,
        )
    images, names = [], []
    for file in find_images(settings.hr, include=settings.include, exclude=settings.exclude):
        try:
            images.append(decode(file.path, min_size=settings.crop_size))
            names.append(file.name)
        except UnusableImageError as error:
            logger.info("validation: %s is skipped: %s", file.name, error)
    if not images:
        raise ValueError(f"validation.hr must hold usable images, {', '.join(settings.hr)} had none")
    return ValidationSet.from_images(
        images,
        names,
        crop_size=settings.crop_size,
        crops=settings.crops,
        scale=config.scale,
        seed=config.seed,
    )


def _check_image(image: object, name: str, crop_size: int) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"images must be uint8 arrays, {name} was {kind}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"images must have shape (H, W, 3), {name} was {image.shape}")
    if min(image.shape[:2]) < crop_size:
        raise ValueError(
            f"images must be at least {crop_size} pixels (crop_size) high and wide, "
            f"{name} was {image.shape[1]}x{image.shape[0]}"
        )


def _image_files(argument: str, folder: Path, include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    """Relative paths of the images in a folder that the patterns select."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument} must be a folder, {folder} is not")
    names = walk_files(folder, SUFFIXES, unique=False)
    return {name for name in names if (not include or matches(name, include)) and not matches(name, exclude)}


def _read(path: Path) -> Tensor:
    try:
        return _tensor(decode(path))
    except UnusableImageError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) to a (3, H, W) copy."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())
