"""The photographs of the ablation: those that rows are trained on, and those held out for the test."""

import glob
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from andfast.data.images import UnusableImageError, decode
from andfast.data.sources import SourceFile, find_images

HELD_OUT_EVERY: Final = 5
"""Every fifth photograph by name is held out."""
MIN_PHOTOGRAPHS: Final = 10
"""Eight to train on and two to test on."""


@dataclass(frozen=True, eq=False)
class Photographs:
    """The photographs of a folder, split by their order.

    Attributes:
        folder: searched recursively.
        trained, held_out: SHA-256 of the files by name.
        crops: central square crops of the held-out photographs, (N, 3, S, S) uint8.
    """

    folder: Path
    trained: dict[str, str]
    held_out: dict[str, str]
    crops: Tensor

    @property
    def exclude(self) -> list[str]:
        """The setting ``data.exclude`` of a training."""
        return [glob.escape(name) for name in self.held_out]


def split_photographs(folder: Path, *, min_size: int, crop_size: int, scale: int) -> Photographs:
    """Split the photographs of a folder; files smaller than ``min_size`` on a side, or unreadable, are left out.

    Args:
        folder: searched recursively.
        min_size: side of the training crops.
        crop_size: side of the held-out crops; less if the smallest held-out photograph is smaller.
        scale: the side of the held-out crops is a multiple of it.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: fewer than MIN_PHOTOGRAPHS are left.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--photos must be a folder of photographs, was {folder}")
    usable, images = [], []
    for file in find_images([folder]):
        try:
            pixels = decode(file.path, min_size=min_size)
        except UnusableImageError:
            continue
        usable.append(file)
        if len(usable) % HELD_OUT_EVERY == 0:
            images.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    if len(usable) < MIN_PHOTOGRAPHS:
        raise ValueError(
            f"--photos must hold at least {MIN_PHOTOGRAPHS} photographs of {min_size}x{min_size} pixels or more, "
            f"{folder} holds {len(usable)}"
        )
    held_out = usable[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    names = [glob.escape(file.name) for file in held_out]
    kept = {file.path for file in find_images([folder], exclude=names)}
    return Photographs(
        folder,
        {file.name: _digest(file) for file in usable if file.path in kept},
        {file.name: _digest(file) for file in held_out},
        center_crops(images, crop_size, scale),
    )


def _digest(file: SourceFile) -> str:
    return hashlib.sha256(Path(file.path).read_bytes()).hexdigest()


def center_crops(images: Sequence[Tensor], size: int, scale: int) -> Tensor:
    """Central square crops, (N, 3, S, S); S is a multiple of the scale, and at most the smallest image's side."""
    side = min(size, *(min(image.shape[1:]) for image in images)) // scale * scale
    crops = []
    for image in images:
        top, left = ((length - side) // 2 for length in image.shape[1:])
        crops.append(image[:, top : top + side, left : left + side])
    return torch.stack(crops)
