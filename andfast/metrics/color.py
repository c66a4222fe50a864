"""RGB to the Y (luma) that PSNR and SSIM are taken on, and what a result says of how it was taken."""

from typing import Literal, get_args

import torch
from torch import Tensor

from andfast import checks as _check

YRange = Literal["studio", "full"]

PEAK = 255.0

# BT.601: the weights of R, G and B in [0, 1], and the offset. Studio range, 16 to 235, is MATLAB's rgb2ycbcr
# and the convention of the SR field; full range is JPEG's. 219 = 235 - 16.
_WEIGHTS: dict[YRange, tuple[tuple[float, float, float], float]] = {
    "studio": ((65.481, 128.553, 24.966), 16.0),
    "full": ((0.299 * PEAK, 0.587 * PEAK, 0.114 * PEAK), 0.0),
}


def luma(images: Tensor, *, y_range: YRange = "studio", rounded: bool = False) -> Tensor:
    """Y of RGB images, on the scale of 0 to 255, in float64.

    Args:
        images: (N, 3, H, W), uint8 or floating point in [0, 1]; floats are taken as they are, neither clamped
            nor quantised.
        y_range: "studio", 16 + 65.481 R + 128.553 G + 24.966 B; or "full", 255 (0.299 R + 0.587 G + 0.114 B).
        rounded: round Y to whole numbers, half up, as MATLAB does for uint8 images.

    Returns:
        (N, 1, H, W), float64.
    """
    _check.one_of("y_range", y_range, get_args(YRange))
    _check.tensor("images", images)
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (N, 3, H, W), was {_check.shape(images)}")
    if images.dtype != torch.uint8:
        _check.floating("images", images)
    rgb = images.double()
    if images.dtype == torch.uint8:
        rgb = rgb / PEAK
    (red, green, blue), offset = _WEIGHTS[y_range]
    y = offset + red * rgb[:, 0:1] + green * rgb[:, 1:2] + blue * rgb[:, 2:3]
    return (y + 0.5).floor() if rounded else y


def luma_pair(
    sr: Tensor, hr: Tensor, *, crop_border: int, y_range: YRange, rounded: bool, smallest: int
) -> tuple[Tensor, Tensor]:
    """Checked Y of SR and HR, each (N, 1, h, w), without `crop_border` pixels on every side.

    Raises ValueError or TypeError for what is no pair of images, or is smaller than `smallest` pixels after
    the cut.
    """
    for name, image in (("sr", sr), ("hr", hr)):
        _check.tensor(name, image)
        if image.dim() not in {3, 4} or image.shape[-3] != 3:
            raise ValueError(f"{name} must have shape (N, 3, H, W) or (3, H, W), was {_check.shape(image)}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"{name} must be uint8, or floating point in [0, 1], was {image.dtype}")
    _check.has_shape("sr", sr, hr.shape, meaning="that of hr")
    _check.like("sr", sr, "hr", hr, dtype=False)
    if isinstance(crop_border, bool) or not isinstance(crop_border, int):
        raise TypeError(f"crop_border must be a whole number of pixels, was {crop_border!r}")
    if crop_border < 0:
        raise ValueError(f"crop_border must be 0 or more pixels, was {crop_border}")
    height, width = hr.shape[-2:]
    if min(height, width) - 2 * crop_border < smallest:
        raise ValueError(
            f"sr and hr must be at least {smallest} pixels high and wide, not counting a crop_border of "
            f"{crop_border} on each side, was {_check.shape(sr)}"
        )
    pair = []
    for image in (sr, hr):
        batch = image if image.dim() == 4 else image[None]
        batch = batch[:, :, crop_border : height - crop_border, crop_border : width - crop_border]
        pair.append(luma(batch, y_range=y_range, rounded=rounded))
    return pair[0], pair[1]


def protocol(*, crop_border: int = 0, y_range: YRange = "studio", rounded: bool = False) -> str:
    """How a result was taken, for beside it: "Y of studio-range BT.601, unrounded, border 0"."""
    _check.one_of("y_range", y_range, get_args(YRange))
    return f"Y of {y_range}-range BT.601, {'rounded' if rounded else 'unrounded'}, border {crop_border}"
