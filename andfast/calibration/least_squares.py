"""Gain, offset and point-symmetric kernels by least squares, from normal equations that are summed up block by block.

A point-symmetric kernel of sum s is s delta + sum over j of a[j] (delta[t_j] + delta[-t_j] - 2 delta), so filtering
with it is s x + sum of a[j] d_j with the 24 second differences d_j of x, see :func:`differences`.
"""

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

TAPS: Final = 7
"""Side of the kernels."""
_REACH: Final = TAPS // 2
OFFSETS: Final = [(y, x) for y in range(_REACH + 1) for x in range(-_REACH, _REACH + 1) if (y, x) > (0, 0)]
"""The taps (down, right) of one half of a kernel, 24."""
_COUNT: Final = len(OFFSETS)
_ONE, _DIFFERENCES = 0, slice(4, 4 + 3 * _COUNT)
_LR: Final = 4 + 3 * _COUNT  # first column of LR
_COLUMNS: Final = _LR + 3
_ALTERNATIONS: Final = 10
_TOLERANCE: Final = 1e-12  # relative eigenvalues below it are not inverted


def differences(window: Tensor) -> Tensor:
    """Second differences x[p + t] + x[p - t] - 2 x[p] for the taps t of :data:`OFFSETS`.

    Args:
        window: (C, h + 6, w + 6).

    Returns:
        (24, C, h, w).
    """
    height, width = (side - 2 * _REACH for side in window.shape[1:])

    def moved(y: int, x: int) -> Tensor:
        return window[:, _REACH + y : _REACH + y + height, _REACH + x : _REACH + x + width]

    return torch.stack([moved(y, x) + moved(-y, -x) - 2 * moved(0, 0) for y, x in OFFSETS])


def _inner(window: Tensor) -> Tensor:
    return window[:, _REACH:-_REACH, _REACH:-_REACH]


@dataclass(frozen=True, eq=False)
class Model:
    """LR = gain (kernel * clean) + offset.

    Attributes:
        gain, offset: (3,), per channel; offset in levels.
        coefficients: (24,), of the second differences: the kernel, of sum 1.
    """

    gain: Tensor
    offset: Tensor
    coefficients: Tensor

    @classmethod
    def identity(cls) -> "Model":
        """Gain 1, offset 0, no kernel."""
        return cls(*(torch.full((n,), value, dtype=torch.float64) for n, value in ((3, 1), (3, 0), (_COUNT, 0))))

    @property
    def kernel(self) -> Tensor:
        """(7, 7), point-symmetric, of sum 1."""
        kernel = torch.zeros(TAPS, TAPS, dtype=torch.float64)
        for (y, x), a in zip(OFFSETS, self.coefficients, strict=True):
            kernel[_REACH + y, _REACH + x] = kernel[_REACH - y, _REACH - x] = a
        kernel[_REACH, _REACH] = 1 - kernel.sum()
        return kernel

    def response(self, frequency: float) -> float:
        """The kernel's response at a frequency in cycles per LR pixel, mean of the horizontal and vertical one."""
        wave = torch.cos(2 * torch.pi * frequency * torch.arange(-_REACH, _REACH + 1, dtype=torch.float64))
        kernel = self.kernel
        return float((kernel.sum(0) @ wave + kernel.sum(1) @ wave) / 2)

    def filter(self, window: Tensor) -> Tensor:
        """The kernel on a window (3, h + 6, w + 6): (3, h, w)."""
        return _inner(window) + torch.tensordot(self.coefficients, differences(window), 1)

    def __call__(self, window: Tensor) -> Tensor:
        """Model LR of a window (3, h + 6, w + 6) of clean LR: (3, h, w)."""
        return self.gain[:, None, None] * self.filter(window) + self.offset[:, None, None]


@dataclass(frozen=True, eq=False)
class ChannelModel:
    """LR by a gain, an offset and a kernel of sum 0 from each of three channels, per channel.

    Attributes:
        gain, offset: (3,).
        kernels: (3, 3, 24): coefficients by output and input channel.
    """

    gain: Tensor
    offset: Tensor
    kernels: Tensor

    @property
    def coefficients(self) -> int:
        """Number of coefficients per channel."""
        return 2 + 3 * _COUNT

    def __call__(self, window: Tensor) -> Tensor:
        """(3, h + 6, w + 6) to (3, h, w)."""
        linear = self.gain[:, None, None] * _inner(window) + self.offset[:, None, None]
        return linear + torch.einsum("oij,jihw->ohw", self.kernels, differences(window))


