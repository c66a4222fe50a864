"""Held-out evaluation: which images, how G restores them, how well.

The protocol: SR is clamped to [0, 1] and rounded to 8 bits, as a saved picture would be; then PSNR and SSIM
on the Y of studio-range BT.601 (`andfast.metrics`). `bicubic` is the baseline under the same protocol.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from andfast import checks
from andfast.data.images import SUFFIXES, UnusableImageError, decode
from andfast.metrics import psnr_y, ssim_y

Images = Tensor | Sequence[Tensor]
"""A batch (N, 3, H, W), or a sequence of (3, H, W) of any sizes; uint8, or floating point in [0, 1]."""


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Held-out images, decoded once.

    Attributes:
        names: one a picture, e.g. "astronaut.png"; a photograph's further crops are "astronaut.png #2" and so
            on.
        hr: a uint8 batch (N, 3, P, P) of crops, or a tuple of (3, H, W) of their own sizes (pairs).
        lr: the LR versions of pairs, a tuple of (3, H/scale, W/scale); None for crops, whose LR the caller
            makes.
        scale: HR size over LR size.
    """

    names: tuple[str, ...]
    hr: Tensor | tuple[Tensor, ...]
    lr: tuple[Tensor, ...] | None
    scale: int

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_photographs(
        cls,
        images: Sequence[NDArray[np.uint8]],
        names: Sequence[str],
        *,
        crop_size: int,
        crops: int,
        scale: int,
        seed: int,
    ) -> "ValidationSet":
        """Fixed square crops, spread over photographs.

        Every photograph gives its centre first, then places drawn from (seed, its position in the list, the
        crop's number); one photograph after the other until there are enough. With fewer crops than
        photographs, the photographs are taken at even distances.

        Args:
            images: (H, W, 3) uint8 arrays.
            names: their names, for captions and errors.
            crop_size: side of a crop in HR pixels, a multiple of scale.
            crops: how many in all.
            scale: HR size over LR size.
            seed: of the places that are not centres.

        Raises:
            TypeError, ValueError: an impossible argument, or a photograph smaller than a crop, by name.
        """
        _positive(crop_size=crop_size, crops=crops, scale=scale)
        if crop_size % scale:
            raise ValueError(f"crop_size must be a multiple of scale, {scale}, was {crop_size}")
        if not images or len(images) != len(names):
            raise ValueError(f"images must be one or more, as many as names, was {len(images)} for {len(names)} names")
        for image, name in zip(images, names, strict=True):
            _check_photograph(image, name, crop_size)

        found: list[Tensor] = []
        found_names: list[str] = []
        for number in range(math.ceil(crops / len(images))):
            wanted = min(len(images), crops - len(found))
            for position in (i * len(images) // wanted for i in range(wanted)):
                image = images[position]
                spare = [side - crop_size for side in image.shape[:2]]
                if number:
                    places = np.random.default_rng([seed % 2**64, position, number]).integers(0, spare, endpoint=True)
                    top, left = (int(place) for place in places)
                else:
                    top, left = spare[0] // 2, spare[1] // 2
                found.append(_tensor(image[top : top + crop_size, left : left + crop_size]))
                found_names.append(names[position] + (f" #{number + 1}" if number else ""))
        return cls(tuple(found_names), torch.stack(found), None, scale)

    @classmethod
    def from_pairs(cls, hr_folder: str | Path, lr_folder: str | Path, scale: int) -> "ValidationSet":
        """Pictures of two folders, searched in depth, that pair up by relative path, suffix included.

        Raises:
            TypeError, ValueError: an impossible scale; a picture without its counterpart, that cannot be
            read, or whose
                HR size is not scale times its LR size, by name; no picture at all.
            FileNotFoundError: a folder that is none.
        """
        _positive(scale=scale)
        hr_names = _pictures("hr_folder", Path(hr_folder))
        lr_names = _pictures("lr_folder", Path(lr_folder))
        for name in sorted(hr_names ^ lr_names):
            there, missing = (hr_folder, lr_folder) if name in hr_names else (lr_folder, hr_folder)
            raise ValueError(
                f"every picture needs its pair under the same name: {name} is in {there}, not in {missing}"
            )
        if not hr_names:
            raise ValueError(f"hr_folder must hold pictures ({', '.join(sorted(SUFFIXES))}), {hr_folder} holds none")
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


def evaluate(generator: nn.Module, lr: Images, hr: Images, *, batch: int = 8, crop_border: int = 0) -> dict[str, float]:
    """How well G restores HR from LR: `score` of `restore`.

    Args:
        generator: maps (N, 3, H, W) in [0, 1] to (N, 3, H * scale, W * scale).
        lr, hr: the images, as many of each.
        batch: images at a time; only neighbours of one size share a batch.
        crop_border: HR pixels that the metrics leave out on every side.

    Returns:
        {"psnr_y": mean in dB, "ssim_y": mean}; infinite if an image is perfect, NaN if a pixel is.
    """
    return score(restore(generator, lr, batch=batch), hr, crop_border=crop_border)


def restore(generator: nn.Module, lr: Images, *, batch: int = 8) -> list[Tensor]:
    """G's output, image by image: (3, H * scale, W * scale) on the CPU, fp32, neither clamped nor rounded.

    G runs whole images on its own device, in eval mode, under inference_mode and in the precision of the
    autocast region that the caller is in. Every module has its train or eval mode back afterwards, an error
    included.
    """
    _positive(batch=batch)
    parameter = next(generator.parameters(), None)
    modes = [(module, module.training) for module in generator.modules()]
    found: list[Tensor] = []
    try:
        generator.eval()
        with torch.inference_mode():
            for images in _batches(lr, batch):
                sr = generator(images if parameter is None else images.to(parameter.device))
                found.extend(sr.float().cpu())
    finally:
        for module, training in modes:
            module.training = training
    # Copies made outside of inference_mode are ordinary tensors, which the caller can use for anything.
    return [image.clone() for image in found]


def score(sr: Images, hr: Images, *, crop_border: int = 0) -> dict[str, float]:
    """Mean PSNR-Y and SSIM-Y of images against HR, under this module's protocol.

    Raises:
        TypeError, ValueError: not as many SR as HR images, none at all, or a pair that does not fit.
    """
    each = [values(a, b, crop_border=crop_border) for a, b in _pairs(sr, hr)]
    return {name: math.fsum(one[name] for one in each) / len(each) for name in ("psnr_y", "ssim_y")}


def values(sr: Tensor, hr: Tensor, *, crop_border: int = 0) -> dict[str, float]:
    """PSNR-Y and SSIM-Y of one image (3, H, W) under this module's protocol, e.g. for a caption."""
    sr, hr = quantize(sr).to(hr.device), quantize(hr)
    return {
        "psnr_y": psnr_y(sr, hr, crop_border=crop_border).item(),
        "ssim_y": ssim_y(sr, hr, crop_border=crop_border).item(),
    }


def quantize(images: Tensor) -> Tensor:
    """Images clamped to [0, 1] and rounded to 8 bits, in float64; NaN stays NaN and shows in the metrics."""
    if images.dtype == torch.uint8:
        return images.double() / 255
    checks.floating("images", images)
    return (images.double().clamp(0, 1) * 255).round() / 255


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """Bicubic upscaling, the baseline: (N, 3, H, W) to (N, 3, H * scale, W * scale), fp32, clamped to [0, 1].

    Keys' cubic with a = -0.5, pixel centres aligned: what Pillow's BICUBIC and MATLAB's imresize compute
    inside the image, up to Pillow's rounding to 8 bits.
    """
    checks.tensor("lr", lr)
    _positive(scale=scale)
    if lr.dim() != 4:
        raise ValueError(f"lr must have shape (N, C, H, W), was {checks.shape(lr)}")
    x = lr.float() / 255 if lr.dtype == torch.uint8 else lr.float()
    # antialias=True does nothing to an enlargement but choose a = -0.5; without it PyTorch's cubic has a =
    # -0.75.
    return F.interpolate(x, scale_factor=float(scale), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def _batches(images: Images, size: int) -> Iterator[Tensor]:
    """Float batches of up to `size` neighbours that have one shape."""
    start = 0
    while start < len(images):
        stop = start + 1
        while stop < min(len(images), start + size) and images[stop].shape == images[start].shape:
            stop += 1
        batch = torch.stack([images[i] for i in range(start, stop)])
        yield batch.float() / 255 if batch.dtype == torch.uint8 else batch
        start = stop


def _pairs(sr: Images, hr: Images) -> Iterator[tuple[Tensor, Tensor]]:
    if len(sr) != len(hr) or not len(hr):
        raise ValueError(f"sr and hr must hold equally many images, one at least, was {len(sr)} and {len(hr)}")
    return zip(sr, hr, strict=True)


def _positive(**values: object) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, was {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, was {value}")


def _check_photograph(image: object, name: str, crop_size: int) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        was = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise TypeError(f"images must be uint8 arrays, {name} was {was}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"images must have shape (H, W, 3), {name} was {image.shape}")
    if min(image.shape[:2]) < crop_size:
        raise ValueError(
            f"images must be at least {crop_size} pixels (crop_size) high and wide, "
            f"{name} was {image.shape[1]}x{image.shape[0]}"
        )


def _pictures(argument: str, folder: Path) -> set[str]:
    """Relative paths of the pictures in a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument} must be a folder, there is none at {folder}")
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    }


def _read(path: Path) -> Tensor:
    try:
        return _tensor(decode(path))
    except UnusableImageError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) to a (3, H, W) copy."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())
