"""A training run: its stages, their steps, and what is due between the steps."""

import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

import torch
from torch import Tensor

from andfast import __version__
from andfast.config.files import dump
from andfast.config.machine import resolve_device
from andfast.config.resume import described
from andfast.config.schema import RunOptions, Stage, TrainConfig
from andfast.config.stages import position
from andfast.data.loader import DevicePrefetcher
from andfast.drawing import loss_curve
from andfast.nn.weights import generator_from_weights
from andfast.progress import Progress
from andfast.training.build import build_generator, check_weights
from andfast.training.checkpoint import Checkpoint, clean_up, latest, load_checkpoint, save_checkpoint
from andfast.training.data import (
    DataLoadingError,
    image_entries,
    next_batches,
    open_packed_images,
    pack_training_images,
    resume_training_images,
    training_batches,
    write_image_record,
)
from andfast.training.distributed import ProcessGroup, process_group
from andfast.training.failure import NonFiniteLossError, dump_failure, largest_gradient
from andfast.training.metrics_log import MetricsLog
from andfast.training.ops import check_ops, ops_used
from andfast.training.resume import Changes, check_no_progress, check_same_run, run_identity
from andfast.training.rng import seed_everything
from andfast.training.run_folder import (
    begin_run,
    check_inputs,
    check_run_folder,
    check_still_there,
    damaged_weights,
    delete_replaced,
    mark_run,
    new_run_id,
    read_run_id,
    recover_run,
    restore_replaced,
    save_stage_weights,
    weights_path,
    write_run_info,
)
from andfast.training.run_lock import locked_run
from andfast.training.signals import GracefulStop, StopRequested
from andfast.training.state import StageState
from andfast.training.step import FINITE, first_nonfinite
from andfast.training.summary import Summary
from andfast.training.validation import color_shift_warning, held_out_quality, validate
from andfast.training.validation_set import ValidationSet, load_validation_set

logger = logging.getLogger(__name__)

_GRADIENTS: Final = "gradients"


class Stopped(Exception):
    """A signal stopped the run; the message says how to resume."""


def run(config: TrainConfig, options: RunOptions) -> None:
    """Run the configured stages, from the start or from the newest checkpoint.

    Raises:
        Stopped: a signal stopped the run; everything is saved.
        NonFiniteLossError: a loss became infinite or NaN; the weights are those from before the step.
        ValueError, OSError, CheckpointError: the run cannot start or continue; the message says why.
    """
    with process_group(resolve_device(config.device)) as group, GracefulStop() as stop, ExitStack() as stack:
        with group.main_first():
            if group.is_main:
                stack.enter_context(locked_run(config.output))
        training: Run | None = None
        try:
            training = Run(config, options, group, stop)
            training.train()
        except StopRequested as error:
            raise Stopped(f"stopped by {error} before the first step; the same command starts again") from None
        finally:
            if group.is_main and (training is None or not training.started):
                restore_replaced(config.output)


