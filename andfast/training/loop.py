"""A whole run: data, stages, and what happens between their steps."""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from andfast import __version__
from andfast.config.files import dump, load
from andfast.config.machine import resolve_device
from andfast.config.resume import differences, digest
from andfast.config.schema import RunOptions, Stage, TrainConfig
from andfast.config.stages import position
from andfast.data.crops import CropDataset
from andfast.data.images import UnusableImageError, decode
from andfast.data.loader import DevicePrefetcher, training_loader
from andfast.data.pack import pack_images
from andfast.data.sources import find_images, resolve_source
from andfast.data.store import PackedImages
from andfast.nn.weights import generator_from_weights
from andfast.progress import Progress
from andfast.training.build import build_generator
from andfast.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    latest,
    load_checkpoint,
    save_checkpoint,
)
from andfast.training.distributed import ProcessGroup, process_group
from andfast.training.failure import NonFiniteLossError, dump_failure
from andfast.training.metrics_log import MetricsLog
from andfast.training.ops import check_ops, ops_used
from andfast.training.rng import seed_everything
from andfast.training.run_folder import open_run, save_stage_weights, weights_path, write_run_info
from andfast.training.signals import GracefulStop
from andfast.training.state import StageState
from andfast.training.step import first_nonfinite
from andfast.training.summary import Summary, draw_curve, held_out_quality, table, write_sheet
from andfast.training.validation import ValidationSet, restore, score
from andfast.training.worst_case import input_images

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The run ended early on a signal; its text says how to go on."""


def run(config: TrainConfig, options: RunOptions) -> None:
    """Run the configured stages from the start or from the newest checkpoint.

    Raises:
        Stopped: a signal asked for it; everything is saved.
        NonFiniteLossError: a loss became infinite or NaN; the weights are those from before the step.
        ValueError, OSError, CheckpointError: what was asked for cannot be done; the text says why.
    """
    with process_group(resolve_device(config.device)) as group, GracefulStop() as stop:
        Run(config, options, group, stop).go()


class Run:
    """The state of a run between its stages."""

    def __init__(self, config: TrainConfig, options: RunOptions, group: ProcessGroup, stop: GracefulStop) -> None:
        self.config, self.options, self.group, self.stop = config, options, group, stop
        self.output = config.output
        if group.is_main:
            open_run(self.output, resume=options.resume, overwrite=options.overwrite)
        group.barrier()
        folder = latest(self.output) if options.resume else None
        self.checkpoint: Checkpoint | None = load_checkpoint(folder) if folder is not None else None
        seed_everything(config.seed)
        self.images = self._pack()
        listing = [*self.images.names, *self.images.sizes.ravel().tolist()]
        self.pictures = hashlib.sha256(repr(listing).encode()).hexdigest()
        self._check_same_run()
        self.validation = self._validation_set()
        self.summary = Summary.read(self.output / "summary.json")
        self.summary.ops = ops_used(config, group.device)

    def go(self) -> None:
        """Run what is left of the stages."""
        if self.group.is_main:
            write_run_info(self.output, self.config, device=str(self.group.device))
        logger.info("ops: " + ", ".join(f"{op} {impl}" for op, impl in self.summary.ops.items()))
        if seconds := check_ops(self.config, self.group.device):
            logger.info(f"ops: self-test against float64 passed in {seconds:.1f} s")
        start = ("net", 0) if self.options.resume else None
        if self.checkpoint is not None:
            start = (self.checkpoint.stage, self.checkpoint.step)
            logger.info(f"going on after step {self.checkpoint.step} of stage {self.checkpoint.stage}")
        with MetricsLog(
            self.output, tensorboard=self.config.tensorboard, resume_from=start, enabled=self.group.is_main
        ) as log:
            for stage in self.config.stages:
                if self.checkpoint is None or position(stage, 0) >= position(self.checkpoint.stage, 0):
                    self._run_stage(stage, log)
        if self.group.is_main and self.summary.stages:
            logger.info(table(self.summary, self.output))

    # ------------------------------------------------------------------------------------------------ before a stage

    def _check_same_run(self) -> None:
        """Refuse to resume where the steps to come would not be those of the run that was stopped."""
        if self.checkpoint is None:
            return
        saved = self.checkpoint.state
        if saved["digest"] != digest(self.config):
            changed = differences(load(self.output / "config.yaml"), self.config)
            found = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in changed.items())
            raise CheckpointError(
                f"--resume must go on with the settings of the run in {self.output}, but some that decide what is "
                f"computed are different: {found or 'its config.yaml has been edited'}"
            )
        if saved["world_size"] != self.group.world_size:
            raise CheckpointError(
                f"--resume must go on with {saved['world_size']} processes, as before, were {self.group.world_size}"
            )
        if saved["pictures"] != self.pictures:
            raise CheckpointError(
                f"--resume must go on with the photographs of the run in {self.output}, but data.train has others now"
            )

    def _pack(self) -> PackedImages:
        data = self.config.data
        folder = data.pack or self.output / "data"
        if self.group.is_main:
            report = pack_images(
                data.train,
                folder,
                min_size=data.patch_size,
                include=data.include,
                exclude=data.exclude,
            )
            logger.info(str(report))
        self.group.barrier()
        return PackedImages(folder)

    def _validation_set(self) -> ValidationSet | None:
        settings = self.config.validation
        if not settings.hr or not self.group.is_main:
            return None
        if settings.lr is not None:
            return ValidationSet.from_pairs(
                resolve_source(settings.hr[0]), resolve_source(settings.lr), self.config.scale
            )
        images, names = [], []
        for file in find_images(settings.hr, include=settings.include, exclude=settings.exclude):
            try:
                images.append(decode(file.path, min_size=settings.crop_size))
                names.append(file.name)
            except UnusableImageError as error:
                logger.info(f"validation: {file.name} is left out: {error}")
        if not images:
            raise ValueError(f"validation.hr must hold usable pictures, {', '.join(settings.hr)} had none")
        return ValidationSet.from_photographs(
            images,
            names,
            crop_size=settings.crop_size,
            crops=settings.crops,
            scale=self.config.scale,
            seed=self.config.seed,
        )

    def _stage_state(self, stage: Stage) -> StageState:
        """The stage's networks, fresh, from the stage before it, or from the checkpoint."""
        seed_everything(self.config.seed + position(stage, 0)[0])
        if stage == "gan" and "net" in self.config.stages:
            generator = generator_from_weights(weights_path(self.output, "net"), impl=self.config.ops)
        else:
            generator = build_generator(self.config)
        state = StageState(self.config, stage, generator, self.group)
        if self.checkpoint is not None and self.checkpoint.stage == stage:
            state.load(self.checkpoint)
        vgg = state.step.objective.vgg
        if vgg is not None:
            logger.info(f"perceptual loss: VGG19 weights are {vgg.weights_note}")
            note = f"the perceptual loss used VGG19 weights: {vgg.weights_note}"
            if note not in self.summary.notes:
                self.summary.notes.append(note)
        return state

    # ---------------------------------------------------------------------------------------------------- the stage

    def _run_stage(self, stage: Stage, log: MetricsLog) -> None:
        settings = self.config.net if stage == "net" else self.config.gan
        total = min(settings.steps, self.options.steps or settings.steps)
        state = self._stage_state(stage)
        if state.done < total:
            with (
                self._batches(state) as batches,
                Progress(stage, total, unit="step", done=state.done, enabled=self.group.is_main) as bar,
            ):
                while state.done < total:
                    self._step(state, batches, log, bar, total)
        self._end_stage(state, log)

    @contextmanager
    def _batches(self, state: StageState) -> Iterator[DevicePrefetcher]:
        data = self.config.data
        loader = training_loader(
            CropDataset(self.images, data.patch_size, seed=self.config.seed, stage=state.name),
            batch_size=self.config.batch_size,
            start_batch=state.done * self.config.accumulate,
            rank=self.group.rank,
            world_size=self.group.world_size,
            workers=data.workers,
            pin_memory=self.group.device.type == "cuda",
        )
        with DevicePrefetcher(loader, self.group.device) as batches:
            yield batches

    def _step(self, state: StageState, batches: DevicePrefetcher, log: MetricsLog, bar: Progress, total: int) -> None:
        """One optimizer step, and what is due after it."""
        begun, waited = time.perf_counter(), batches.waited_seconds
        buffers = state.buffers()
        hr = [next(batches) for _ in range(self.config.accumulate)]
        found = state.gradients(hr)
        found["stop"] = torch.full((), float(self.stop.requested), device=self.group.device)  # a fill, not a copy
        local = torch.stack([value.float() for value in found.values()])
        means = self.group.all_reduce_mean(local.clone())
        values = dict(zip(found, means.tolist(), strict=True))  # the one time that a step waits for the device
        stop = values.pop("stop") > 0
        if (name := first_nonfinite({key: one for key, one in values.items() if key in _LOSSES})) is not None:
            state.restore_buffers(buffers)
            self._fail(state, hr, name, values, log)
        state.update()
        state.seconds += time.perf_counter() - begun
        state.waited += batches.waited_seconds - waited
        bar.advance()
        last = state.done == total
        if state.done % self.config.log_every == 0 or last or stop:
            self._log(state, values, log, bar)
        if self.validation is not None and (state.done % self.config.validation.every == 0 or last):
            self._validate(state, log)
        if state.done % self.config.checkpoint_every == 0 or last or stop:
            self._save(state, log)
        if stop:
            raise Stopped(
                f"stopped after step {state.done} of stage {state.name}; to go on: "
                f"python -m andfast.train --output {self.output} --resume"
            )

    def _log(self, state: StageState, values: dict[str, float], log: MetricsLog, bar: Progress) -> None:
        parts = state.step.stopwatch.take() if state.step.stopwatch is not None else {}
        done, seconds = state.since_last_log()
        images = done * self.config.batch_size * self.config.accumulate * self.group.world_size
        timing = {
            "images_per_second": images / seconds,
            "ascent_share": parts.get("ascent", 0.0) / seconds,
            "data_wait": state.waited / state.seconds,
            **{f"seconds_{name}": spent / done for name, spent in parts.items()},
        }
        log.write(state.name, state.done, values, timing)
        bar.show(describe(values, timing))

    def _validate(self, state: StageState, log: MetricsLog) -> None:
        """PSNR-Y and SSIM-Y on the pairs, or on clean LR; keep the best weights, write a sheet."""
        assert self.validation is not None
        settings = self.config.validation
        border = self.config.scale if settings.crop_border is None else settings.crop_border
        network = state.ema.module
        lr, hr = input_images(self.validation), self.validation.hr
        with state.step.mixed(next(network.parameters())):
            sr = restore(network, lr)
        found = score(sr, hr, crop_border=border)
        if settings.sheet:
            write_sheet(
                self.output / "samples" / f"{state.name}-{state.done:08d}.png",
                self.validation.names[: settings.sheet],
                {"HR": hr, "LR": lr, "SR": sr},
                scale=self.config.scale,
                crop_border=border,
                heading=f"Validation after step {state.done} of stage {state.name}. PSNR-Y against HR.",
            )
        log.write(state.name, state.done, {f"validation_{name}": value for name, value in found.items()})
        if state.best is None or found["psnr_y"] > state.best:
            state.best = found["psnr_y"]
            self._save_weights(state, best=True)

    def _save(self, state: StageState, log: MetricsLog) -> None:
        self.group.barrier()
        if not self.group.is_main:
            return
        log.sync()
        self._save_weights(state)
        save_checkpoint(
            self.output,
            {
                **state.state(),
                "digest": digest(self.config),
                "world_size": self.group.world_size,
                "pictures": self.pictures,
            },
            state.weights(),
            stage=state.name,
            step=state.done,
            keep=self.config.keep_checkpoints,
        )

    def _save_weights(self, state: StageState, *, best: bool = False) -> Path:
        metadata = {
            "architecture": "RRDBNet",
            "scale": str(self.config.scale),
            "stage": state.name,
            "step": str(state.done),
            "andfast": __version__,
        }
        return save_stage_weights(self.output, state.name, state.ema.module, metadata, best=best)

    def _fail(self, state: StageState, hr: list[Tensor], name: str, values: dict[str, float], log: MetricsLog) -> None:
        """Save what led to a loss that is not finite, and the weights from before it; then raise."""
        contents = {
            "config": dump(self.config),
            "batches": hr,
            "weights": {key: dict(one) for key, one in state.weights().items()},
            "values": values,
            "rank": self.group.rank,
            "world_size": self.group.world_size,
        }
        path = dump_failure(
            self.output,
            stage=state.name,
            step=state.done + 1,
            name=name,
            state=contents,
            rank=self.group.rank,
        )
        self._save(state, log)
        raise NonFiniteLossError(
            name,
            values[name],
            stage=state.name,
            step=state.done + 1,
            dump=path,
            reproduce=f"python -m andfast.training.replay {path}",
        )

    def _end_stage(self, state: StageState, log: MetricsLog) -> None:
        """The stage's weights, numbers and pictures."""
        if self.group.is_main:
            self._save_weights(state)
            self.summary.add_stage(state.name, state.done, state.seconds, state.waited)
            if self.validation is not None:
                sheet = self.output / "sheet.png"
                quality = held_out_quality(self.config, state.step, state.ema.module, self.validation, sheet)
                self.summary.stages[state.name]["psnr_y"] = quality
                self.summary.psnr_y = quality
            log.sync()
            draw_curve(self.output)
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


_LOSSES = ("loss", "l1", "perceptual", "gan", "loss_clean", "discriminator")
