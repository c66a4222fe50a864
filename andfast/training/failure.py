"""Non-finite losses and gradients: the error that stops the run, and the dump of the step that reproduces it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from andfast.files import atomic_file
from andfast.training.checkpoint import plain_state


def _to_continue(checkpoint: Path | None, stage: str) -> str:
    if checkpoint is None:
        return f"there is no checkpoint: start again with --overwrite and another {stage}.lr"
    return f"--resume continues from {checkpoint}, with another {stage}.lr if training diverged"


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became infinite or NaN; the weights are those from before the step."""

    def __init__(
        self,
        name: str,
        value: float,
        *,
        stage: str,
        step: int,
        dump: Path,
        reproduce: str | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """
        Args:
            name: name of the loss, such as "l1"; "generator_gradient" or "discriminator_gradient"; or "gradients".
            value: its value.
            stage: "net" or "gan".
            step: the failed step, counted from 1; it was not applied.
            dump: path returned by :func:`dump_failure`.
            reproduce: command that repeats the step; None: the message explains how to read the dump.
            checkpoint: the newest checkpoint, all of whose values are finite; None if there is none.
        """
        self.name, self.value, self.stage, self.step, self.dump = name, value, stage, step, dump
        self.checkpoint = checkpoint
        network = name.removesuffix("_gradient")
        subject = f"loss {name!r}" if network == name else f"gradient of the {network}"
        if name == "gradients":
            subject = "a gradient"
        how = reproduce or f"torch.load({str(dump)!r}, weights_only=True) has all its inputs"
        super().__init__(
            f"{subject} is {value} in step {step} of stage {stage}; the weights are those before this step; "
            f"{_to_continue(checkpoint, stage)}. The step is saved in {dump}; to reproduce it: {how}"
        )


class NonFiniteStateError(RuntimeError):
    """Weights or optimizer state became infinite or NaN though losses and gradients were finite; they are not saved."""

    def __init__(self, part: str, *, stage: str, step: int, checkpoint: Path | None) -> None:
        """
        Args:
            part: which part of the state, such as "weights of the generator".
            stage: "net" or "gan".
            step: optimizer steps of the stage so far.
            checkpoint: the newest checkpoint, from before; None if there is none.
        """
        super().__init__(
            f"{part} are not finite after step {step} of stage {stage} and are not saved; "
            f"{_to_continue(checkpoint, stage)}"
        )


@torch.no_grad()
def largest_gradient(networks: Iterable[nn.Module]) -> Tensor:
    """Largest magnitude among the networks' gradients, a scalar on their device; non-finite if any gradient is."""
    gradients = [p.grad for network in networks for p in network.parameters() if p.grad is not None]
    return torch.stack([norm.float() for norm in torch._foreach_norm(gradients, float("inf"))]).max()


def dump_failure(output: Path, *, stage: str, step: int, name: str, state: Mapping[str, object], rank: int = 0) -> Path:
    """Write the inputs of a failed step to OUTPUT/failures/{stage}-{step:08d}-{name}.pt; return the path.

    Args:
        output: the run folder.
        stage: "net" or "gan".
        step: the failed step, counted from 1.
        name: name of the loss.
        state: nested plain values and tensors, as for a checkpoint: batches, weights, settings.
        rank: rank of this process; above 0 it is appended to the file name.

    Raises:
        TypeError: ``state`` holds a value of another type.
        ValueError: ``name`` is not valid in a file name.
        OSError, RuntimeError: the file could not be written; no partial file is left.
    """
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ValueError(f"name must be letters, digits, '_', '.', '+' or '-', was {name!r}")
    contents = plain_state({"stage": stage, "step": step, "name": name, "rank": rank, "state": state}, "dump")
    folder = output / "failures"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage}-{step:08d}-{name}{f'-rank{rank}' if rank else ''}.pt"
    with atomic_file(path) as file:
        torch.save(contents, file)
    return path


def load_failure(path: Path) -> dict[str, Any]:
    """Read a dump, a dictionary with stage, step, name, rank and state.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a dump.
    """
    if not path.is_file():
        raise FileNotFoundError(f"a dump must be a file, {str(path)!r} is not")
    contents = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(contents, dict) or not {"stage", "step", "name", "state"} <= contents.keys():
        raise ValueError(f"{str(path)!r} is not a dump of a failed step")
    return contents
