"""NIQE, the natural image quality evaluator (Mittal, Soundararajan and Bovik 2013): no reference, lower is better.

As in the authors' release: MSCN coefficients of Y at two scales (section II-A); for each 96 x 96 block, asymmetric
generalized Gaussian fits to the coefficients and to their products with four neighbours (II-C), 18 features per scale;
mean and covariance of the features over the blocks; distance to the mean and covariance of sharp blocks of pristine
photographs (equation 10).
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast import checks
from andfast.metrics.color import PEAK, YRange, luma
from andfast.metrics.niqe_parameters import FEATURES, NIQEParameters, read_niqe_parameters
from andfast.resize import cubic

BLOCK = 96
"""Block size in pixels at the first scale; 48 at the second."""
SHARPNESS = 0.75
"""Fitting uses the blocks sharper than this fraction of their photograph's sharpest block."""

_WINDOW, _SIGMA = 7, 7 / 6
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_CHUNK = 32  # blocks processed at a time, to stay in cache
# Flat neighbourhoods have coefficients of 0 up to rounding, whose sign would assign them to a side of the fit: up to
# 0.2 of NIQE on images with flat areas. Coefficients elsewhere are far above, as Y is integral.
_ZERO = 1e-9


class UndefinedNIQEError(ValueError):
    """The image is too small or too flat for NIQE; the message states which."""


class NIQE:
    """NIQE with respect to a pristine model.

    Y is rounded to integers, as in BasicSR and the authors' MATLAB code (which works on uint8); BasicSR uses
    studio-range Y, the authors full-range Y.

    Args:
        parameters: the pristine model, see `fit_niqe`, or its file, see `read_niqe_parameters`.
    """

    def __init__(self, parameters: NIQEParameters | str | Path) -> None:
        self.parameters = parameters if isinstance(parameters, NIQEParameters) else read_niqe_parameters(parameters)

    def __call__(self, image: Tensor, *, crop_border: int = 0, y_range: YRange = "studio") -> float:
        """NIQE of one image.

        Args:
            image: (3, H, W), RGB, uint8 or floating point in [0, 1].
            crop_border: pixels excluded on each side.
            y_range: "studio" (BasicSR) or "full" (the authors and pyiqa).

        Raises:
            UndefinedNIQEError: fewer than two whole blocks, or fewer than two with texture.
            TypeError, ValueError: not an RGB image.
        """
        features, _ = niqe_features(image, crop_border=crop_border, y_range=y_range)
        defined = features[~features.isnan().any(dim=1)]
        if len(defined) < 2:
            raise UndefinedNIQEError(f"flat: {len(defined)} of {len(features)} blocks have texture, NIQE requires 2")
        # As in the authors' code, the mean uses what partly flat blocks define; covariance needs whole rows.
        difference = features.nanmean(dim=0) - torch.from_numpy(self.parameters.mean)
        covariance = (torch.cov(defined.T) + torch.from_numpy(self.parameters.covariance)) / 2
        inverse = torch.linalg.pinv(covariance, hermitian=True)
        return math.sqrt(max(float(difference @ inverse @ difference), 0.0))


def fit_niqe(images: Iterable[Tensor], *, source: str = "", y_range: YRange = "studio") -> NIQEParameters:
    """Fit the pristine model to photographs, using the blocks sharper than 0.75 of the sharpest, as the authors do.

    Args:
        images: (3, H, W) each, uint8 or floating point in [0, 1]. Photographs smaller than one block are skipped.
        source: value of `NIQEParameters.source`.
        y_range: as for `NIQE`; must be the same for both.

    Raises:
        ValueError: fewer than 37 sharp blocks, the minimum for a covariance of 36 features.
    """
    sharp_blocks = []
    for image in images:
        if min(image.shape[-2:]) < BLOCK:
            continue
        features, sharpness = niqe_features(image, crop_border=0, y_range=y_range, min_blocks=1)
        sharp_blocks.append(features[sharpness > SHARPNESS * sharpness.max()])
    features = torch.cat(sharp_blocks) if sharp_blocks else torch.empty(0, FEATURES)
    features = features[~features.isnan().any(dim=1)]
    if len(features) <= FEATURES:
        raise ValueError(
            f"images must contain more than {FEATURES} sharp blocks of {BLOCK}x{BLOCK} pixels, "
            f"was {len(features)} in {len(sharp_blocks)} photographs of that size"
        )
    return NIQEParameters(features.mean(dim=0).numpy(), torch.cov(features.T).numpy(), source or "fitted")


