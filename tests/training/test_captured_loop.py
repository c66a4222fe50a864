"""Runs with captured steps: host synchronization, failures, stop and resume."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rerun import Rerun
from safetensors.torch import load_file
from tiny_runs import SMALLEST, VALIDATED, write_config

from andfast.config.command_line import parse_train
from andfast.training import loop, state
from andfast.training.captured_step import CapturedStep
from andfast.training.checkpoint import latest, load_checkpoint
from andfast.training.failure import NonFiniteLossError, load_failure
from andfast.training.latch import Latch
from andfast.training.signals import GracefulStop

Train = Callable[..., None]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs the tiny configuration in this process, with captures by rerunning."""
    monkeypatch.setattr(state, "captures_step", lambda *_: True)
    monkeypatch.setattr(state, "CUDAGraphBackend", Rerun)

    def run(folder: Path, *arguments: str) -> None:
        fixed = ["--output", str(folder / "run"), "--net.steps=10", "--log_every=4", *VALIDATED]
        loop.run(*parse_train([*write_config(folder, SMALLEST), *fixed, *arguments]))

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "weights" / "andnet.safetensors")


def test_host_reads_only_when_something_is_due(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = Latch.read
    monkeypatch.setattr(Latch, "read", lambda latch: reads.append(int(latch._step)) or read(latch))
    train(tmp_path, "--checkpoint_every=5", "--validation.every=100", "--log_every=4")
    assert reads == [4, 5, 8, 10]


def test_failure_dumps_the_failed_step(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host reads two steps later; dump, weights and checkpoint are those of the failed step."""
    take = CapturedStep.take
    failed = []

    def poison(captured: CapturedStep, batches: list[torch.Tensor], done: int) -> None:
        if done == 5:
            batches[0][0, 0, 0, 0] = torch.nan
            failed.append(batches[0].clone())
        take(captured, batches, done)

    train(tmp_path / "good", "--net.steps=5", "--checkpoint_every=100", "--validation.every=100")
    monkeypatch.setattr(CapturedStep, "take", poison)
    with pytest.raises(NonFiniteLossError, match=r"loss '\w+' is nan in step 6 of stage net"):
        train(tmp_path, "--checkpoint_every=100", "--validation.every=100")
    (path,) = (tmp_path / "run" / "failures").glob("*.pt")
    failure = load_failure(path)
    assert failure["step"] == 6
    assert torch.equal(failure["state"]["batches"][0].nan_to_num(7), failed[0].nan_to_num(7))
    folder = latest(tmp_path / "run")
    assert folder is not None
    assert load_checkpoint(folder).step == 5
    expected = weights(tmp_path / "good")
    for name, weight in weights(tmp_path).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("preset", ["calibrated", "symmetric"])
def test_stop_takes_effect_after_the_step(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    """Also after a step at which nothing is due; the resumed run is bit-identical to an uninterrupted one.

    Preset symmetric draws a factor of the radii per image.
    """
    options = ("--checkpoint_every=100", "--validation.every=100", f"--adversary.preset={preset}")
    train(tmp_path / "whole", *options)
    stops: list[GracefulStop] = []
    enter = GracefulStop.__enter__
    take = CapturedStep.take
    monkeypatch.setattr(GracefulStop, "__enter__", lambda stop: stops.append(stop) or enter(stop))

    def stop_in_third(captured: CapturedStep, batches: list[torch.Tensor], done: int) -> None:
        take(captured, batches, done)
        if done == 2:
            stops[0].signal_name = "SIGTERM"

    monkeypatch.setattr(CapturedStep, "take", stop_in_third)
    with pytest.raises(loop.Stopped, match="stopped after step 3 of stage net"):
        train(tmp_path, *options)
    monkeypatch.setattr(CapturedStep, "take", take)
    train(tmp_path, *options, "--resume")
    expected = weights(tmp_path / "whole")
    for name, weight in weights(tmp_path).items():
        assert torch.equal(weight, expected[name]), name