class Run:
    """A run on one rank: checks what it needs, opens the run folder and the data; :meth:`train` runs the stages.

    Everything is checked before the folder changes; an earlier run that is overwritten is deleted after the first step.
    """

    def __init__(self, config: TrainConfig, options: RunOptions, group: ProcessGroup, stop: GracefulStop) -> None:
        self.config, self.options, self.group, self.stop = config, options, group, stop
        self.output = config.output
        self.started = options.resume
        """Whether a step was done, after which a run that was set aside is deleted."""
        self.checkpoint: Checkpoint | None = None
        self.run_id: str | None = None
        self.summary = Summary()
        changes: Changes = {}
        skipped: list[str] = []
        with group.main_first():
            if group.is_main:
                check_run_folder(self.output, resume=options.resume, overwrite=options.overwrite)
                check_inputs(config)
                if options.resume:
                    recover_run(self.output)
                    clean_up(self.output)
            if options.resume:
                changes = self._read_run()
            check_weights(config)
        seed_everything(config.seed)
        torch.backends.cudnn.benchmark = group.device.type == "cuda"  # crops have one size
        self.validation: ValidationSet | None = None
        with group.main_first(), stop.interrupting():
            if not group.is_main:
                self.images = open_packed_images(config)
            else:
                if config.validation.hr:
                    self.validation = load_validation_set(config)
                if self.checkpoint is None:
                    self.images, skipped = pack_training_images(config)
                else:
                    self.images = resume_training_images(config, self.checkpoint.state)
        self.summary.ops = ops_used(config, group.device)
        with group.main_first():
            if group.is_main:
                if self.run_id is None:
                    self.run_id = begin_run(self.output)
                else:
                    stage, step = str(config.stages[0]), 0
                    if self.checkpoint is not None:
                        stage, step = self.checkpoint.stage, self.checkpoint.step
                    record = {"stage": stage, "step": step, "processes": group.world_size, "changed": changes}
                    mark_run(self.output, self.run_id, record)
                if self.checkpoint is None:
                    write_image_record(self.output, self.images, skipped)

    def _read_run(self) -> Changes:
        """Read what a resumed run needs of its folder; return the settings that change the steps to come."""
        self.run_id = read_run_id(self.output)
        folder = latest(self.output)
        if folder is None:
            check_no_progress(self.output, self.config)
            self.run_id = self.run_id or new_run_id()
            return {}
        self.checkpoint = load_checkpoint(folder)
        changes = check_same_run(self.checkpoint, self.config, self.group, output=self.output, run=self.run_id)
        self.run_id = self.run_id or self.checkpoint.state.get("run") or new_run_id()
        self.summary = Summary.of(self.checkpoint.state, self.output / "summary.json")
        for note in damaged_weights(self.output):
            logger.warning("%s; what the checkpoint holds is taken from it", note)
        if changes:
            logger.warning("resuming with changed settings: %s", described(changes))
        steps = self.options.steps
        if steps is not None and steps < self.checkpoint.step:
            logger.warning(
                "--steps %d is below the %d steps that stage %s has done: no step is taken back", steps,
                self.checkpoint.step, self.checkpoint.stage,
            )  # fmt: skip
        return changes

    def train(self) -> None:
        """Run the remaining stages."""
        if self.group.is_main:
            write_run_info(self.output, self.config, device=str(self.group.device))
        logger.info("ops: %s", ", ".join(f"{op} {impl}" for op, impl in self.summary.ops.items()))
        if seconds := check_ops(self.config, self.group.device):
            logger.info("ops: self-test against float64 passed in %.1f s", seconds)
        resume_from = ("net", 0) if self.options.resume else None
        if self.checkpoint is not None:
            resume_from = (self.checkpoint.stage, self.checkpoint.step)
            logger.info("resuming after step %d of stage %s", self.checkpoint.step, self.checkpoint.stage)
        with MetricsLog(
            self.output,
            tensorboard=self.config.tensorboard,
            resume_from=resume_from,
            lines=self.checkpoint.state.get("lines") if self.checkpoint is not None else None,
            enabled=self.group.is_main,
        ) as log:
            for stage in self.config.stages:
                if self.checkpoint is None or position(stage, 0) >= position(self.checkpoint.stage, 0):
                    self._run_stage(stage, log)
        if self.group.is_main and self.summary.stages:
            logger.info("%s", self.summary.table(self.output))

    def _run_stage(self, stage: Stage, log: MetricsLog) -> None:
        state = self._stage_state(stage)
        configured = self.config.stage(stage).steps
        total = min(configured, self.options.steps or configured)
        if state.validation_due:
            state.validation_due = self._validate(state, log)
            if state.validation_due:
                raise self._stopped(state)
        if state.done < total:
            with (
                training_batches(self.config, self.images, self.group, stage=stage, steps_done=state.done) as batches,
                Progress(stage, total, unit="step", done=state.done, enabled=self.group.is_main) as bar,
            ):
                while state.done < total:
                    self._step(state, batches, log, bar, total)
        state.close()
        self._end_stage(state, log)

    def _stage_state(self, stage: Stage) -> StageState:
        """The stage's networks: from the checkpoint, from the previous stage, or initial."""
        seed_everything(self.config.seed + position(stage, 0)[0])
        here = self.checkpoint is not None and self.checkpoint.stage == stage
        if here and self.checkpoint is not None:
            generator = generator_from_weights(self.checkpoint.weights["generator"], impl=self.config.ops)
        elif stage == "gan" and "net" in self.config.stages:
            generator = generator_from_weights(weights_path(self.output, "net"), impl=self.config.ops)
        else:
            generator = build_generator(self.config)
        state = StageState(self.config, stage, generator, self.group)
        if here and self.checkpoint is not None:
            state.load(self.checkpoint)
            best = weights_path(self.output, stage, best=True)
            if state.best is None and self.validation is not None and best.is_file():
                # A run from before PSNR in RGB chose the best weights.
                generator = generator_from_weights(best, impl=self.config.ops).to(self.group.device)
                state.best = validate(self.config, state.step.attack, generator, self.validation)["psnr_rgb"]
        vgg = state.step.objective.vgg
        if vgg is not None:
            logger.info("perceptual loss: VGG19 weights are %s", vgg.weights_note)
            self.summary.add_note(f"the perceptual loss used VGG19 weights: {vgg.weights_note}")
        return state

    def _step(self, state: StageState, batches: DevicePrefetcher, log: MetricsLog, bar: Progress, total: int) -> None:
        """One optimizer step, then what is due: logging, validation, a checkpoint, a stop."""
        start, waited = time.perf_counter(), batches.waited_seconds
        try:
            hr = next_batches(batches, self.config.accumulate)
        except DataLoadingError as error:
            if state.captures and state.latch is not None:
                self._captured_values(state, log)
            self._save_alone(state, log)
            raise DataLoadingError(f"{error}. {self._stopped(state)}") from error
        if state.captures:
            state.advance(hr)
            stop = self.group.any(self.stop.requested)
            if stop or self._due(state, total):
                values = self._captured_values(state, log)
        else:
            values, stop = self._eager_step(state, hr, log)
        if not self.started:
            self.started = True
            if self.group.is_main:
                delete_replaced(self.output)
        state.seconds += time.perf_counter() - start
        state.waited += batches.waited_seconds - waited
        bar.advance()
        last = state.done == total
        if state.done % self.config.log_every == 0 or last or stop:
            self._log(state, values, log, bar)
        validation_due = bool(self.config.validation.hr) and (state.done % self.config.validation.every == 0 or last)
        if validation_due and not stop:
            validation_due = stop = self._validate(state, log)
        state.validation_due = validation_due
        if state.done % self.config.checkpoint_every == 0 or last or stop:
            self._save(state, log)
        if stop:
            raise self._stopped(state)

    def _stopped(self, state: StageState) -> Stopped:
        steps = f" --steps {self.options.steps}" if self.options.steps is not None else ""
        return Stopped(
            f"stopped after step {state.done} of stage {state.name}; to resume: "
            f"python -m andfast.train --output {shlex.quote(str(self.output))} --resume{steps}"
        )

    def _eager_step(self, state: StageState, hr: Sequence[Tensor], log: MetricsLog) -> tuple[dict[str, float], bool]:
        buffers = state.buffers()
        local = state.gradients(hr)
        if not state.scaler.is_enabled():  # whose steps with infinite gradients are skipped
            local = {**local, _GRADIENTS: largest_gradient(state.trained().values())}
        values, stop = self._reduce(local)
        if (name := first_nonfinite({key: values[key] for key in (*FINITE, _GRADIENTS) if key in values})) is not None:
            state.restore_buffers(buffers)
            self._fail(state, hr, name, values, log)
        values.pop(_GRADIENTS, None)
        state.update()
        return values, stop

    def _due(self, state: StageState, total: int) -> bool:
        """Whether the host has to know that all steps so far are finite: before it logs, validates or saves."""
        periods = [self.config.log_every, self.config.checkpoint_every]
        if self.config.validation.hr:
            periods.append(self.config.validation.every)
        return state.done == total or any(state.done % period == 0 for period in periods)

    def _captured_values(self, state: StageState, log: MetricsLog) -> dict[str, float]:
        """The values of the last captured step; waits for it."""
        assert state.latch is not None
        failed, values = state.latch.read()
        if failed is not None:
            state.done = failed - 1
            name = first_nonfinite({key: value for key, value in values.items() if key in FINITE or "gradient" in key})
            assert name is not None
            self._fail(state, state.latch.hr, name, values, log)
        return {name: value for name, value in values.items() if not name.endswith("_gradient")}

    def _reduce(self, local: Mapping[str, Tensor]) -> tuple[dict[str, float], bool]:
        """Mean of a step's values over ranks, and whether any rank was asked to stop."""
        requested = torch.full((), float(self.stop.requested), device=self.group.device)  # a fill, not a copy
        stacked = torch.stack([*(value.float() for value in local.values()), requested])
        *means, stop = self.group.all_reduce_mean(stacked).tolist()  # the step's only host synchronization
        return dict(zip(local, means, strict=True)), stop > 0

    def _log(self, state: StageState, values: dict[str, float], log: MetricsLog, bar: Progress) -> None:
        steps, seconds = state.since_last_log()
        phases = state.timer.take(steps)
        images = steps * self.config.batch_size * self.config.accumulate * self.group.world_size
        timing = {
            "images_per_second": images / seconds,
            "ascent_share": phases.get("ascent", 0.0) / seconds,
            "data_wait": state.waited / state.seconds,
            **{f"seconds_{name}": spent / steps for name, spent in phases.items()},
        }
        log.write(state.name, state.done, values, timing)
        bar.show(describe(values, timing))

    def _validate(self, state: StageState, log: MetricsLog) -> bool:
        """Log the scores of the EMA on rank 0 and save its weights if they are the best so far.

        Returns:
            Whether a signal has stopped it; the scores are then still due. The same on every rank.
        """
        stopped = False
        if self.validation is not None:
            try:
                with self.stop.interrupting():
                    scores = validate(
                        self.config,
                        state.step.attack,
                        state.ema.module,
                        self.validation,
                        sheet=self.output / "samples" / f"{state.name}-{state.done:08d}.png",
                        heading=f"Validation after step {state.done} of stage {state.name}. PSNR-Y against HR.",
                    )
            except StopRequested:
                stopped = True
            else:
                self._log_scores(state, scores, log)
        return self.group.any(stopped)

    def _log_scores(self, state: StageState, scores: Mapping[str, float], log: MetricsLog) -> None:
        log.write(state.name, state.done, {f"validation_{name}": value for name, value in scores.items()})
        if warning := color_shift_warning(scores, f"validation after step {state.done} of stage {state.name}"):
            logger.warning("%s", warning)
        if state.best is None or scores["psnr_rgb"] > state.best:
            state.best = scores["psnr_rgb"]
            self._save_weights(state, best=True)

    def _save(self, state: StageState, log: MetricsLog) -> None:
        self.group.barrier()
        self._save_alone(state, log)

    def _save_alone(self, state: StageState, log: MetricsLog) -> None:
        """Save on rank 0, without the others: the checkpoint, then the weights, which are also in it."""
        if not self.group.is_main:
            return
        check_still_there(self.output)
        log.sync()
        identity = run_identity(self.config, self.group, image_entries(self.images), str(self.run_id))
        save_checkpoint(
            self.output,
            {**state.state(), **identity, "summary": vars(self.summary), "lines": log.lines},
            state.weights(),
            stage=state.name,
            step=state.done,
            keep=self.config.keep_checkpoints,
        )
        self._save_weights(state)

    def _save_weights(self, state: StageState, *, best: bool = False) -> None:
        metadata = {
            "architecture": "RRDBNet",
            "scale": str(self.config.scale),
            "stage": state.name,
            "step": str(state.done),
            "andfast": __version__,
        }
        save_stage_weights(self.output, state.name, state.ema.module, metadata, best=best)

    def _fail(
        self, state: StageState, hr: Sequence[Tensor], name: str, values: Mapping[str, float], log: MetricsLog
    ) -> None:
        """Dump the failed step, save the weights from before it, and raise."""
        step = state.done + 1
        path = dump_failure(
            self.output,
            stage=state.name,
            step=step,
            name=name,
            state={
                "config": dump(self.config),
                "batches": list(hr),
                "weights": {key: dict(weights) for key, weights in state.weights().items()},
                "values": values,
                "rank": self.group.rank,
                "world_size": self.group.world_size,
            },
            rank=self.group.rank,
        )
        self._save(state, log)
        raise NonFiniteLossError(
            name,
            values[name],
            stage=state.name,
            step=step,
            dump=path,
            reproduce=f"python -m andfast.training.replay {path}",
        )

    def _end_stage(self, state: StageState, log: MetricsLog) -> None:
        """Write the stage's weights, summary and images."""
        if self.group.is_main:
            self._save_weights(state)
            self.summary.add_stage(state.name, state.done, state.seconds, state.waited)
            if self.validation is not None:
                sheet = self.output / "sheet.png"
                try:
                    with self.stop.interrupting():
                        quality = held_out_quality(
                            self.config, state.step.attack, state.ema.module, self.validation, sheet
                        )
                except StopRequested:
                    raise self._stopped(state) from None
                self.summary.add_quality(state.name, quality)
            log.sync()
            loss_curve(log.path, self.output / "loss_curve.png")
            self.summary.write(self.output / "summary.json")
        self.group.barrier()


def describe(values: Mapping[str, float], timing: Mapping[str, float]) -> str:
    """A logged step in short: "loss 0.0512, 38.1 img/s, ascent 78%, LR 24.1 dB, gain +0.0123"."""
    parts = [
        f"loss {values['loss']:.4f}",
        f"{timing['images_per_second']:.1f} img/s",
        f"ascent {timing['ascent_share']:.0%}",
        f"LR {values['lr_psnr']:.1f} dB",
    ]
    if "loss_gain" in values:
        parts.append(f"gain {values['loss_gain']:+.4f}")
    return ", ".join(parts)
