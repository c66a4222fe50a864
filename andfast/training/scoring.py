"""Restore images with G and score the results, with bicubic upscaling as the baseline.

Protocol: G restores LR padded by replication (:mod:`andfast.inference.padding`); SR is clamped to [0, 1] and rounded to
8 bits, as a saved image would be; PSNR and SSIM are computed on the Y of studio-range BT.601 (:mod:`andfast.metrics`).
The baseline is scored by the same protocol.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from andfast import checks
from andfast.inference.padding import restore_padded
from andfast.metrics import color_shift, psnr_rgb, psnr_y, ssim_y
from andfast.resize import bicubic_upscale

Images = Tensor | Sequence[Tensor]
"""A batch (N, 3, H, W) or a sequence of (3, H, W) images of any sizes; uint8, or floating point in [0, 1]."""


def restore(generator: nn.Module, lr: Images, *, batch: int = 8) -> list[Tensor]:
    """G's output per image: (3, H * scale, W * scale), fp32, on the CPU, neither clamped nor rounded.

    Images are padded by replication, see :func:`andfast.inference.padding.restore_padded`. G runs on whole images on
    its own device, in eval mode, under inference_mode and the caller's autocast. The train or eval mode of each module
    is restored afterwards, also after an error.

    Args:
        generator: maps (N, 3, H, W) in [0, 1] to (N, 3, H * scale, W * scale).
        lr: the images.
        batch: images per batch; only consecutive images of equal size share one.
    """
    checks.positive_int("batch", batch)
    parameter = next(generator.parameters(), None)
    modes = [(module, module.training) for module in generator.modules()]
    outputs: list[Tensor] = []
    try:
        generator.eval()
        with torch.inference_mode():
            for images in _batches(lr, batch):
                x = images if parameter is None else images.to(parameter.device)
                sr = restore_padded(generator, x, multiple=getattr(generator, "unshuffle", 1))
                outputs.extend(sr.float().cpu())
    finally:
        for module, training in modes:
            module.training = training
    # Copies made outside of inference_mode are ordinary tensors, which autograd accepts.
    return [image.clone() for image in outputs]


def score(sr: Images, hr: Images, *, crop_border: int = 0) -> dict[str, float]:
    """Mean of :func:`values` over images; infinite if an image is perfect, NaN if a pixel is.

    Args:
        sr, hr: the images, in equal number.
        crop_border: HR pixels that the metrics ignore on each side.

    Raises:
        TypeError, ValueError: different numbers of images, no image, or a pair of different shapes.
    """
    scores = [values(a, b, crop_border=crop_border) for a, b in _pairs(sr, hr)]
    return {name: math.fsum(image[name] for image in scores) / len(scores) for name in scores[0]}


def values(sr: Tensor, hr: Tensor, *, crop_border: int = 0) -> dict[str, float]:
    """Scores of one image (3, H, W).

    Returns:
        psnr_y and psnr_rgb (dB), ssim_y, and color_shift_r, _g, _b: the mean of SR - HR per channel, in levels of 255.
    """
    sr, hr = quantize(sr).to(hr.device), quantize(hr)
    shift = color_shift(sr, hr, crop_border=crop_border)[0].tolist()
    return {
        "psnr_rgb": psnr_rgb(sr, hr, crop_border=crop_border).item(),
        **{f"color_shift_{channel}": value for channel, value in zip("rgb", shift, strict=True)},
        "psnr_y": psnr_y(sr, hr, crop_border=crop_border).item(),
        "ssim_y": ssim_y(sr, hr, crop_border=crop_border).item(),
    }


def quantize(images: Tensor) -> Tensor:
    """Clamp images to [0, 1] and round them to 8 bits, in float64; NaN stays NaN."""
    if images.dtype == torch.uint8:
        return images.double() / 255
    checks.floating("images", images)
    return (images.double().clamp(0, 1) * 255).round() / 255


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """Upscale (N, 3, H, W) by :func:`andfast.resize.bicubic_upscale`, clamped to [0, 1]."""
    return bicubic_upscale(lr, scale).clamp(0, 1)


def _batches(images: Images, size: int) -> Iterator[Tensor]:
    """Float batches of up to ``size`` consecutive images of equal shape."""
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
        raise ValueError(f"sr and hr must have the same number of images, at least 1, was {len(sr)} and {len(hr)}")
    return zip(sr, hr, strict=True)
