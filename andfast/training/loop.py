"""A training run: its stages, their steps, and what is due between the steps."""

import logging
import shlex
import time
from contextlib import ExitStack

from andfast.adversary.strategies import Strategy
from andfast.config.machine import resolve_device
from andfast.config.schema import RunOptions, Stage, TrainConfig
from andfast.config.stages import position
from andfast.data.loader import DevicePrefetcher
from andfast.drawing import loss_curve
from andfast.nn.weights import generator_from_weights
from andfast.progress import Progress
from andfast.training.build import build_generator
from andfast.training.data import DataLoadingError, next_batches, training_batches
from andfast.training.distributed import ProcessGroup, process_group
from andfast.training.metrics_log import MetricsLog
from andfast.training.opening import OpenRun, open_run
from andfast.training.ops import check_ops
from andfast.training.radius_controller import RadiusController
from andfast.training.rng import seed_everything
from andfast.training.run_folder import (
    check_still_there,
    delete_replaced,
    restore_replaced,
    weights_path,
    write_run_info,
)
from andfast.training.run_lock import locked_run
from andfast.training.run_output import RunOutput
from andfast.training.signals import GracefulStop, StopRequested
from andfast.training.state import StageState
from andfast.training.step_runner import NonFiniteStepError, StepRunner
from andfast.training.validation import held_out_quality, validate

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A signal stopped the run; the message says how to resume."""


def run(config: TrainConfig, options: RunOptions, *, strategy: Strategy | None = None) -> None:
    """Run the configured stages, from the start or from the newest checkpoint.

    Args:
        config: of the run.
        options: of the command.
        strategy: how LR is made, in place of the configured one. It is not part of the run's files: pass it again to
            resume. A failed step is replayed with the configured one.

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
            opened = open_run(config, options, group, stop)
            training = Run(config, options, group, stop, opened, strategy)
            training.train()
        except StopRequested as error:
            raise Stopped(f"stopped by {error} before the first step; the same command starts again") from None
        finally:
            if group.is_main and (training is None or not training.started):
                restore_replaced(config.output)


