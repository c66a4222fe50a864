"""Radii that follow G: a factor on all radii of the ball that keeps adversarial LR at a target PSNR.

Halving a radius raises LR's PSNR by about 6 dB, so the controller works on the factor in dB, 20 log10(factor): every
``PERIOD`` steps it adds ``GAIN`` times the difference between the mean LR PSNR of these steps and the target. All
state is on the device, so a captured step contains the update, and the host reads the factor only with a step's values.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

PERIOD: Final = 10
"""Steps between two updates, whose LR PSNR is averaged."""
GAIN: Final = 0.5
"""Part of the difference from the target that an update corrects: batches scatter by decibels."""
LARGEST_CHANGE: Final = 6.0
"""dB, of one update: radii are at most doubled or halved."""
SMALLEST_FACTOR: Final = 1e-4
"""The paper's literal radii times this are a moderate attack."""
LARGEST_FACTOR: Final = 10.0
"""The presets' radii times this destroy LR. A bound on the factor is one on the slopes, see
:attr:`andfast.adversary.Ball.smallest_slope`."""
_NAMES: Final = ("level", "sum", "count")


class RadiusController:
    """Adjusts a factor on the radii so that the mean LR PSNR over batches comes to a target.

    Every rank must call :meth:`update` with the same value, the mean over ranks.

    Args:
        target: dB, adversarial LR against clean LR.
        device: of the training step.

    Attributes:
        factor: fp32 scalar on the device, from ``SMALLEST_FACTOR`` to ``LARGEST_FACTOR``; changed in place. 1 at first.
    """

    def __init__(self, target: float, device: torch.device) -> None:
        self.target = target
        self.factor = torch.ones((), device=device)
        self._state = torch.zeros(len(_NAMES), device=device)  # factor in dB; sum and number of LR PSNRs since
        self._lowest, self._highest = (20 * math.log10(factor) for factor in (SMALLEST_FACTOR, LARGEST_FACTOR))
        self._warned = False

    @torch.no_grad()
    def update(self, lr_psnr: Tensor | float, *, skip: Tensor | None = None) -> None:
        """Count the LR PSNR of a step, and adjust the factor every ``PERIOD`` steps. The host does not wait.

        Args:
            lr_psnr: dB, the step's mean over images and ranks; a scalar on the device, or a number.
            skip: boolean scalar on the device: change nothing.
        """
        level, total, count = self._state.unbind()
        total, count = total + lr_psnr, count + 1
        change = (GAIN * (total / count - self.target)).clamp(-LARGEST_CHANGE, LARGEST_CHANGE)
        zero = torch.zeros_like(level)
        adjusted = torch.stack([(level + change).clamp(self._lowest, self._highest), zero, zero])
        new = torch.where(count >= PERIOD, adjusted, torch.stack([level, total, count]))
        self._set(new if skip is None else torch.where(skip, self._state, new))

    def tensors(self) -> list[Tensor]:
        """The tensors that :meth:`update` changes in place."""
        return [self._state, self.factor]

    def state(self) -> dict[str, float]:
        """The state that a checkpoint stores: the factor in dB, and what was measured since the last update."""
        return dict(zip(_NAMES, self._state.tolist(), strict=True))

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of :meth:`state`."""
        self._set(torch.tensor([state[name] for name in _NAMES]))

    def start_from(self, before: "RadiusController") -> None:
        """Take the factor of another controller, such as that of the stage before, and nothing else."""
        self.load({**before.state(), "sum": 0.0, "count": 0.0})

    def warning(self, factor: float) -> str | None:
        """A message the first time that the factor, as read by the host, is at one of its limits."""
        if self._warned or SMALLEST_FACTOR * (1 + 1e-3) < factor < LARGEST_FACTOR * (1 - 1e-3):
            return None
        self._warned = True
        bound, limit, remedy = ("largest", LARGEST_FACTOR, "larger")
        if factor < 1:
            bound, limit, remedy = ("smallest", SMALLEST_FACTOR, "smaller")
        return (
            f"adversary.target_psnr {self.target:g} is out of reach: the factor on the radii is at its {bound}, "
            f"{limit:g}; set {remedy} radii (adversary.preset, adversary.radius_*)"
        )

    @torch.no_grad()
    def _set(self, state: Tensor) -> None:
        self._state.copy_(state)
        self.factor.copy_(torch.exp(self._state[0] * (math.log(10) / 20)))
