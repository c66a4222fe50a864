"""Optimizer steps, eager or captured, that are applied only if they are finite, and the stop between them."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from andfast.config.schema import TrainConfig
from andfast.training.distributed import ProcessGroup
from andfast.training.failure import largest_gradient
from andfast.training.signals import GracefulStop
from andfast.training.state import StageState
from andfast.training.step import FINITE, first_nonfinite

_GRADIENTS: Final = "gradients"


class NonFiniteStepError(Exception):
    """A step had an infinite or NaN loss or gradient. It was not applied: ``state.done`` excludes it.

    Args:
        name: name of the first value that is not finite, such as "l1" or "generator_gradient".
        values: the step's values by name.
        batches: the step's micro batches of HR.
    """

    def __init__(self, name: str, values: Mapping[str, float], batches: Sequence[Tensor]) -> None:
        super().__init__(name)
        self.name, self.values, self.batches = name, values, batches


class StepRunner:
    """Takes the steps of a stage.

    An eager step is read by the host before it is applied. Captured steps skip themselves on the device from the first
    non-finite one on, and the host reads them only when something is due: a log entry, a validation, a checkpoint, a
    stop or the last step.

    Args:
        config: of the run.
        state: the stage.
        group: the processes that train together.
        stop: whether a signal has requested a stop of this process.
        total: number of steps after which the stage ends.
    """

    def __init__(
        self, config: TrainConfig, state: StageState, group: ProcessGroup, stop: GracefulStop, *, total: int
    ) -> None:
        self._state, self._group, self._stop, self._total = state, group, stop, total
        self._periods = [config.log_every, config.checkpoint_every]
        if config.validation.hr:
            self._periods.append(config.validation.every)

    def take(self, batches: Sequence[Tensor]) -> tuple[dict[str, float], bool]:
        """Take one step.

        Args:
            batches: micro batches of HR, each (N, 3, H, W) in [0, 1].

        Returns:
            The step's values, empty if the host has not read them; and whether any rank was asked to stop.

        Raises:
            NonFiniteStepError: this step, or a captured one since the last read, was not finite.
        """
        if not self._state.captures:
            return self._take_eager(batches)
        self._state.advance(batches)
        stop = self._group.any(self._stop.requested)
        return self.read() if stop or self._due() else {}, stop

    def read(self) -> dict[str, float]:
        """The values of the last captured step; waits for it. Empty if no step was captured.

        Raises:
            NonFiniteStepError: a captured step since the last read was not finite.
        """
        latch = self._state.latch
        if latch is None:
            return {}
        failed, values = latch.read()
        if failed is not None:
            self._state.done = failed - 1
            name = first_nonfinite({key: value for key, value in values.items() if key in FINITE or "gradient" in key})
            assert name is not None
            raise NonFiniteStepError(name, values, latch.hr)
        return {name: value for name, value in values.items() if not name.endswith("_gradient")}

    def _take_eager(self, batches: Sequence[Tensor]) -> tuple[dict[str, float], bool]:
        state = self._state
        buffers = state.buffers()
        local = state.gradients(batches)
        if not state.scaler.is_enabled():  # whose steps with infinite gradients are skipped
            local = {**local, _GRADIENTS: largest_gradient(state.trained().values())}
        values, stop = self._reduce(local)
        if (name := first_nonfinite({key: values[key] for key in (*FINITE, _GRADIENTS) if key in values})) is not None:
            state.restore_buffers(buffers)
            raise NonFiniteStepError(name, values, batches)
        values.pop(_GRADIENTS, None)
        state.update()
        if state.radii is not None:
            state.radii.update(values["lr_psnr"])
        return values, stop

    def _due(self) -> bool:
        """Whether the host must know that all steps so far are finite, before it logs, validates or saves."""
        done = self._state.done
        return done == self._total or any(done % period == 0 for period in self._periods)

    def _reduce(self, local: Mapping[str, Tensor]) -> tuple[dict[str, float], bool]:
        """Mean of a step's values over ranks, and whether any rank was asked to stop."""
        requested = torch.full((), float(self._stop.requested), device=self._group.device)  # a fill, not a copy
        stacked = torch.stack([*(value.float() for value in local.values()), requested])
        *means, stop = self._group.all_reduce_mean(stacked).tolist()  # the step's only host synchronization
        return dict(zip(local, means, strict=True)), stop > 0
