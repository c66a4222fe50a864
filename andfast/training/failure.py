"""A loss that is not finite: the error that stops the run, and the dump from which it can be reproduced."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from andfast.files import atomic_file
from andfast.training.checkpoint import plain_state


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or NaN; the weights are those from before the step."""

    def __init__(
        self, name: str, value: float, *, stage: str, step: int, dump: Path, reproduce: str | None = None
    ) -> None:
        """
        Args:
            name: which loss, "l1" for instance.
            value: what it was.
            stage: "net" or "gan".
            step: the step in which it happened, counted from 1; it was not applied.
            dump: what :func:`dump_failure` returned.
            reproduce: the command that runs the step again; None: only how to read the dump.
        """
        self.name, self.value, self.stage, self.step, self.dump = name, value, stage, step, dump
        how = reproduce or f"torch.load({str(dump)!r}, weights_only=True) holds all that went into it"
        super().__init__(
            f"loss {name!r} is {value} in step {step} of stage {stage}; the weights are from before it. "
            f"The step is in {dump}; to reproduce it: {how}"
        )


def dump_failure(output: Path, *, stage: str, step: int, name: str, state: Mapping[str, object], rank: int = 0) -> Path:
    """Write what went into a failed step to OUTPUT/failures/{stage}-{step:08d}-{name}.pt; return that path.

    Args:
        state: nested plain values and tensors, as for a checkpoint: the batch, theta, weights, settings ...
        rank: process of a distributed run; above 0 it is part of the file's name.

    Raises:
        TypeError: ``state`` holds something that could not be read back.
        ValueError: ``name`` cannot be part of a file's name.
        OSError, RuntimeError: the file could not be written; none is left.
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
    """Read a dump: a dictionary with stage, step, name, rank and state.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a dump.
    """
    if not path.is_file():
        raise FileNotFoundError(f"a dump must be a file, {str(path)!r} is not")
    contents = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(contents, dict) or not {"stage", "step", "name", "state"} <= contents.keys():
        raise ValueError(f"{str(path)!r} is not a dump of a failed step")
    return contents
