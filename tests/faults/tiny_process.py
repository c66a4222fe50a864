"""Runs of two steps per stage in forked processes, which need not import torch again."""

import contextlib
import io
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from injection import Injection
from safetensors.torch import load_file

import andfast.training.loop  # noqa: F401  (before forking: a process then starts at once)
from andfast import train
from andfast.training.checkpoint import latest, load_checkpoint
from andfast.training.metrics_log import read_metrics

CONFIG = """
stages: [net, gan]
seed: 3
device: cpu
precision: fp32
batch_size: 1
ema_decay: 0.5
generator: {features: 4, blocks: 1, growth: 4}
discriminator: {kind: unet, features: 4}
degradation: {channels: 4}
adversary: {steps: 1}
loss: {perceptual: 0}
net: {steps: 2, lr: 1.0e-3}
gan: {steps: 2, lr: 1.0e-4}
data: {train: ["package:skimage/data"], include: [cell.png, coins.png], patch_size: 16, workers: 0}
validation: {hr: ["package:skimage/data"], include: [coffee.png], every: 1, crops: 1, crop_size: 20, sheet: 0}
tensorboard: false
log_every: 1
checkpoint_every: 1
keep_checkpoints: 2
"""
TIMEOUT = 300.0
"""Seconds after which a process counts as hanging."""


def warm_up(folder: Path) -> None:
    """Run once in this process: forked ones then find modules imported and oneDNN's kernels generated."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = train.main(Tiny(folder).command())
    if status != 0:
        raise RuntimeError(f"the run in this process ended with {status}")


class Tiny:
    """The tiny run in ``folder``/run.

    Attributes:
        run: the run folder.
        log: standard output and error of all its processes.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run, self.log = folder / "run", folder / "log.txt"
        self._config = folder / "tiny.yaml"
        self._config.write_text(CONFIG)

    def command(self) -> list[str]:
        """The arguments of a user who finds the folder as it is: --resume if it holds a run, else the first command."""
        if (self.run / "run.json").exists() and (self.run / "config.yaml").exists():
            return ["--output", str(self.run), "--resume"]
        return ["--config", str(self._config), "--output", str(self.run)]

    def start(self, *extra: str, at: int | None = None, fault: str = "kill", ignore: int | None = None) -> int:
        """Start the run in a forked process, with a fault at the event ``at``; return the process id."""
        arguments = [*self.command(), *extra]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            process = os.fork()
        if process:
            return process
        status = 99
        try:
            os.setsid()
            torch.set_num_threads(1)  # the pool's threads were not forked
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            # pytest has replaced these two.
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # nohup may have set one
                signal.signal(number, signal.SIG_IGN if number == ignore else signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL if ignore == signal.SIGINT else signal.default_int_handler)
            injection = Injection(self.run, at, fault)
            injection.install()
            status = train.main(arguments)
            self.log.with_name("events.txt").write_text("\n".join(injection.events))
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def finish(self, process: int) -> int:
        """Wait for a process; return its exit code, negative for a signal.

        Raises:
            TimeoutError: it hangs; it is killed.
        """
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise TimeoutError(f"the process has not ended in {TIMEOUT:.0f} s: {self.log.read_text()[-2000:]}")

    def complete(self, **options: Any) -> int:
        """Start and wait."""
        return self.finish(self.start(**options))

    def wait_for(self, path: Path, process: int, *, lines: int = 0) -> None:
        """Wait until a file exists and has so many lines, or the process has ended."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            if path.is_file() and path.read_bytes().count(b"\n") >= lines:
                return
            if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return
            time.sleep(0.005)
        raise AssertionError(f"{path} was not written")

    def events(self) -> list[str]:
        """The events of the last process that ended by itself."""
        return self.log.with_name("events.txt").read_text().splitlines()

    def result(self) -> dict[str, Any]:
        """All that must be equal bit for bit: weights, newest checkpoint and metrics, without clocks and ids."""
        newest = latest(self.run)
        assert newest is not None, f"{self.run} has no checkpoint"
        checkpoint = load_checkpoint(newest)
        state = {
            key: value
            for key, value in checkpoint.state.items()
            if key not in ("seconds", "waited", "summary", "config", "run")
        }
        lines = [{k: v for k, v in line.items() if k != "timing"} for line in read_metrics(self.run / "metrics.jsonl")]
        return {
            "position": (checkpoint.stage, checkpoint.step),
            "state": state,
            "checkpoint": checkpoint.weights,
            "weights": {path.name: load_file(path) for path in sorted((self.run / "weights").iterdir())},
            "metrics": lines,
        }


def difference(ours: Any, theirs: Any, where: str = "") -> str | None:
    """Where two nested results differ first; None if they are equal bit for bit."""
    if isinstance(ours, torch.Tensor):
        return None if isinstance(theirs, torch.Tensor) and torch.equal(ours, theirs) else where
    if type(ours) is not type(theirs):
        return where
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return f"{where}: {sorted(map(str, ours.keys() ^ theirs.keys()))}"
        items = [(f"{where}.{key}", ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return f"{where}: {len(ours)} and {len(theirs)} items"
        items = [(f"{where}[{index}]", a, b) for index, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    else:
        return None if ours == theirs else where
    return next((path for name, a, b in items if (path := difference(a, b, name)) is not None), None)
