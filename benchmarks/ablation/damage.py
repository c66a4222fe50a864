"""Damage that no row of the ablation is trained on: held-out HR crops become LR images with the faults of real ones.

Each condition is one kind of damage at one strength, in units that do not depend on the image: levels of 255, LR
pixels, JPEG quality. LR is rounded to 8 bits, as a camera's or a website's file would be. Noise is drawn from a fixed
seed, so that all rows, and all seeds of the training, are tested on the same images.
"""

import io
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from andfast.functional import blur_pool

CLEAN: Final = "clean"

Function = Callable[[Tensor, int, torch.Generator], Tensor]
"""(HR (1, 3, H, W) in [0, 1], scale, random generator) to LR (1, 3, H / scale, W / scale)."""


class Damage(NamedTuple):
    """One condition.

    Attributes:
        kind: conditions of a kind differ in strength only.
        description: kind and strength with its unit.
        function: applies it.
    """

    kind: str
    description: str
    function: Function


def add_noise(lr: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of ``level`` levels of 255, independent per channel."""
    return lr + torch.randn(lr.shape, generator=generator) * (level / 255)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Filter with a Gaussian of ``sigma`` pixels, cut off at four of them, with replicated borders."""
    reach = max(1, round(4 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    line = (line / line.sum()).to(images)
    channels = images.shape[1]
    padded = F.pad(images, [reach] * 4, mode="replicate")
    rows = F.conv2d(padded, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def sharpen(lr: Tensor, amount: float, sigma: float = 1.0) -> Tensor:
    """Unsharp mask: add ``amount`` times the difference from the image blurred by ``sigma`` pixels."""
    return lr + amount * (lr - blur(lr, sigma))


def jpeg(lr: Tensor, quality: int) -> Tensor:
    """Encode as JPEG with halved color resolution (4:2:0), and decode."""
    decoded = []
    for image in round_to_8_bits(lr):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        decoded.append(torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1))
    return torch.stack(decoded).float() / 255


def alias(hr: Tensor, scale: int, share: float) -> Tensor:
    """Mix clean pooling with decimation without a low-pass filter, which folds HR's high frequencies into LR.

    Decimation takes the mean of the two or, for an odd scale, the one pixel around each LR pixel's center per axis: it
    does not shift the image.
    """
    start, width = (scale // 2 - 1, 2) if scale % 2 == 0 else (scale // 2, 1)
    offsets = range(start, start + width)
    samples = [hr[..., row::scale, column::scale] for row in offsets for column in offsets]
    return share * torch.stack(samples).mean(0) + (1 - share) * blur_pool(hr, scale)


def fringe(hr: Tensor, scale: int, shift: float) -> Tensor:
    """Lateral chromatic aberration: magnify red and shrink blue so that corners move by ``shift`` LR pixels."""
    height, width = hr.shape[2:]
    corner = 0.5 * (height**2 + width**2) ** 0.5
    channels = []
    for channel, sign in enumerate((1, 0, -1)):
        image = hr[:, channel : channel + 1]
        if sign:
            factor = 1 / (1 + sign * shift * scale / corner)
            theta = torch.tensor([[[factor, 0, 0], [0, factor, 0]]], dtype=hr.dtype).expand(len(hr), -1, -1)
            grid = F.affine_grid(theta, [len(hr), 1, height, width], align_corners=False)
            image = F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=False)
        channels.append(image)
    return blur_pool(torch.cat(channels, dim=1).clamp(0, 1), scale)


def round_to_8_bits(images: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _noise(level: float) -> Damage:
    def function(hr: Tensor, scale: int, generator: torch.Generator) -> Tensor:
        return add_noise(blur_pool(hr, scale), level, generator)

    return Damage("Gaussian noise", f"Gaussian noise, {level:g} levels", function)


def _blur(sigma: float) -> Damage:
    return Damage("blur", f"blur, sigma {sigma:g} LR pixels", lambda hr, scale, _: blur(blur_pool(hr, scale), sigma))


def _jpeg(quality: int) -> Damage:
    return Damage("JPEG", f"JPEG, quality {quality}", lambda hr, scale, _: jpeg(blur_pool(hr, scale), quality))


def _sharpen(amount: float) -> Damage:
    return Damage(
        "sharpening halos",
        f"unsharp mask, amount {amount:g}, sigma 1",
        lambda hr, scale, _: sharpen(blur_pool(hr, scale), amount),
    )


def _alias(share: float) -> Damage:
    return Damage("aliasing", f"{share:.0%} decimation", lambda hr, scale, _: alias(hr, scale, share))


def _fringe(shift: float) -> Damage:
    return Damage(
        "chromatic aberration",
        f"red and blue moved by {shift:g} LR pixels in the corners",
        lambda hr, scale, _: fringe(hr, scale, shift),
    )


def _camera(hr: Tensor, scale: int, generator: torch.Generator) -> Tensor:
    return jpeg(sharpen(add_noise(blur(blur_pool(hr, scale), 0.8), 4, generator), 1.0), 80)


def _website(hr: Tensor, scale: int, generator: torch.Generator) -> Tensor:
    return jpeg(add_noise(alias(hr, scale, 0.7), 3, generator), 60)


DAMAGES: Final[dict[str, Damage]] = {
    CLEAN: Damage(CLEAN, "pooled HR, 8 bits", lambda hr, scale, _: blur_pool(hr, scale)),
    "noise 3": _noise(3),
    "noise 10": _noise(10),
    "blur 0.7": _blur(0.7),
    "blur 1.2": _blur(1.2),
    "jpeg 75": _jpeg(75),
    "jpeg 40": _jpeg(40),
    "halos 1": _sharpen(1),
    "halos 2": _sharpen(2),
    "aliasing 50%": _alias(0.5),
    "aliasing 100%": _alias(1),
    "fringes 0.5": _fringe(0.5),
    "fringes 1": _fringe(1),
    "mixture camera": Damage(
        "mixture", "blur of sigma 0.8, noise of 4 levels, unsharp mask of amount 1, JPEG of quality 80", _camera
    ),
    "mixture website": Damage("mixture", "70% decimation, noise of 3 levels, JPEG of quality 60", _website),
}
"""Conditions by name; "clean" is not counted as damage."""

_SEED: Final = 14


def damaged(name: str, hr: Tensor, scale: int) -> Tensor:
    """Apply a condition to HR crops.

    Args:
        name: from DAMAGES.
        hr: (N, 3, H, W), uint8; H and W divisible by the scale.
        scale: HR size over LR size.

    Returns:
        LR, (N, 3, H / scale, W / scale), uint8. The noise of an image depends on its position in the batch only.
    """
    images = []
    for index, image in enumerate(hr):
        generator = torch.Generator().manual_seed(_SEED * 1_000_003 + index)
        lr = DAMAGES[name].function(image[None].float() / 255, scale, generator)
        images.append(round_to_8_bits(lr))
    return torch.cat(images)
