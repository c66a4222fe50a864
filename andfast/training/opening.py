"""Open a run: check its inputs, prepare the images, then begin or resume it in its folder."""

import logging
from dataclasses import dataclass

import torch

from andfast.config.resume import described
from andfast.config.schema import RunOptions, Stage, TrainConfig
from andfast.config.stages import position
from andfast.data.store import PackedImages
from andfast.training.build import check_weights
from andfast.training.checkpoint import Checkpoint, clean_up, latest, load_checkpoint
from andfast.training.data import open_packed_images, pack_training_images, resume_training_images, write_image_record
from andfast.training.distributed import ProcessGroup
from andfast.training.ops import ops_used
from andfast.training.resume import Changes, check_no_progress, check_same_run
from andfast.training.rng import seed_everything
from andfast.training.run_folder import (
    begin_run,
    check_inputs,
    check_run_folder,
    damaged_weights,
    mark_run,
    new_run_id,
    read_run_id,
    recover_run,
)
from andfast.training.selection import Selection, build_selection, check_selection
from andfast.training.signals import GracefulStop
from andfast.training.summary import Summary
from andfast.training.validation_set import ValidationSet, load_validation_set

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenRun:
    """A run that is ready for its stages.

    Attributes:
        run_id: id of the run; None on ranks above 0 of a new run.
        checkpoint: the newest checkpoint of a resumed run; None if no step was saved yet.
        images: packed training images.
        validation: held-out images on rank 0; None on other ranks and without ``validation.hr``.
        selections: how each stage chooses its best weights; empty without validation images.
        summary: results of the stages finished so far.
    """

    run_id: str | None
    checkpoint: Checkpoint | None
    images: PackedImages
    validation: ValidationSet | None
    selections: dict[Stage, Selection]
    summary: Summary


def open_run(config: TrainConfig, options: RunOptions, group: ProcessGroup, stop: GracefulStop) -> OpenRun:
    """Open a run on one rank. The folder changes only after everything has been checked.

    Raises:
        StopRequested: a signal requested a stop while the images were being prepared.
        ValueError, OSError, CheckpointError: the run cannot start or continue; the message says why.
    """
    run_id: str | None = None
    checkpoint: Checkpoint | None = None
    summary = Summary()
    changes: Changes = {}
    with group.main_first():
        if group.is_main:
            check_run_folder(config.output, resume=options.resume, overwrite=options.overwrite)
            check_inputs(config)
            if options.resume:
                recover_run(config.output)
                clean_up(config.output)
        if options.resume:
            run_id = read_run_id(config.output)
            folder = latest(config.output)
            if folder is None:
                check_no_progress(config.output, config)
                run_id = run_id or new_run_id()
            else:
                checkpoint = load_checkpoint(folder)
                changes = check_same_run(checkpoint, config, group, output=config.output, run=run_id)
                run_id = run_id or checkpoint.state.get("run") or new_run_id()
                summary = Summary.of(checkpoint.state, config.output / "summary.json")
                _log_resumed(checkpoint, config, options, changes)
        check_weights(config)
        if group.is_main:
            check_selection(config)
    seed_everything(config.seed)
    torch.backends.cudnn.benchmark = group.device.type == "cuda"  # crops have one size
    skipped: list[str] = []
    validation: ValidationSet | None = None
    selections: dict[Stage, Selection] = {}
    with group.main_first(), stop.interrupting():
        if not group.is_main:
            images = open_packed_images(config)
        else:
            if config.validation.hr:
                validation = load_validation_set(config)
            if checkpoint is None:
                images, skipped = pack_training_images(config)
            else:
                images = resume_training_images(config, checkpoint.state)
            if validation is not None:
                selections = {
                    stage: build_selection(config, stage, validation, images)
                    for stage in config.stages
                    if checkpoint is None or position(stage, 0) >= position(checkpoint.stage, 0)
                }
    summary.ops = ops_used(config, group.device)
    with group.main_first():
        if group.is_main:
            if run_id is None:
                run_id = begin_run(config.output)
            else:
                stage, step = (str(config.stages[0]), 0) if checkpoint is None else (checkpoint.stage, checkpoint.step)
                record = {"stage": stage, "step": step, "processes": group.world_size, "changed": changes}
                mark_run(config.output, run_id, record)
            if checkpoint is None:
                write_image_record(config.output, images, skipped)
    return OpenRun(run_id, checkpoint, images, validation, selections, summary)


def _log_resumed(checkpoint: Checkpoint, config: TrainConfig, options: RunOptions, changes: Changes) -> None:
    """Warn about damaged weights, changed settings, and a value of ``--steps`` that was exceeded before."""
    for note in damaged_weights(config.output):
        logger.warning("%s; using the weights in the checkpoint", note)
    if changes:
        logger.warning("resuming with changed settings: %s", described(changes))
    if options.steps is not None and options.steps < checkpoint.step:
        logger.warning(
            "--steps %d is below the %d steps already done in stage %s: steps are not undone",
            options.steps,
            checkpoint.step,
            checkpoint.stage,
        )
