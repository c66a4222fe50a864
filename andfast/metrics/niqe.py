"""NIQE, the natural image quality evaluator (Mittal, Soundararajan and Bovik 2013): no reference, lower is better.

The steps, as in the authors' release: MSCN coefficients of Y at two scales (section II-A); in every block of
96 x 96 pixels, fits of asymmetric generalised Gaussians to them and to their products with four neighbours
(II-C), 18 numbers a scale; the mean and covariance of these over the blocks; their distance to the mean and
covariance of sharp blocks of pristine photographs (equation 10).
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast import checks as _check
from andfast.metrics.color import PEAK, YRange, luma
from andfast.metrics.niqe_parameters import FEATURES, NIQEParameters, read_niqe_parameters

BLOCK = 96
"""Side of a block in pixels at the first scale; 48 at the second."""
SHARPNESS = 0.75
"""Fitting takes the blocks sharper than this part of their photograph's sharpest."""

_WINDOW, _SIGMA = 7, 7 / 6
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_BLOCKS_AT_ONCE = 32  # as many as caches hold
# A flat neighbourhood has coefficients of 0, up to rounding, whose sign would decide on which side of the fit they
# count: up to 0.2 of NIQE on pictures with flat areas. What is not flat is far above: Y is whole numbers.
_NOTHING = 1e-9


class UndefinedNIQEError(ValueError):
    """An image that has no NIQE: too small, or flat; the message says which."""


class NIQE:
    """NIQE against one pristine model.

    Y is rounded to whole numbers, as BasicSR and the authors' MATLAB (which works on uint8) do; BasicSR's Y is of
    studio range, the authors' of full range.

    Args:
        parameters: the pristine model, see `fit_niqe`; or its file, see `read_niqe_parameters`.
    """

    def __init__(self, parameters: NIQEParameters | str | Path) -> None:
        self.parameters = parameters if isinstance(parameters, NIQEParameters) else read_niqe_parameters(parameters)

    def __call__(self, image: Tensor, *, crop_border: int = 0, y_range: YRange = "studio") -> float:
        """NIQE of one image.

        Args:
            image: (3, H, W), RGB, uint8 or floating point in [0, 1].
            crop_border: pixels left out on every side.
            y_range: "studio" (BasicSR's) or "full" (the authors' and pyiqa's).

        Raises:
            UndefinedNIQEError: fewer than two whole blocks, or fewer than two that are not flat.
            TypeError, ValueError: no such image.
        """
        features, _ = niqe_features(image, crop_border=crop_border, y_range=y_range)
        defined = features[~features.isnan().any(dim=1)]
        if len(defined) < 2:
            raise UndefinedNIQEError(f"flat: {len(defined)} of {len(features)} blocks have texture, NIQE needs two")
        # The mean takes what a partly flat block does have, as the authors' does; the covariance needs whole rows.
        difference = features.nanmean(dim=0) - torch.from_numpy(self.parameters.mean)
        covariance = (torch.cov(defined.T) + torch.from_numpy(self.parameters.covariance)) / 2
        inverse = torch.linalg.pinv(covariance, hermitian=True)
        return math.sqrt(max(float(difference @ inverse @ difference), 0.0))


def fit_niqe(images: Iterable[Tensor], *, source: str = "", y_range: YRange = "studio") -> NIQEParameters:
    """Fit the pristine model to photographs: the authors' selection, the blocks sharper than 0.75 of the sharpest.

    Args:
        images: (3, H, W) each, uint8 or floating point in [0, 1]; each gives its sharpest blocks. Photographs
            smaller than one block give none.
        source: what the result says of where it is from.
        y_range: as for `NIQE`; use one for both.

    Raises:
        ValueError: fewer sharp blocks than the 37 that a covariance of 36 numbers needs at least.
    """
    found = []
    for image in images:
        if min(image.shape[-2:]) < BLOCK:
            continue
        features, sharpness = niqe_features(image, crop_border=0, y_range=y_range, least=1)
        found.append(features[sharpness > SHARPNESS * sharpness.max()])
    features = torch.cat(found) if found else torch.empty(0, FEATURES)
    features = features[~features.isnan().any(dim=1)]
    if len(features) <= FEATURES:
        raise ValueError(
            f"images must give more than {FEATURES} sharp blocks of {BLOCK}x{BLOCK} pixels, "
            f"{len(found)} photographs of that size gave {len(features)}"
        )
    return NIQEParameters(features.mean(dim=0).numpy(), torch.cov(features.T).numpy(), source or "fitted")


