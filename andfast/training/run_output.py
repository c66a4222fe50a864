"""What the training loop writes: log entries, checkpoints, weights, and the dump of a failed step."""

import logging
from collections.abc import Mapping
from pathlib import Path

from andfast import __version__
from andfast.config.files import dump
from andfast.config.schema import TrainConfig
from andfast.training.checkpoint import checkpoints, save_checkpoint
from andfast.training.data import image_entries
from andfast.training.distributed import ProcessGroup
from andfast.training.failure import NonFiniteLossError, NonFiniteStateError, dump_failure
from andfast.training.metrics_log import MetricsLog
from andfast.training.opening import OpenRun
from andfast.training.resume import run_identity
from andfast.training.run_folder import check_still_there, save_stage_weights
from andfast.training.selection import Selection
from andfast.training.state import StageState
from andfast.training.step_runner import NonFiniteStepError
from andfast.training.validation import color_shift_warning

logger = logging.getLogger(__name__)


class RunOutput:
    """Writes the files of a run whose stages are being trained.

    Args:
        config: of the run.
        group: the processes that train together; only rank 0 writes, except for the dump of a failed step.
        opened: the run.
        log: receives the values of logged steps and validations.
    """

    def __init__(self, config: TrainConfig, group: ProcessGroup, opened: OpenRun, log: MetricsLog) -> None:
        self._config, self._group, self._opened, self._log = config, group, opened, log

    def log_step(self, state: StageState, values: Mapping[str, float]) -> str:
        """Log the values of the last step, and the timing since the last call; return both in short."""
        steps, seconds = state.since_last_log()
        phases = state.timer.take(steps)
        images = steps * self._config.batch_size * self._config.accumulate * self._group.world_size
        timing = {
            "images_per_second": images / seconds,
            "ascent_share": phases.get("ascent", 0.0) / seconds,
            "data_wait": state.waited / state.seconds,
            **{f"seconds_{name}": spent / steps for name, spent in phases.items()},
        }
        values = {**values, "lr": state.last_learning_rate}
        if state.radii is not None and (warning := state.radii.warning(values["radius_factor"])):
            logger.warning("%s", warning)
            self._opened.summary.add_note(warning)
        self._log.write(state.name, state.done, values, timing)
        return describe(values, timing)

    def log_scores(self, state: StageState, scores: Mapping[str, float], selection: Selection) -> None:
        """Log validation scores of the EMA, and save its weights if they are the best so far by ``selection``."""
        self._log.write(state.name, state.done, {f"validation_{name}": value for name, value in scores.items()})
        if warning := color_shift_warning(scores, f"validation after step {state.done} of stage {state.name}"):
            logger.warning("%s", warning)
        if selection.improves(scores[selection.metric], state.best):
            state.best = scores[selection.metric]
            self.save_weights(state, best=True)

    def save(self, state: StageState) -> None:
        """Save a checkpoint on rank 0 after all ranks have done the step.

        Raises:
            NonFiniteStateError: the state has an infinite or NaN value, from which no run could be resumed.
        """
        if (part := state.nonfinite()) is not None:
            raise NonFiniteStateError(part, stage=state.name, step=state.done, checkpoint=self._newest_checkpoint())
        self._group.barrier()
        self.save_alone(state)

    def save_alone(self, state: StageState) -> None:
        """Save on rank 0 without waiting for other ranks: the checkpoint, then the weights, which are also in it."""
        if not self._group.is_main:
            return
        output = self._config.output
        check_still_there(output)
        self._log.sync()
        run = self._opened
        identity = run_identity(self._config, self._group, image_entries(run.images), str(run.run_id))
        save_checkpoint(
            output,
            {**state.state(), **identity, "summary": vars(run.summary), "lines": self._log.lines},
            state.weights(),
            stage=state.name,
            step=state.done,
            keep=self._config.keep_checkpoints,
        )
        self.save_weights(state)

    def save_weights(self, state: StageState, *, best: bool = False) -> None:
        """Save the EMA as the stage's newest weights, or as its best ones."""
        metadata = {
            "architecture": "RRDBNet",
            "scale": str(self._config.scale),
            "stage": state.name,
            "step": str(state.done),
            "andfast": __version__,
        }
        save_stage_weights(self._config.output, state.name, state.ema.module, metadata, best=best)

    def save_failure(self, state: StageState, failure: NonFiniteStepError) -> NonFiniteLossError:
        """Dump the failed step on every rank, save the run as it was before it, and return the error to raise.

        The run is not saved if it was not finite before the step either; its newest checkpoint is the last good one.
        """
        step = state.done + 1
        path = dump_failure(
            self._config.output,
            stage=state.name,
            step=step,
            name=failure.name,
            state={
                "config": dump(self._config),
                "batches": list(failure.batches),
                "weights": {key: dict(weights) for key, weights in state.weights().items()},
                "values": failure.values,
                "radii": None if state.radii is None else state.radii.state(),
                "rank": self._group.rank,
                "world_size": self._group.world_size,
            },
            rank=self._group.rank,
        )
        if state.nonfinite() is None:
            self.save(state)
        return NonFiniteLossError(
            failure.name,
            failure.values[failure.name],
            stage=state.name,
            step=step,
            dump=path,
            reproduce=f"python -m andfast.training.replay {path}",
            checkpoint=self._newest_checkpoint(),
        )

    def _newest_checkpoint(self) -> Path | None:
        return next(reversed(checkpoints(self._config.output)), None)


def describe(values: Mapping[str, float], timing: Mapping[str, float]) -> str:
    """A logged step in short: "loss 0.0512, 38.1 img/s, ascent 78%, LR 24.1 dB, gain +0.0123, lr 0.0001".

    With a factor on the radii, it follows LR's PSNR: "LR 24.1 dB, radii x0.87".
    """
    parts = [
        f"loss {values['loss']:.4f}",
        f"{timing['images_per_second']:.1f} img/s",
        f"ascent {timing['ascent_share']:.0%}",
        f"LR {values['lr_psnr']:.1f} dB",
    ]
    if "radius_factor" in values:
        parts.append(f"radii x{values['radius_factor']:.3g}")
    if "loss_gain" in values:
        parts.append(f"gain {values['loss_gain']:+.4f}")
    parts.append(f"lr {values['lr']:.3g}")
    return ", ".join(parts)
