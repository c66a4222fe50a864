"""Losses, gradients and weights that become infinite or NaN: where the run stops, and which checkpoint is good."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import VALIDATED, train_here
from torch import Tensor

from andfast.training import replay
from andfast.training.checkpoint import checkpoints, load_checkpoint
from andfast.training.state import StageState
from andfast.training.validation import validate

Change = Callable[[StageState, dict[str, Tensor]], dict[str, Tensor]]


@pytest.fixture
def in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Change], None]:
    """Changes the losses or gradients of one step."""
    gradients = StageState.gradients

    def install(step: int, change: Change) -> None:
        def changed(state: StageState, batches: Sequence[Tensor]) -> dict[str, Tensor]:
            values = gradients(state, batches)
            return change(state, values) if state.done == step - 1 else values

        monkeypatch.setattr(StageState, "gradients", changed)

    return install


def infinite_gradient(state: StageState, values: dict[str, Tensor]) -> dict[str, Tensor]:
    gradient = state.step.generator.conv_last.bias.grad
    assert gradient is not None
    gradient[0] = torch.inf
    return values


def nan_loss(_: StageState, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**values, "l1": values["l1"] * torch.nan}


def overflowing_update(state: StageState, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Finite, but its square, the second moment, is not."""
    gradient = state.step.generator.conv_last.bias.grad
    assert gradient is not None
    gradient[0] = 1e30
    return values


def all_finite(folder: Path) -> bool:
    weights = load_checkpoint(folder).weights
    return all(tensor.isfinite().all() for network in weights.values() for tensor in network.values())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two good steps."""
    folder = tmp_path_factory.mktemp("two_steps")
    assert train_here(folder, "--net.steps=2", "--checkpoint_every=100") == 0
    return folder


@pytest.mark.parametrize(
    ("change", "subject"), [(infinite_gradient, "a gradient is inf"), (nan_loss, "loss 'l1' is nan")]
)
def test_failed_step_is_not_applied(
    change: Change,
    subject: str,
    in_step: Callable[[int, Change], None],
    two_steps: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The checkpoint holds the step before; the message names it, and --resume continues with another learning rate."""
    in_step(3, change)
    assert train_here(tmp_path, "--checkpoint_every=100") == 3
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    (checkpoint,) = checkpoints(tmp_path / "run")
    assert checkpoint.name == "net-00000002"
    assert f"error: {subject} in step 3 of stage net; the weights are those before this step; " in line
    assert f"--resume continues from {checkpoint}, with another net.lr" in line
    good, saved = (load_file(folder / "run/weights/andnet.safetensors") for folder in (two_steps, tmp_path))
    assert all(torch.equal(saved[name], weight) for name, weight in good.items())
    in_step(99, change)
    assert train_here(tmp_path, "--resume", "--net.lr=1e-4") == 0
    assert all_finite(checkpoints(tmp_path / "run")[-1])


def test_replay_reproduces_an_infinite_gradient(
    in_step: Callable[[int, Change], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_step(1, infinite_gradient)
    assert train_here(tmp_path) == 3
    assert "there is no checkpoint" not in capsys.readouterr().err  # that of step 0 is saved
    (dump,) = (tmp_path / "run" / "failures").iterdir()
    monkeypatch.setattr("sys.argv", ["replay", str(dump), "--device", "cpu"])
    assert replay.main() == 1
    assert "gradients        inf" in capsys.readouterr().out


def test_state_that_is_not_finite_is_not_saved(
    in_step: Callable[[int, Change], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step is applied whose update overflows: no checkpoint has it, and resuming from the one before works."""
    in_step(2, overflowing_update)
    assert train_here(tmp_path) == 3
    error = capsys.readouterr().err
    (checkpoint,) = checkpoints(tmp_path / "run")
    assert checkpoint.name == "net-00000001"
    assert "optimizer states of the generator are not finite after step 2 of stage net and are not saved; " in error
    assert f"--resume continues from {checkpoint}" in error
    in_step(99, overflowing_update)
    assert train_here(tmp_path, "--resume") == 0
    assert all_finite(checkpoints(tmp_path / "run")[-1])


def test_failure_after_a_poisoned_step_does_not_save_it(
    in_step: Callable[[int, Change], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights become NaN while no checkpoint is due; the loss of the next step shows it."""

    def poison(state: StageState, values: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            state.step.generator.conv_last.bias.fill_(torch.nan)
        return values

    in_step(2, poison)
    assert train_here(tmp_path, "--checkpoint_every=100") == 3
    assert "there is no checkpoint: start again with --overwrite and another net.lr" in capsys.readouterr().err
    assert checkpoints(tmp_path / "run") == []
    assert not (tmp_path / "run" / "weights").exists()


def test_scores_that_are_nan_are_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first validation is NaN, the second sets the best weights."""
    calls = []

    def scores(*arguments: object, **options: object) -> dict[str, float]:
        values = validate(*arguments, **options)  # type: ignore[arg-type]
        calls.append(values["psnr_rgb"])
        return {**values, "psnr_rgb": float("nan")} if len(calls) == 1 else values

    monkeypatch.setattr("andfast.training.loop.validate", scores)
    assert train_here(tmp_path, *VALIDATED, "--net.steps=2") == 0
    assert load_checkpoint(checkpoints(tmp_path / "run")[-1]).state["best_score"] == calls[1]
    assert (tmp_path / "run" / "weights" / "andnet_best.safetensors").is_file()