def niqe_features(
    image: Tensor, *, crop_border: int = 0, y_range: YRange = "studio", least: int = 2
) -> tuple[Tensor, Tensor]:
    """The 36 numbers of every block, (blocks, 36), and its sharpness, (blocks,), float64 on the CPU.

    What a flat block leaves undefined is NaN. Rows and columns beyond the last whole block are left out.

    Raises:
        UndefinedNIQEError: fewer than `least` whole blocks.
    """
    _check.tensor("image", image)
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"image must have shape (3, H, W), was {_check.shape(image)}")
    height, width = (side - 2 * crop_border for side in image.shape[1:])
    rows, columns = max(height, 0) // BLOCK, max(width, 0) // BLOCK
    if rows * columns < least:
        raise UndefinedNIQEError(
            f"too small: {max(width, 0)}x{max(height, 0)} pixels hold {rows * columns} blocks of {BLOCK}x{BLOCK}, "
            f"NIQE needs {least}"
        )
    cut = image[:, crop_border : crop_border + rows * BLOCK, crop_border : crop_border + columns * BLOCK]
    y = luma(cut.cpu()[None], y_range=y_range, rounded=True)

    found, sharpness = [], torch.empty(0)
    for scale in (1, 2):
        mean = _filtered(y)
        deviation = (_filtered(y * y) - mean * mean).abs().sqrt()
        mscn = (y - mean) / (deviation + 1)
        blocks = _blocks(torch.where(mscn.abs() < _NOTHING, 0.0, mscn), BLOCK // scale)
        found.append(torch.cat([_block_features(some) for some in blocks.split(_BLOCKS_AT_ONCE)]))
        if scale == 1:
            sharpness = _blocks(deviation, BLOCK).mean(dim=(1, 2))
            y = _halved(y / PEAK) * PEAK
    return torch.cat(found, dim=1), sharpness


def _filtered(y: Tensor) -> Tensor:
    """The local mean under the Gaussian window, edges repeated; (1, 1, H, W)."""
    line = torch.exp(-((torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    line = line / line.sum()
    padded = F.pad(y, [_WINDOW // 2] * 4, mode="replicate")
    return _correlated(_correlated(padded, line, -2, 1), line, -1, 1)


def _halved(y: Tensor) -> Tensor:
    """Half the size by MATLAB's imresize: the cubic with a = -0.5, stretched to 8 taps, edges mirrored."""
    distance = (torch.arange(8, dtype=torch.float64) - 3.5).abs() / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    taps = torch.where(distance <= 1, near, far)
    taps = taps / taps.sum()
    for axis in (-2, -1):
        first, last = y.narrow(axis, 0, 3).flip(axis), y.narrow(axis, -3, 3).flip(axis)
        y = _correlated(torch.cat((first, y, last), dim=axis), taps, axis, 2)
    return y


def _correlated(y: Tensor, taps: Tensor, axis: int, stride: int) -> Tensor:
    """The sum of taps over every whole window along an axis, every `stride` pixels."""
    lines = y.transpose(axis, -1)
    span = lines.shape[-1] - len(taps) + 1
    # A sum of shifted copies: float64 convolutions are several times slower on a CPU.
    total = lines[..., 0:span:stride] * taps[0]
    for shift in range(1, len(taps)):
        total.add_(lines[..., shift : shift + span : stride], alpha=taps[shift].item())
    return total.transpose(axis, -1)


def _blocks(y: Tensor, side: int) -> Tensor:
    """(1, 1, H, W) to (blocks, side, side)."""
    return y[0, 0].unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)


def _block_features(mscn: Tensor) -> Tensor:
    """The 18 numbers of blocks (B, S, S) of MSCN coefficients at one scale: (B, 18)."""
    shape, left, right = _fit(mscn.flatten(1))
    found = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _fit((mscn * mscn.roll(shift, dims=(1, 2))).flatten(1))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
        found += [shape, mean, left, right]
    return torch.stack(found, dim=1)


def _fit(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric generalised Gaussians by matched moments: shape, left and right scale of each row of (B, M)."""
    square = x.square()
    # A side without an entry is NaN.
    left, right = (((square * side).sum(dim=1) / side.sum(dim=1)).sqrt() for side in (x < 0, x > 0))
    ratio = left / right
    moments = x.abs().mean(dim=1) ** 2 / square.mean(dim=1)
    moments = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, of_shape = _shape_table()
    # The table ascends: the nearest entry is one of two.
    upper = torch.searchsorted(of_shape, moments.contiguous()).clamp(1, len(of_shape) - 1)
    nearest = upper - (moments - of_shape[upper - 1] <= of_shape[upper] - moments).long()
    shape = shapes[nearest]
    factor = ((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2).exp()
    return torch.where(moments.isnan(), moments, shape), left * factor, right * factor


@lru_cache(maxsize=1)
def _shape_table() -> tuple[Tensor, Tensor]:
    """The shapes that the authors try, 0.2 to 10 in steps of 0.001, and the moment ratio of each."""
    shapes = 0.2 + torch.arange(9801, dtype=torch.float64) * 0.001
    one, two, three = (torch.lgamma(k / shapes) for k in (1, 2, 3))
    return shapes, (2 * two - one - three).exp()