class Run:
    """The stages of an opened run on one rank. An earlier run that it replaces is deleted after the first step."""

    def __init__(
        self,
        config: TrainConfig,
        options: RunOptions,
        group: ProcessGroup,
        stop: GracefulStop,
        opened: OpenRun,
        strategy: Strategy | None,
    ) -> None:
        self.config, self.options, self.group, self.stop = config, options, group, stop
        self.strategy = strategy
        self.output = config.output
        self.checkpoint, self.images = opened.checkpoint, opened.images
        self.validation, self.summary = opened.validation, opened.summary
        self.selections = opened.selections
        self.opened = opened
        self.radii: RadiusController | None = None
        """Of the stage before."""
        self.started = options.resume
        """Whether a step was done, after which a run that was set aside is deleted."""

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
            files = RunOutput(self.config, self.group, self.opened, log)
            for stage in self.config.stages:
                if self.checkpoint is None or position(stage, 0) >= position(self.checkpoint.stage, 0):
                    self._run_stage(stage, files, log)
        if self.group.is_main and self.summary.stages:
            logger.info("%s", self.summary.table(self.output))

    def _run_stage(self, stage: Stage, files: RunOutput, log: MetricsLog) -> None:
        state = self._stage_state(stage)
        configured = self.config.stage(stage).steps
        total = min(configured, self.options.steps or configured)
        if state.validation_due:
            state.validation_due = self._validate(state, files)
            if state.validation_due:
                raise self._stopped(state)
        if state.done < total:
            steps = StepRunner(self.config, state, self.group, self.stop, total=total)
            with (
                training_batches(self.config, self.images, self.group, stage=stage, steps_done=state.done) as batches,
                Progress(stage, total, unit="step", done=state.done, enabled=self.group.is_main) as bar,
            ):
                while state.done < total:
                    try:
                        self._step(state, steps, batches, files, bar, last=state.done + 1 == total)
                    except NonFiniteStepError as failure:
                        raise files.save_failure(state, failure) from None
        state.close()
        self.radii = state.radii
        self._end_stage(state, files, log)

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
        state = StageState(self.config, stage, generator, self.group, strategy=self.strategy)
        if here and self.checkpoint is not None:
            state.load(self.checkpoint)
        elif state.radii is not None and self.radii is not None:
            state.radii.start_from(self.radii)
        if self.validation is not None:
            selection = self.selections[stage]
            if state.best_by != selection.metric:
                state.best, state.best_by = None, selection.metric
            best = weights_path(self.output, stage, best=True)
            if here and state.best is None and best.is_file():  # another score chose the best weights
                generator = generator_from_weights(best, impl=self.config.ops).to(self.group.device)
                with self.stop.interrupting():
                    scores = validate(self.config, state.step.attack, generator, self.validation, selection=selection)
                state.best = scores[selection.metric] if selection.improves(scores[selection.metric], None) else None
        vgg = state.step.objective.vgg
        if vgg is not None:
            logger.info("perceptual loss: VGG19 weights are %s", vgg.weights_note)
            self.summary.add_note(f"the perceptual loss used VGG19 weights: {vgg.weights_note}")
        return state

    def _step(
        self,
        state: StageState,
        steps: StepRunner,
        batches: DevicePrefetcher,
        files: RunOutput,
        bar: Progress,
        *,
        last: bool,
    ) -> None:
        """One optimizer step, then what is due: logging, validation, a checkpoint, a stop."""
        start, waited = time.perf_counter(), batches.waited_seconds
        try:
            hr = next_batches(batches, self.config.accumulate)
        except DataLoadingError as error:
            steps.read()
            files.save_alone(state)
            raise DataLoadingError(f"{error}. {self._stopped(state)}") from error
        values, stop = steps.take(hr)
        if not self.started:
            self.started = True
            if self.group.is_main:
                delete_replaced(self.output)
        state.seconds += time.perf_counter() - start
        state.waited += batches.waited_seconds - waited
        bar.advance()
        if state.done % self.config.log_every == 0 or last or stop:
            bar.show(files.log_step(state, values))
        validation_due = bool(self.config.validation.hr) and (state.done % self.config.validation.every == 0 or last)
        if validation_due and not stop:
            validation_due = stop = self._validate(state, files)
        state.validation_due = validation_due
        if state.done % self.config.checkpoint_every == 0 or last or stop:
            files.save(state)
        if stop:
            raise self._stopped(state)

    def _stopped(self, state: StageState) -> Stopped:
        steps = f" --steps {self.options.steps}" if self.options.steps is not None else ""
        return Stopped(
            f"stopped after step {state.done} of stage {state.name}; to resume: "
            f"python -m andfast.train --output {shlex.quote(str(self.output))} --resume{steps}"
        )

    def _validate(self, state: StageState, files: RunOutput) -> bool:
        """Log the scores of the EMA on rank 0 and save its weights if they are the best so far.

        Returns:
            Whether a signal has stopped it; the scores are then still due. The same on every rank.
        """
        stopped = False
        if self.validation is not None:
            check_still_there(self.output)  # a sheet would create the folder again
            try:
                with self.stop.interrupting():
                    scores = validate(
                        self.config,
                        state.step.attack,
                        state.ema.module,
                        self.validation,
                        selection=self.selections[state.name],
                        sheet=self.output / "samples" / f"{state.name}-{state.done:08d}.png",
                        heading=f"Validation after step {state.done} of stage {state.name}. PSNR-Y against HR.",
                    )
            except StopRequested:
                stopped = True
            else:
                files.log_scores(state, scores, self.selections[state.name])
        return self.group.any(stopped)

    def _end_stage(self, state: StageState, files: RunOutput, log: MetricsLog) -> None:
        """Write the stage's weights, summary and images."""
        if self.group.is_main:
            files.save_weights(state)
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
            try:
                loss_curve(log.path, self.output / "loss_curve.png")
            except ModuleNotFoundError as error:
                logger.warning("loss_curve.png was not drawn: %s", error)
            self.summary.write(self.output / "summary.json")
        self.group.barrier()
