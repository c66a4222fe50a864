"""One registered pair, taken apart: LR = gain (kernel * clean LR) + offset + rest + noise, clean LR shifted by block.

Least squares on the valid pixels of all three channels, alternating between two problems until both are settled:

- the shift of each block of about 32 x 32 LR pixels, by Gauss-Newton steps on the model's gradient. A single shift for
  the pair comes first. A block then departs from it as far as its pixels require: a prior of a quarter of an LR pixel
  holds flat blocks in place. The kernel is point-symmetric, so its phase is zero and it does not bias the shifts.
- gain and offset per channel and a point-symmetric 7x7 kernel of sum 1 for all channels and blocks. It sees clean LR
  where registration puts it, so shifts that vary over the image are not taken for blur.

Finally point-symmetric 7x7 kernels of sum 0 for each pair of channels give the rest. Its size is corrected for what
as many coefficients explain of pure noise. The remainder is the noise.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.calibration.least_squares import TAPS, Model, NormalEquations
from andfast.calibration.shifted_pool import shifted_pool
from andfast.functional import blur_pool
from andfast.metrics import luma

BLOCK: Final = 32
"""Side of the blocks that have a shift of their own, in LR pixels, about."""
BORDER: Final = 4
"""LR pixels on each side that are not counted: there pooling and kernel read reflected pixels."""
MIN_SIDE: Final = 24
"""Smallest side of LR."""
MIN_VALID: Final = 0.25
"""Smallest share of pixels within the border that are not saturated."""
_REACH: Final = TAPS // 2
_PAIR_ROUNDS, _BLOCK_ROUNDS = 3, 3
_PRIOR: Final = 0.25  # LR pixels: standard deviation of a block's shift from the pair's
_FLAT: Final = 1e-6  # squared levels per HR pixel, below which a direction has no gradient to register by
_LOW, _HIGH = 1.0, 254.0  # levels from which a pixel counts as saturated
_WINDOW: Final = 5  # of the local deviation that tells flat places from textured ones


@dataclass(frozen=True, eq=False)
class PairFit:
    """A pair in parts; images are in levels of 255, float64.

    Attributes:
        model: gain, offset and kernel.
        shift: (down, right) of LR's content relative to HR's, in HR pixels.
        block_shift: root mean square deviation of the blocks' shifts from it per axis, weighted by their gradients, in
            HR pixels.
        lr: (3, h, w), the real LR.
        clean: pooled HR, not shifted; registered: shifted by block.
        affine: registered after the best gain and offset without a kernel.
        fitted: registered after kernel, gain and offset, ``model``.
        fitted_rest: fitted plus the rest.
        valid: (h, w), bool, the pixels that count.
        flat, textured: (h, w), bool, the quarters of them with the least and the most local contrast.
        distances: root mean square size of each part: "color", "kernel", "rest", "noise", "noise_flat",
            "noise_textured".
    """

    model: Model
    shift: tuple[float, float]
    block_shift: float
    lr: Tensor
    clean: Tensor
    registered: Tensor
    affine: Tensor
    fitted: Tensor
    fitted_rest: Tensor
    valid: Tensor
    flat: Tensor
    textured: Tensor
    distances: dict[str, float]

    def distance(self, image: Tensor, to: Tensor | None = None, where: Tensor | None = None) -> float:
        """Root mean square difference to an image (None: the real LR) over valid pixels, or ``where``."""
        difference = image - (self.lr if to is None else to)
        return float(difference[:, self.valid if where is None else where].square().mean().sqrt())


@dataclass(eq=False)
class _Block:
    rows: tuple[int, int]
    columns: tuple[int, int]
    shift: Tensor  # (2,), HR pixels
    window: Tensor  # (3, 3, rows + 6, columns + 6): clean LR and its derivatives, from shifted_pool
    curvature: Tensor  # (2, 2), of the squared error in the shift

    def cut(self, image: Tensor) -> Tensor:
        return image[..., slice(*self.rows), slice(*self.columns)]


def fit_pair(hr: Tensor, lr: Tensor, scale: int, start: tuple[float, float] = (0.0, 0.0)) -> PairFit:
    """Take a pair apart.

    Args:
        hr: (3, H, W), levels of 255, any floating dtype; computed in float64.
        lr: (3, H / scale, W / scale), the same.
        scale: HR size over LR size.
        start: shift to start from, (down, right) in HR pixels, within about an LR pixel of the pair's.

    Raises:
        ValueError: LR is too small, most of it is saturated, or sizes do not match.
    """
    hr, lr = hr.double(), lr.double()
    if lr.shape[0] != 3 or hr.shape != (3, lr.shape[1] * scale, lr.shape[2] * scale):
        raise ValueError(f"hr must have {scale} times lr's size, were {tuple(hr.shape)} and {tuple(lr.shape)}")
    if min(lr.shape[1:]) < MIN_SIDE:
        raise ValueError(f"LR must be at least {MIN_SIDE} pixels wide and high, was {lr.shape[2]}x{lr.shape[1]}")
    clean = blur_pool(hr[None], scale)[0]
    valid = _valid(lr, clean)
    blocks = [
        _Block(rows, columns, torch.tensor(start, dtype=torch.float64), torch.empty(0), torch.zeros(2, 2))
        for rows in _edges(lr.shape[1])
        for columns in _edges(lr.shape[2])
    ]
    pair_shift = torch.tensor(start, dtype=torch.float64)
    model = Model.identity()
    for number in range(_PAIR_ROUNDS + _BLOCK_ROUNDS):
        equations = _normal_equations(blocks, hr, lr, scale, valid)
        model = equations.fit_affine() if number == 0 else equations.fit(model)
        steps = [_shift_equations(block, lr, valid, model) for block in blocks]
        if number < _PAIR_ROUNDS:
            curvature, slope = (sum(parts[i] for parts in steps) for i in (0, 1))
            flat = _FLAT * int(valid.sum())
            pair_shift = pair_shift + _limited(torch.linalg.pinv(curvature, atol=flat, hermitian=True) @ slope)
            for block in blocks:
                block.shift = pair_shift
            continue
        variance = max(equations.mean_square(model), 1 / 12)  # 8-bit rounding at least
        precision = variance / (_PRIOR * scale) ** 2 * torch.eye(2, dtype=torch.float64)
        for block, (curvature, slope) in zip(blocks, steps, strict=True):
            pull = slope + precision @ (pair_shift - block.shift)
            block.shift = block.shift + _limited(torch.linalg.pinv(curvature + precision, hermitian=True) @ pull)
            block.curvature = curvature
    equations = _normal_equations(blocks, hr, lr, scale, valid)
    return _assemble(blocks, equations, equations.fit(model), lr, clean, valid, pair_shift)


def _assemble(
    blocks: list[_Block],
    equations: NormalEquations,
    model: Model,
    lr: Tensor,
    clean: Tensor,
    valid: Tensor,
    pair_shift: Tensor,
) -> PairFit:
    affine_model, mixing = equations.fit_affine(), equations.fit_channels()
    registered, affine, fitted, fitted_rest, filtered = (torch.empty_like(lr) for _ in range(5))
    for block in blocks:
        window = block.window[0]
        block.cut(registered)[:] = _inner(window)
        block.cut(affine)[:] = affine_model(window)
        block.cut(fitted)[:] = model(window)
        block.cut(filtered)[:] = model.filter(window)
        block.cut(fitted_rest)[:] = mixing(window)
    contrast = _local_deviation(registered)
    low, high = contrast[valid].quantile(torch.tensor([0.25, 0.75], dtype=torch.float64)) if valid.any() else (0, 0)
    flat, textured = valid & (contrast <= low), valid & (contrast >= high)

    def rms(image: Tensor, where: Tensor = valid) -> float:
        return float(image[:, where].square().mean().sqrt())

    noise = rms(lr - fitted_rest)
    expected = noise**2 * mixing.coefficients / int(valid.sum())  # of coefficients that fit pure noise
    distances = {
        "color": rms(model.gain[:, None, None] * registered + model.offset[:, None, None] - registered),
        "kernel": rms(filtered - registered),
        "rest": max(rms(fitted_rest - fitted) ** 2 - expected, 0.0) ** 0.5,
        "noise": noise,
        "noise_flat": rms(lr - fitted_rest, flat),
        "noise_textured": rms(lr - fitted_rest, textured),
    }
    weights = torch.stack([block.curvature.diagonal() for block in blocks])  # (blocks, 2)
    deviations = torch.stack([block.shift - pair_shift for block in blocks])
    spread = float(((weights * deviations.square()).sum() / weights.sum().clamp_min(1e-300)).sqrt())
    down, right = pair_shift.tolist()
    return PairFit(
        model,
        (down, right),
        spread,
        lr,
        clean,
        registered,
        affine,
        fitted,
        fitted_rest,
        valid,
        flat,
        textured,
        distances,
    )


def _valid(lr: Tensor, clean: Tensor) -> Tensor:
    """Pixels away from the border that neither image saturates in any channel."""
    inside = torch.zeros(lr.shape[1:], dtype=torch.bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    valid = inside.clone()
    for image in (lr, clean):
        valid &= ((image >= _LOW) & (image <= _HIGH)).all(0)
    share = float(valid.sum() / inside.sum())
    if share < MIN_VALID:
        raise ValueError(f"at least {MIN_VALID:.0%} of LR's pixels must not be saturated, were {share:.0%}")
    return valid


def _edges(size: int) -> list[tuple[int, int]]:
    """Consecutive ranges of about BLOCK pixels."""
    count = max(round(size / BLOCK), 1)
    ends = [round(size * number / count) for number in range(count + 1)]
    return list(pairwise(ends))


def _inner(window: Tensor) -> Tensor:
    return window[..., _REACH:-_REACH, _REACH:-_REACH]


def _normal_equations(blocks: list[_Block], hr: Tensor, lr: Tensor, scale: int, valid: Tensor) -> NormalEquations:
    """Read every block at its shift, and sum up the equations of all of them."""
    equations = NormalEquations()
    for block in blocks:
        rows, columns = ((start - _REACH, stop + _REACH) for start, stop in (block.rows, block.columns))
        block.window = shifted_pool(hr, scale, (float(block.shift[0]), float(block.shift[1])), rows, columns)
        equations.add(block.window[0], block.cut(lr), block.cut(valid))
    return equations


def _shift_equations(block: _Block, lr: Tensor, valid: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Normal equations of a Gauss-Newton step of a block's shift: (2, 2) and (2,)."""
    where = block.cut(valid)
    error = (block.cut(lr) - model(block.window[0]))[:, where].flatten()
    slopes = torch.stack([(model(block.window[i]) - model.offset[:, None, None])[:, where].flatten() for i in (1, 2)])
    return slopes @ slopes.T, slopes @ error


def _limited(step: Tensor) -> Tensor:
    """At most one HR pixel per axis: Gauss-Newton is local."""
    return step.clamp(-1, 1)


def _local_deviation(image: Tensor) -> Tensor:
    """Standard deviation of Y in windows of 5x5, (h, w)."""
    y = luma(image[None] / 255)
    y = y - y.mean()

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, _WINDOW, stride=1, padding=_WINDOW // 2, count_include_pad=False)

    return (mean(y.square()) - mean(y).square()).clamp_min(0).sqrt()[0, 0]
