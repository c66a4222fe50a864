"""RGB to BT.601 Y (luma), and validation of image pairs."""

from typing import Literal, get_args

import torch
from torch import Tensor

from andfast import checks

YRange = Literal["studio", "full"]

PEAK = 255.0

# BT.601: weights of R, G and B in [0, 1], and offset. Studio range, 16 to 235, is MATLAB's rgb2ycbcr and the SR
# convention; full range is JPEG's. 219 = 235 - 16.
_WEIGHTS: dict[YRange, tuple[tuple[float, float, float], float]] = {
    "studio": ((65.481, 128.553, 24.966), 16.0),
    "full": ((0.299 * PEAK, 0.587 * PEAK, 0.114 * PEAK), 0.0),
}


def luma(images: Tensor, *, y_range: YRange = "studio", rounded: bool = False) -> Tensor:
    """Y of RGB images on a scale of 0 to 255, in float64.

    Args:
        images: (N, 3, H, W), uint8 or floating point in [0, 1]; floats are neither clamped nor quantized.
        y_range: "studio", 16 + 65.481 R + 128.553 G + 24.966 B; or "full", 255 (0.299 R + 0.587 G + 0.114 B).
        rounded: round Y to integers, half up, as MATLAB does for uint8 images.

    Returns:
        (N, 1, H, W), float64.
    """
    checks.one_of("y_range", y_range, get_args(YRange))
    checks.tensor("images", images)
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (N, 3, H, W), was {checks.shape(images)}")
    if images.dtype != torch.uint8:
        checks.floating("images", images)
    rgb = images.double()
    if images.dtype == torch.uint8:
        rgb = rgb / PEAK
    (red, green, blue), offset = _WEIGHTS[y_range]
    y = offset + red * rgb[:, 0:1] + green * rgb[:, 1:2] + blue * rgb[:, 2:3]
    return (y + 0.5).floor() if rounded else y


def levels(images: Tensor) -> Tensor:
    """Images, uint8 or floating point in [0, 1], on a scale of 0 to 255 in float64; floats are not quantized."""
    return images.double() if images.dtype == torch.uint8 else images.double() * PEAK


def image_pair(sr: Tensor, hr: Tensor, *, crop_border: int, min_size: int) -> tuple[Tensor, Tensor]:
    """Validate SR and HR and crop the border; each becomes (N, 3, h, w) in its own dtype.

    Raises:
        TypeError, ValueError: not RGB images of equal shape, or smaller than ``min_size`` after cropping.
    """
    for name, image in (("sr", sr), ("hr", hr)):
        checks.tensor(name, image)
        if image.dim() not in {3, 4} or image.shape[-3] != 3:
            raise ValueError(f"{name} must have shape (N, 3, H, W) or (3, H, W), was {checks.shape(image)}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"{name} must be uint8, or floating point in [0, 1], was {image.dtype}")
    checks.has_shape("sr", sr, hr.shape, meaning="that of hr")
    checks.like("sr", sr, "hr", hr, dtype=False)
    if isinstance(crop_border, bool) or not isinstance(crop_border, int):
        raise TypeError(f"crop_border must be an integer, was {crop_border!r}")
    if crop_border < 0:
        raise ValueError(f"crop_border must be at least 0, was {crop_border}")
    height, width = hr.shape[-2:]
    if min(height, width) - 2 * crop_border < min_size:
        raise ValueError(
            f"sr and hr must be at least {min_size} pixels high and wide after cropping {crop_border} on each side, "
            f"was {checks.shape(sr)}"
        )
    window = (..., slice(crop_border, height - crop_border), slice(crop_border, width - crop_border))
    a, b = (image if image.dim() == 4 else image[None] for image in (sr, hr))
    return a[window], b[window]


def luma_pair(
    sr: Tensor, hr: Tensor, *, crop_border: int, y_range: YRange, rounded: bool, min_size: int
) -> tuple[Tensor, Tensor]:
    """Y of a validated and cropped pair, (N, 1, h, w) each; see `image_pair` and `luma`."""
    a, b = image_pair(sr, hr, crop_border=crop_border, min_size=min_size)
    return luma(a, y_range=y_range, rounded=rounded), luma(b, y_range=y_range, rounded=rounded)


def protocol(*, crop_border: int = 0, y_range: YRange = "studio", rounded: bool = False) -> str:
    """One-line description of the protocol: "Y of studio-range BT.601, unrounded, border 0"."""
    checks.one_of("y_range", y_range, get_args(YRange))
    return f"Y of {y_range}-range BT.601, {'rounded' if rounded else 'unrounded'}, border {crop_border}"
