"""Checks on resume: the remaining steps must be those that the stopped run would have taken."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path

from andfast.config.files import dump, load, loads
from andfast.config.resume import CHANGEABLE_ON_RESUME, SPLIT_OF_BATCH, described, differences, digest
from andfast.config.schema import TrainConfig
from andfast.training.checkpoint import Checkpoint, CheckpointError
from andfast.training.distributed import ProcessGroup
from andfast.training.metrics_log import read_metrics
from andfast.training.run_folder import weights_path

logger = logging.getLogger(__name__)

Changes = dict[str, tuple[object, object]]


def run_identity(config: TrainConfig, group: ProcessGroup, images: Mapping[str, object], run: str) -> dict[str, object]:
    """Entries of a checkpoint's state by which :func:`check_same_run` recognizes the run."""
    return {"config": dump(config), "world_size": group.world_size, **images, "run": run}


def check_same_run(
    checkpoint: Checkpoint, config: TrainConfig, group: ProcessGroup, *, output: Path, run: str | None
) -> Changes:
    """Check that a checkpoint belongs to this run, and that only settings differ that may change on resume.

    Returns:
        The settings in :data:`CHANGEABLE_ON_RESUME` that differ: name to (earlier value, value now).

    Raises:
        CheckpointError: the checkpoint belongs to another run, or other settings differ; the message names them.
    """
    saved = checkpoint.state
    if run is not None and saved.get("run", run) != run:
        raise CheckpointError(
            f"the newest checkpoint in {output} belongs to another run, {saved['run']}; this folder's run is {run}"
        )
    changed = differences(_earlier_config(checkpoint, config, output), config)
    before = {name: old for name, (old, _) in changed.items()}
    processes: int = saved["world_size"]
    batch = processes * before.get("batch_size", config.batch_size) * before.get("accumulate", config.accumulate)  # type: ignore[operator]
    batch_now = group.world_size * config.batch_size * config.accumulate
    if batch != batch_now:
        raise CheckpointError(
            f"--resume must keep the number of crops per step, processes * batch_size * accumulate, at {batch}, "
            f"was {group.world_size} * {config.batch_size} * {config.accumulate} = {batch_now}"
        )
    allowed = (*CHANGEABLE_ON_RESUME, *SPLIT_OF_BATCH)
    if forbidden := {name: change for name, change in changed.items() if name not in allowed}:
        raise CheckpointError(
            f"--resume must use the settings of the run in {output}, but some that change the result differ: "
            f"{described(forbidden)}"
        )
    if processes != group.world_size or any(name in changed for name in SPLIT_OF_BATCH):
        logger.warning(
            "resuming with %d processes (%d before) and another split of the batch: results will not be bit-identical "
            "to those of an uninterrupted run",
            group.world_size,
            processes,
        )
    return {name: change for name, change in changed.items() if name in CHANGEABLE_ON_RESUME}


def check_no_progress(output: Path, config: TrainConfig) -> None:
    """Check that a run without checkpoints was stopped before its first one was due.

    Raises:
        CheckpointError: weights or metrics show that it has had a checkpoint.
    """
    trained = [path for stage in ("net", "gan") if (path := weights_path(output, stage)).exists()]
    first = config.stages[0]
    due = min(config.checkpoint_every, config.stage(first).steps)
    lines = read_metrics(output / "metrics.jsonl")
    beyond = [line for line in lines if line["stage"] != first or line["step"] > due]
    if trained or beyond:
        evidence = trained[0] if trained else f"step {beyond[-1]['step']} of stage {beyond[-1]['stage']} in its metrics"
        raise CheckpointError(
            f"--resume must find a checkpoint in {output / 'checkpoints'}, found none although the run has progressed "
            f"({evidence}): restore the checkpoints, or start again with --overwrite"
        )


def _earlier_config(checkpoint: Checkpoint, config: TrainConfig, output: Path) -> TrainConfig:
    """The configuration that a checkpoint was written with.

    Checkpoints of version 0.1 and before hold its digest only; the learning rate of their stage is the optimizer's.
    """
    saved = checkpoint.state
    if "config" in saved:
        return loads(saved["config"], f"the configuration in checkpoint {checkpoint.stage}-{checkpoint.step:08d}")
    candidate = copy.deepcopy(config)
    candidate.stage(checkpoint.stage).lr = saved["optimizers"]["generator"]["param_groups"][0]["lr"]  # type: ignore[arg-type]
    if digest(candidate) == saved["digest"]:
        return candidate
    candidate = load(output / "config.yaml")
    candidate.stage(checkpoint.stage).lr = saved["optimizers"]["generator"]["param_groups"][0]["lr"]  # type: ignore[arg-type]
    if digest(candidate) != saved["digest"]:
        raise CheckpointError(
            f"--resume must use the settings of the run in {output}, but some that change the result differ: "
            "its config.yaml was edited"
        )
    return candidate
