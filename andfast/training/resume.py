"""Whether a checkpoint can be resumed: the steps to come must be those of the run that was stopped."""

from pathlib import Path

from andfast.config.files import load
from andfast.config.resume import differences, digest
from andfast.config.schema import TrainConfig
from andfast.training.checkpoint import Checkpoint, CheckpointError
from andfast.training.distributed import ProcessGroup


def run_identity(config: TrainConfig, group: ProcessGroup, images_digest: str) -> dict[str, object]:
    """Entries of a checkpoint's state by which :func:`check_same_run` recognizes the run."""
    return {"digest": digest(config), "world_size": group.world_size, "pictures": images_digest}


def check_same_run(
    checkpoint: Checkpoint, config: TrainConfig, group: ProcessGroup, images_digest: str, *, output: Path
) -> None:
    """Check that settings, number of processes and training images are those of the checkpoint.

    Raises:
        CheckpointError: they differ; the message names the differences.
    """
    saved = checkpoint.state
    if saved["digest"] != digest(config):
        changed = differences(load(output / "config.yaml"), config)
        listing = "; ".join(f"{name} was {before}, is {now}" for name, (before, now) in changed.items())
        raise CheckpointError(
            f"--resume must use the settings of the run in {output}, but some that change the result differ: "
            f"{listing or 'its config.yaml has been edited'}"
        )
    if saved["world_size"] != group.world_size:
        raise CheckpointError(f"--resume must use {saved['world_size']} processes, as before, were {group.world_size}")
    if saved["pictures"] != images_digest:
        raise CheckpointError(
            f"--resume must use the training images of the run in {output}, but data.train has others now"
        )
