"""metrics.jsonl and TensorBoard events of a run.

Values that depend on the clock are nested under "timing"; the rest of metrics.jsonl is bit-identical for two runs that
compute the same.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TextIO

from torch import Tensor

from andfast.config.stages import STAGES, position
from andfast.files import atomic_file

Value = float | int | str | bool | None | Tensor
"""Type of a metric; a tensor must have one element."""

_RESERVED: Final = ("stage", "step", "timing")


class MetricsLog:
    """Writes OUTPUT/metrics.jsonl and TensorBoard events under OUTPUT/tensorboard/{stage}.

    A line is ``{"stage": ..., "step": ..., values ..., "timing": {...}}`` with numbers at full precision. Lines are
    flushed to the operating system one by one, so that a killed process loses none. JSON has no infinities and NaN:
    they become the strings "inf", "-inf" and "nan", which ``float()`` reads. A resumed run keeps the lines up to its
    checkpoint's step, so log a step before writing its checkpoint.

    Args:
        output: the run folder.
        tensorboard: also write TensorBoard events.
        resume_from: stage and step of the checkpoint from which the run resumes; later lines are cut off. ("net", 0)
            starts over. None: a new run.
        lines: number of lines when the checkpoint was written; a resumed run keeps exactly these. None for checkpoints
            that do not store it.
        enabled: whether to write anything; True only on rank 0.

    Raises:
        FileExistsError: a new run in a folder that has metrics.
        FileNotFoundError: raised by :meth:`write` and :meth:`sync` if the file was deleted or moved.
        ValueError: an existing line was not written by this class; the message names the file and the line.
    """

    def __init__(
        self,
        output: Path,
        *,
        tensorboard: bool,
        resume_from: tuple[str, int] | None = None,
        lines: int | None = None,
        enabled: bool = True,
    ) -> None:
        self.path = output / "metrics.jsonl"
        self._folder = output / "tensorboard"
        self._tensorboard = tensorboard and enabled
        self._resume_from = resume_from
        self._writers: dict[str, Any] = {}
        self.lines = 0
        """Number of lines in the file."""
        self._file: TextIO | None = None
        if not enabled:
            return
        output.mkdir(parents=True, exist_ok=True)
        if resume_from is not None:
            self.lines = _cut_off(self.path, resume_from, lines)
        elif self.path.exists() and self.path.stat().st_size:
            raise FileExistsError(f"{self.path} holds the metrics of an earlier run")
        self._file = self.path.open("a", encoding="utf-8")

    def write(
        self, stage: str, step: int, values: Mapping[str, Value], timing: Mapping[str, float] | None = None
    ) -> None:
        """Add a line.

        Args:
            stage: "net" or "gan".
            step: optimizer steps of the stage so far.
            values: computed values, equal for two runs that compute the same.
            timing: values that depend on the clock: seconds, images per second, shares of time.

        Raises:
            ValueError: unknown stage, reserved name ("stage", "step", "timing"), or tensor with more than one element.
        """
        if stage not in STAGES:
            raise ValueError(f"stage must be one of {STAGES}, was {stage!r}")
        reserved = [name for name in values if name in _RESERVED]
        if reserved:
            raise ValueError(f"values must not be named {', '.join(_RESERVED)}, was {reserved[0]!r}")
        plain = {name: _plain(name, value) for name, value in values.items()}
        plain_timing = {name: _plain(name, value) for name, value in (timing or {}).items()}
        if self._file is None:
            return
        line: dict[str, object] = {
            "stage": stage,
            "step": step,
            **{name: _json(value) for name, value in plain.items()},
        }
        if plain_timing:
            line["timing"] = {name: _json(value) for name, value in plain_timing.items()}
        self._check_still_there(self._file)
        try:
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            error.filename = error.filename or str(self.path)  # a full disk, for instance
            raise
        self.lines += 1
        if self._tensorboard:
            writer = self._writer(stage)
            for name, value in (
                *plain.items(),
                *((f"timing/{name}", value) for name, value in plain_timing.items()),
            ):
                if isinstance(value, int | float):
                    writer.add_scalar(name, value, step)

    def sync(self) -> None:
        """Flush all lines to disk; call it before writing a checkpoint."""
        if self._file is not None:
            self._check_still_there(self._file)
            os.fsync(self._file.fileno())
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        file, self._file = self._file, None
        self._tensorboard = False
        try:
            if file is not None:
                file.close()
        finally:
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing writes what a failed write has left in the buffer: its error would hide the first one.
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self.close()

    def _check_still_there(self, file: TextIO) -> None:
        if os.fstat(file.fileno()).st_nlink == 0 or not self.path.exists():
            raise FileNotFoundError(f"{self.path} was deleted while the run was writing to it")

    def _writer(self, stage: str) -> Any:
        """A stage's event writer; on resume TensorBoard drops the steps that are repeated."""
        if stage not in self._writers:
            try:
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (optional, and takes seconds)
            except ImportError as error:
                raise ModuleNotFoundError(
                    "tensorboard: true needs the package tensorboard; install it or set tensorboard to false"
                ) from error
            purge = None
            if self._resume_from is not None:
                resumed_stage, resumed_step = self._resume_from
                purge = resumed_step + 1 if stage == resumed_stage else 0
            self._writers[stage] = SummaryWriter(str(self._folder / stage), purge_step=purge)
        return self._writers[stage]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics.jsonl, without an incomplete last line.

    Raises:
        ValueError: a line is not a JSON object with a stage and a step; the message names the file and the line.
    """
    return [entry for entry, _ in _lines(path)]


def _lines(path: Path) -> Iterable[tuple[dict[str, Any], bytes]]:
    """The entries of a file with their bytes."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            entry = json.loads(line)
            position(entry["stage"], int(entry["step"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: must be a JSON object with a stage and a step") from error
        yield entry, line


def _cut_off(path: Path, resume_from: tuple[str, int], count: int | None) -> int:
    """Drop the lines after a checkpoint, and an incomplete last line; return the number of lines kept.

    Raises:
        ValueError: lines from before the checkpoint are missing; the message names the file.
    """
    if not path.exists():
        return 0
    end = position(*resume_from)
    kept = [line for entry, line in _lines(path) if position(entry["stage"], entry["step"]) <= end]
    if count is not None and len(kept) < count:
        raise ValueError(
            f"{path} is damaged: it must have {count} lines up to step {resume_from[1]} of stage {resume_from[0]}, has "
            f"{len(kept)}; delete it to go on without them"
        )
    kept = kept[:count]
    with atomic_file(path) as file:
        file.writelines(kept)
    return len(kept)


def _plain(name: str, value: Value) -> float | int | str | bool | None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must have one element, was a tensor of shape {tuple(value.shape)}")
        number: float | int | bool = value.item()
        return number
    return value


def _json(value: float | int | str | bool | None) -> float | int | str | bool | None:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
