"""PSNR on the Y channel and in RGB."""

from torch import Tensor

from andfast.metrics.color import PEAK, YRange, image_pair, levels, luma_pair


def psnr_y(
    sr: Tensor, hr: Tensor, *, crop_border: int = 0, y_range: YRange = "studio", rounded: bool = False
) -> Tensor:
    """PSNR in dB of the Y channel, per image: 10 log10(255^2 / MSE); infinite for equal images.

    The peak is 255 for both ranges, by convention; as studio-range Y spans 219 of 255 levels, its PSNR is
    20 log10(255 / 219) = 1.32 dB above the full-range one of the same images.

    Args:
        sr, hr: equal shapes, (N, 3, H, W) or (3, H, W), RGB, each uint8 or floating point in [0, 1]. Floats are
            used as they are: clamp and quantize SR first to get the PSNR of a saved 8-bit image.
        crop_border: pixels excluded on each side.
        y_range: "studio" (16 to 235, the SR convention) or "full" (0 to 255).
        rounded: round Y to integers first.

    Returns:
        (N,), float64, on the inputs' device; (1,) for a single image.

    Raises:
        TypeError, ValueError: invalid images, mismatched shapes or devices.
    """
    a, b = luma_pair(sr, hr, crop_border=crop_border, y_range=y_range, rounded=rounded, min_size=1)
    mse = (a - b).square().mean(dim=(1, 2, 3))
    return 10 * (PEAK**2 / mse).log10()


def psnr_rgb(sr: Tensor, hr: Tensor, *, crop_border: int = 0) -> Tensor:
    """PSNR in dB over all three RGB channels, per image: 10 log10(255^2 / MSE); infinite for equal images.

    Unlike `psnr_y`, it sees color shifts of equal luma.

    Args:
        sr, hr, crop_border: as for `psnr_y`.

    Returns:
        (N,), float64, on the inputs' device; (1,) for a single image.

    Raises:
        TypeError, ValueError: invalid images, mismatched shapes or devices.
    """
    a, b = (levels(image) for image in image_pair(sr, hr, crop_border=crop_border, min_size=1))
    mse = (a - b).square().mean(dim=(1, 2, 3))
    return 10 * (PEAK**2 / mse).log10()


def mean_psnr(a: Tensor, b: Tensor) -> Tensor:
    """Mean over a batch of the PSNR in dB over all channels, of (N, C, H, W) values in [0, 1]; at most 200 dB.

    A scalar on the inputs' device; unlike :func:`psnr_y` it never reads a value on the host.
    """
    mse = (a.float() - b.float()).square().mean((1, 2, 3))
    return -10 * mse.clamp_min(1e-20).log10().mean()