@dataclass(eq=False)
class NormalEquations:
    """Products of all columns (1, clean LR, its second differences, LR), summed over valid pixels."""

    products: Tensor = field(default_factory=lambda: torch.zeros(_COLUMNS, _COLUMNS, dtype=torch.float64))

    def add(self, window: Tensor, lr: Tensor, valid: Tensor) -> None:
        """Add a block.

        Args:
            window: clean LR, (3, h + 6, w + 6).
            lr: (3, h, w).
            valid: (h, w), the pixels to count.
        """
        ones = torch.ones(1, *lr.shape[1:], dtype=torch.float64)
        by_channel = differences(window).transpose(0, 1).flatten(0, 1)  # (3 * 24, h, w)
        columns = torch.cat([ones, _inner(window), by_channel, lr])[:, valid]
        self.products += columns @ columns.T

    def fit_affine(self) -> Model:
        """Gain and offset per channel without a kernel."""
        return self._affine(torch.zeros(_COUNT, dtype=torch.float64))

    def fit(self, start: Model) -> Model:
        """Gain, offset and kernel: the bilinear problem, by alternation from a model."""
        model = start
        for _ in range(_ALTERNATIONS):
            model = self._affine(self._kernel(model))
        return model

    def mean_square(self, model: Model) -> float:
        """Mean squared error of a model over pixels and channels."""
        count = self.products[_ONE, _ONE]
        errors = [self._error(model, channel) for channel in range(3)]
        return float(sum(error @ self.products @ error for error in errors) / (3 * count))

    def fit_channels(self) -> ChannelModel:
        """All channels' kernels of sum 0, with gain and offset."""
        gains, offsets, kernels = [], [], []
        for channel in range(3):
            columns = [_ONE, 1 + channel, *range(_DIFFERENCES.start, _DIFFERENCES.stop)]
            solution = self._solve(self.products[columns][:, columns], self.products[columns, _LR + channel])
            offsets.append(solution[0])
            gains.append(solution[1])
            kernels.append(solution[2:].reshape(3, _COUNT))
        return ChannelModel(torch.stack(gains), torch.stack(offsets), torch.stack(kernels))

    def _affine(self, coefficients: Tensor) -> Model:
        """Gain and offset for a kernel."""
        solutions = []
        for channel in range(3):
            basis = torch.zeros(_COLUMNS, 2, dtype=torch.float64)
            basis[_ONE, 0] = 1
            basis[1 + channel, 1] = 1
            basis[_columns(channel), 1] = coefficients
            solutions.append(self._solve(basis.T @ self.products @ basis, basis.T @ self.products[:, _LR + channel]))
        offset, gain = torch.stack(solutions).unbind(1)
        return Model(gain, offset, coefficients)

    def _kernel(self, model: Model) -> Tensor:
        """Kernel coefficients for gain and offset."""
        matrix = torch.zeros(_COUNT, _COUNT, dtype=torch.float64)
        vector = torch.zeros(_COUNT, dtype=torch.float64)
        affine = Model(model.gain, model.offset, torch.zeros_like(model.coefficients))
        for channel in range(3):
            columns, gain = _columns(channel), model.gain[channel]
            matrix += gain.square() * self.products[columns, columns]
            vector += gain * (self.products[columns] @ self._error(affine, channel))
        return self._solve(matrix, vector)

    def _error(self, model: Model, channel: int) -> Tensor:
        """Weights of all columns whose sum is LR minus the model."""
        weights = torch.zeros(_COLUMNS, dtype=torch.float64)
        weights[_LR + channel] = 1
        weights[_ONE] = -model.offset[channel]
        weights[1 + channel] = -model.gain[channel]
        weights[_columns(channel)] = -model.gain[channel] * model.coefficients
        return weights

    @staticmethod
    def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
        """Least squares with scaled columns; directions that the pixels do not determine stay at 0."""
        scale = matrix.diagonal().clamp_min(0).sqrt()
        scale = torch.where(scale == 0, 1, scale)
        inverse = torch.linalg.pinv(matrix / scale / scale[:, None], rtol=_TOLERANCE, hermitian=True)
        return inverse @ (vector / scale) / scale


def _columns(channel: int) -> slice:
    """The second differences of a channel."""
    first = _DIFFERENCES.start + channel * _COUNT
    return slice(first, first + _COUNT)
