"""What a run tells: metrics.jsonl, TensorBoard events, the progress bar, and the run folder's configuration
and versions.

Values that depend on the clock are kept apart, under "timing", so that the rest of metrics.jsonl is
bit-identical for two runs that compute the same.
"""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from andfast.config.files import dump
from andfast.config.schema import STAGES, TrainConfig
from andfast.files import atomic_file
from andfast.training.checkpoint import position

Value = float | int | str | bool | None | Tensor
"""What a metric can be; a tensor has one element."""

_RESERVED: Final = ("stage", "step", "timing")
_PACKAGES: Final = (
    "andfast",
    "torch",
    "torchvision",
    "triton",
    "numpy",
    "safetensors",
    "pillow",
    "jsonargparse",
)


class MetricsLog:
    """Writes OUTPUT/metrics.jsonl and TensorBoard events under OUTPUT/tensorboard/{stage}.

    A line is ``{"stage": ..., "step": ..., values ..., "timing": {...}}``, with numbers at full precision,
    and reaches the operating system at once, so a killed process loses none. Infinite and NaN values, which
    JSON has not, become the texts "inf", "-inf" and "nan" (``float()`` reads them). Log a step before writing
    its checkpoint: lines up to the checkpoint's step are what a resumed run keeps.

    Args:
        output: the run folder.
        tensorboard: write events too.
        resume_from: stage and step of the checkpoint that the run goes on from, ("net", 0) to start over;
            what was logged after it is cut off. None: a new run.
        enabled: False on all ranks but the first; nothing is written then.

    Raises:
        FileExistsError: a new run, but there are metrics already.
        ValueError: an earlier line is not what this class writes; the text names the file and the line.
    """

    def __init__(
        self,
        output: Path,
        *,
        tensorboard: bool,
        resume_from: tuple[str, int] | None = None,
        enabled: bool = True,
    ) -> None:
        self.path = output / "metrics.jsonl"
        self._folder = output / "tensorboard"
        self._tensorboard = tensorboard and enabled
        self._resume_from = resume_from
        self._writers: dict[str, Any] = {}
        self._file: TextIO | None = None
        if not enabled:
            return
        output.mkdir(parents=True, exist_ok=True)
        if resume_from is not None:
            _cut_off(self.path, resume_from)
        elif self.path.exists() and self.path.stat().st_size:
            raise FileExistsError(f"{self.path} holds the metrics of an earlier run")
        self._file = self.path.open("a", encoding="utf-8")

    def write(
        self, stage: str, step: int, values: Mapping[str, Value], timing: Mapping[str, float] | None = None
    ) -> None:
        """Add a line.

        Args:
            stage: "net" or "gan".
            step: optimizer steps of the stage that are done.
            values: what the computation gave; the same for two runs that compute the same.
            timing: what depends on the clock: seconds, images per second, shares of time.

        Raises:
            ValueError: a name is taken ("stage", "step", "timing"), or a tensor has more than one element.
        """
        if stage not in STAGES:
            raise ValueError(f"stage must be one of {STAGES}, was {stage!r}")
        taken = [name for name in values if name in _RESERVED]
        if taken:
            raise ValueError(f"values must not be named {', '.join(_RESERVED)}, was {taken[0]!r}")
        plain = {name: _plain(name, value) for name, value in values.items()}
        clock = {name: _plain(name, value) for name, value in (timing or {}).items()}
        if self._file is None:
            return
        line: dict[str, object] = {
            "stage": stage,
            "step": step,
            **{name: _json(value) for name, value in plain.items()},
        }
        if clock:
            line["timing"] = {name: _json(value) for name, value in clock.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._tensorboard:
            writer = self._writer(stage)
            for name, value in (
                *plain.items(),
                *((f"timing/{name}", value) for name, value in clock.items()),
            ):
                if isinstance(value, int | float):
                    writer.add_scalar(name, value, step)

    def picture(self, stage: str, step: int, name: str, image: Tensor) -> None:
        """Add a picture to TensorBoard: (3, H, W), uint8 or float in [0, 1]."""
        if self._tensorboard:
            self._writer(stage).add_image(name, image.detach().cpu(), step)

    def sync(self) -> None:
        """Return once all lines are on disk; to be called before a checkpoint is written."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Write what is pending and close the files."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self._tensorboard = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _writer(self, stage: str) -> Any:
        """A stage's event writer; a resumed one makes TensorBoard drop the steps that are done again."""
        if stage not in self._writers:
            try:
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (seconds, and optional)
            except ImportError as error:
                raise ModuleNotFoundError(
                    "tensorboard: true needs the package tensorboard; install it or set tensorboard to false"
                ) from error
            purge = None
            if self._resume_from is not None:
                at_stage, at_step = self._resume_from
                purge = at_step + 1 if stage == at_stage else 0
            self._writers[stage] = SummaryWriter(str(self._folder / stage), purge_step=purge)
        return self._writers[stage]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics.jsonl, without a last line that a kill has torn.

    Raises:
        ValueError: a line is not a JSON object with a stage and a step; the text names the file and the line.
    """
    return [entry for entry, _ in _lines(path)]


def _lines(path: Path) -> Iterable[tuple[dict[str, Any], bytes]]:
    """The entries of a file, each with its bytes."""
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


def _cut_off(path: Path, resume_from: tuple[str, int]) -> None:
    """Drop the lines beyond a checkpoint, and a torn last one."""
    if not path.exists():
        return
    end = position(*resume_from)
    kept = [line for entry, line in _lines(path) if position(entry["stage"], entry["step"]) <= end]
    with atomic_file(path) as file:
        file.writelines(kept)


def _plain(name: str, value: Value) -> float | int | str | bool | None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, was a tensor of shape {tuple(value.shape)}")
        number: float | int | bool = value.item()
        return number
    return value


def _json(value: float | int | str | bool | None) -> float | int | str | bool | None:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_run_info(output: Path, config: TrainConfig, *, device: str = "cpu", enabled: bool = True) -> None:
    """Write OUTPUT/config.yaml (resolved) and OUTPUT/versions.json.

    Where a run is resumed under other versions, the earlier ones stay in versions.json under "earlier".
    """
    if not enabled:
        return
    output.mkdir(parents=True, exist_ok=True)
    with atomic_file(output / "config.yaml") as file:
        file.write(dump(config).encode())
    path = output / "versions.json"
    found: dict[str, Any] = versions(device)
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        earlier = before.pop("earlier", [])
        if before != found:
            earlier = [*earlier, before]
        if earlier:
            found["earlier"] = earlier
    with atomic_file(path) as file:
        file.write((json.dumps(found, indent=2) + "\n").encode())


def versions(device: str = "cpu") -> dict[str, str | bool | None]:
    """Packages, Python, platform, GPU and, where andfast runs from a checkout, its commit."""
    found: dict[str, str | bool | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found["python"] = platform.python_version()
    found["platform"] = platform.platform()
    found["cuda"] = torch.version.cuda if device.startswith("cuda") else None
    found["device"] = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name()
    found["commit"], found["changed"] = commit_of(Path(__file__).parent)
    return found


def commit_of(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout that tracks ``folder`` and whether tracked files differ from it; (None,
    None) if none.

    A package that is installed inside of some other project's checkout is not tracked there, and has no
    commit.
    """

    def git(*arguments: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=10, env=environment
        ).stdout.strip()

    try:
        if not git("ls-files", "."):
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Progress:
    """A stage's progress bar on stderr: loss, images per second, share of the ascent, LR PSNR, loss gain.

    Args:
        stage: its name, shown in front.
        total: the stage's last step.
        done: steps that are done already (a resumed run).
        enabled: False on all ranks but the first.
        file: where to draw; stderr by default. Where it is not a terminal, a line is drawn every ten seconds
            at most.
    """

    def __init__(
        self, stage: str, total: int, *, done: int = 0, enabled: bool = True, file: TextIO | None = None
    ) -> None:
        target = sys.stderr if file is None else file
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=stage,
            unit="step",
            disable=not enabled,
            file=target,
            dynamic_ncols=True,
            mininterval=0.2 if target.isatty() else 10.0,
        )

    def show(
        self,
        *,
        loss: float | None = None,
        images_per_second: float | None = None,
        ascent_share: float | None = None,
        lr_psnr: float | None = None,
        loss_gain: float | None = None,
    ) -> None:
        """Set what is shown beside the bar.

        Args:
            loss: G's loss on the adversarial case.
            images_per_second: over all processes.
            ascent_share: part of the step's time that the ascent took, 0 to 1.
            lr_psnr: adversarial against clean LR, in dB.
            loss_gain: loss on the adversarial case minus loss on the clean one.
        """
        self._bar.set_postfix_str(describe(loss, images_per_second, ascent_share, lr_psnr, loss_gain), refresh=False)

    def advance(self, steps: int = 1) -> None:
        """Count steps."""
        self._bar.update(steps)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def describe(
    loss: float | None,
    images_per_second: float | None,
    ascent_share: float | None,
    lr_psnr: float | None,
    loss_gain: float | None,
) -> str:
    """The text beside the bar: "loss 0.0512, 38.1 img/s, ascent 78%, LR 24.1 dB, gain +0.0123"."""
    parts = (
        loss is not None and f"loss {loss:.4f}",
        images_per_second is not None and f"{images_per_second:.1f} img/s",
        ascent_share is not None and f"ascent {ascent_share:.0%}",
        lr_psnr is not None and f"LR {lr_psnr:.1f} dB",
        loss_gain is not None and f"gain {loss_gain:+.4f}",
    )
    return ", ".join(part for part in parts if part)


def say(message: str, *, enabled: bool = True) -> None:
    """Print a line on stdout without breaking a progress bar."""
    if enabled:
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()