def niqe_features(
    image: Tensor, *, crop_border: int = 0, y_range: YRange = "studio", min_blocks: int = 2
) -> tuple[Tensor, Tensor]:
    """Features (blocks, 36) and sharpness (blocks,) of each block, float64 on the CPU.

    Features that are undefined for flat blocks are NaN. Rows and columns beyond the last whole block are ignored.

    Raises:
        UndefinedNIQEError: fewer than ``min_blocks`` whole blocks.
    """
    checks.tensor("image", image)
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"image must have shape (3, H, W), was {checks.shape(image)}")
    height, width = (side - 2 * crop_border for side in image.shape[1:])
    rows, columns = max(height, 0) // BLOCK, max(width, 0) // BLOCK
    if rows * columns < min_blocks:
        raise UndefinedNIQEError(
            f"too small: {max(width, 0)}x{max(height, 0)} pixels contain {rows * columns} blocks of {BLOCK}x{BLOCK}, "
            f"NIQE requires {min_blocks}"
        )
    cropped = image[:, crop_border : crop_border + rows * BLOCK, crop_border : crop_border + columns * BLOCK]
    y = luma(cropped.cpu()[None], y_range=y_range, rounded=True)

    features, sharpness = [], torch.empty(0)
    for scale in (1, 2):
        mean = _local_mean(y)
        deviation = (_local_mean(y * y) - mean * mean).abs().sqrt()
        mscn = (y - mean) / (deviation + 1)
        blocks = _blocks(torch.where(mscn.abs() < _ZERO, 0.0, mscn), BLOCK // scale)
        features.append(torch.cat([_block_features(chunk) for chunk in blocks.split(_CHUNK)]))
        if scale == 1:
            sharpness = _blocks(deviation, BLOCK).mean(dim=(1, 2))
            y = _halve(y / PEAK) * PEAK
    return torch.cat(features, dim=1), sharpness


def _local_mean(y: Tensor) -> Tensor:
    """Local mean of (1, 1, H, W) under the Gaussian window, with replicated edges."""
    line = torch.exp(-((torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    line = line / line.sum()
    padded = F.pad(y, [_WINDOW // 2] * 4, mode="replicate")
    return _correlate(_correlate(padded, line, -2, 1), line, -1, 1)


def _halve(y: Tensor) -> Tensor:
    """Downscale by 2 like MATLAB's imresize: cubic with a = -0.5 stretched to 8 taps, mirrored edges."""
    taps = cubic((torch.arange(8, dtype=torch.float64) - 3.5).abs() / 2)
    taps = taps / taps.sum()
    for axis in (-2, -1):
        first, last = y.narrow(axis, 0, 3).flip(axis), y.narrow(axis, -3, 3).flip(axis)
        y = _correlate(torch.cat((first, y, last), dim=axis), taps, axis, 2)
    return y


def _correlate(y: Tensor, taps: Tensor, axis: int, stride: int) -> Tensor:
    """Valid strided correlation along one axis."""
    lines = y.transpose(axis, -1)
    span = lines.shape[-1] - len(taps) + 1
    # A sum of shifted copies: float64 convolutions are several times slower on a CPU.
    total = lines[..., 0:span:stride] * taps[0]
    for shift in range(1, len(taps)):
        total.add_(lines[..., shift : shift + span : stride], alpha=taps[shift].item())
    return total.transpose(axis, -1)


def _blocks(y: Tensor, side: int) -> Tensor:
    """Split (1, 1, H, W) into (blocks, side, side)."""
    return y[0, 0].unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)


def _block_features(mscn: Tensor) -> Tensor:
    """Features (B, 18) of blocks (B, S, S) of MSCN coefficients at one scale."""
    shape, left, right = _fit_aggd(mscn.flatten(1))
    features = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _fit_aggd((mscn * mscn.roll(shift, dims=(1, 2))).flatten(1))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
        features += [shape, mean, left, right]
    return torch.stack(features, dim=1)


def _fit_aggd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit asymmetric generalized Gaussians by moment matching: shape, left and right scale per row of (B, M)."""
    square = x.square()
    # NaN if there is no negative (or positive) entry.
    left, right = (((square * side).sum(dim=1) / side.sum(dim=1)).sqrt() for side in (x < 0, x > 0))
    ratio = left / right
    moments = x.abs().mean(dim=1) ** 2 / square.mean(dim=1)
    moments = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, table = _shape_table()
    # The table is sorted: the nearest entry is one of two.
    upper = torch.searchsorted(table, moments.contiguous()).clamp(1, len(table) - 1)
    nearest = upper - (moments - table[upper - 1] <= table[upper] - moments).long()
    shape = shapes[nearest]
    factor = ((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2).exp()
    return torch.where(moments.isnan(), moments, shape), left * factor, right * factor


@lru_cache(maxsize=1)
def _shape_table() -> tuple[Tensor, Tensor]:
    """The authors' candidate shapes, 0.2 to 10 in steps of 0.001, and the moment ratio of each."""
    shapes = 0.2 + torch.arange(9801, dtype=torch.float64) * 0.001
    log_gamma_1, log_gamma_2, log_gamma_3 = (torch.lgamma(k / shapes) for k in (1, 2, 3))
    return shapes, (2 * log_gamma_2 - log_gamma_1 - log_gamma_3).exp()
