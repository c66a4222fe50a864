"""The first step with a non-finite loss or gradient, kept on the device until the host reads it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class StepValues(NamedTuple):
    """The values of the last applied step, or of the step that failed.

    Attributes:
        failed: number of the failed step, counted from 1; None if all steps so far were applied.
        values: by name.
    """

    failed: int | None
    values: dict[str, float]


class Latch:
    """Set by the first non-finite step; from then on it holds that step's number, HR and values.

    Only :meth:`read` waits for the device. :meth:`set_if` can be captured in a CUDA graph.

    Args:
        device: of the training step.

    Attributes:
        flag: fp32 scalar, 1 once a step has failed. It skips updates as a gradient scaler's ``found_inf`` does.
        hr: the micro batches of the last step, or of the failed one.
    """

    def __init__(self, device: torch.device) -> None:
        self.flag = torch.zeros((), device=device)
        self.hr: list[Tensor] = []
        self._step = torch.zeros((), dtype=torch.int64, device=device)
        self._values: Tensor | None = None
        self._names: tuple[str, ...] = ()

    @torch.no_grad()
    def begin(self, batches: Sequence[Tensor], step: int) -> list[Tensor]:
        """Keep the micro batches and the number (from 1) of the next step, unless a step has failed.

        Returns:
            The kept micro batches, which the step must use.
        """
        if not self.hr:
            self.hr = [batch.clone() for batch in batches]
        failed = self.flag > 0
        for kept, batch in zip(self.hr, batches, strict=True):
            torch.where(failed, kept, batch, out=kept)
        self._step.copy_(torch.where(failed, self._step, step))
        return self.hr

    @torch.no_grad()
    def set_if(self, nonfinite: Tensor, values: Mapping[str, Tensor]) -> None:
        """Set the flag if ``nonfinite``, a boolean scalar, and keep the step's values unless a step has failed."""
        new = torch.stack([value.float() for value in values.values()])
        if self._values is None:
            self._values, self._names = torch.zeros_like(new), tuple(values)
        self._values.copy_(torch.where(self.flag > 0, self._values, new))
        torch.maximum(self.flag, nonfinite.float(), out=self.flag)

    def read(self) -> StepValues:
        """Wait for the device, and return the last step or the failed one."""
        assert self._values is not None, "a step must have run"
        flag, step, *values = torch.stack([self.flag.double(), self._step.double(), *self._values.double()]).tolist()
        return StepValues(int(step) if flag else None, dict(zip(self._names, values, strict=True)))
