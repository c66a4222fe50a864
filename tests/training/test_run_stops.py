"""Stops of tiny runs in every phase, dead workers, deleted folders, inputs that are checked before a run begins."""

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import VALIDATED, train_here

from andfast.data.pack_update import PackUpdate
from andfast.nn import RRDBNet
from andfast.nn.interpolation_start import start_as_interpolation
from andfast.nn.weights import save_weights
from andfast.training import loop, scoring, validation
from andfast.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from andfast.training.metrics_log import read_metrics
from andfast.training.step_runner import StepRunner

pytestmark = pytest.mark.usefixtures("terminal_signals")


def newest(folder: Path) -> Any:
    return load_checkpoint(checkpoints(folder / "run")[-1])


def assert_same_weights(folder: Path, reference: Path, name: str = "andnet") -> None:
    ours, expected = (load_file(path / "run" / "weights" / f"{name}.safetensors") for path in (folder, reference))
    assert all(torch.equal(ours[key], weight) for key, weight in expected.items())


class Units:
    """Counts the calls of a function that does one unit of work, and requests a stop in one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, stop_at: int) -> None:
        self.begun = 0
        unit: Callable[..., Any] = getattr(owner, name)

        def count(*arguments: Any, **options: Any) -> Any:
            self.begun += 1
            if self.begun == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return unit(*arguments, **options)

        monkeypatch.setattr(owner, name, count)


# ------------------------------------------------------------------------------------------------------------- stops

WITH_SHEETS = (*VALIDATED, "--net.steps=2", "--validation.sheet=1", "--checkpoint_every=100")


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("validated")
    assert train_here(folder, *WITH_SHEETS) == 0
    return folder


def test_packing_stops_at_the_image_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Units(monkeypatch, PackUpdate, "_add", stop_at=1)
    two = "--data.include=[cell.png,coins.png]"
    assert train_here(tmp_path, two) == 130
    assert images.begun == 1  # of two
    assert "stopped by SIGTERM before the first step; the same command starts again" in capsys.readouterr().err
    assert train_here(tmp_path, two, "--net.steps=1") == 0


@pytest.mark.parametrize("unit", ["image restored", "image scored", "sheet"])
def test_validation_stops_at_the_unit_at_hand(
    unit: str, validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is saved next, the scores are due after resuming, and the results are those of an undisturbed run."""
    owner, name = {
        "image restored": (scoring, "restore_padded"),
        "image scored": (scoring, "values"),
        "sheet": (validation, "sample_sheet"),
    }[unit]
    order: list[str] = []
    with monkeypatch.context() as patch:
        units = Units(patch, owner, name, stop_at=1)
        patch.setattr(
            "andfast.training.run_output.save_checkpoint",
            lambda *arguments, **choices: (
                order.append(f"saved after {units.begun}") or save_checkpoint(*arguments, **choices)
            ),
        )
        assert train_here(tmp_path, *WITH_SHEETS) == 130
    assert order == ["saved after 1"]
    assert (newest(tmp_path).step, newest(tmp_path).state["validation_due"]) == (1, True)
    assert train_here(tmp_path, *WITH_SHEETS, "--resume") == 0
    assert_same_weights(tmp_path, validated)
    lines = [
        [{key: value for key, value in line.items() if key != "timing"} for line in read_metrics(run / "metrics.jsonl")]
        for run in (tmp_path / "run", validated / "run")
    ]
    assert lines[0] == lines[1]


def test_end_of_a_stage_stops_at_the_unit_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of the last step is there already; resuming repeats the sheet and the summary only."""
    options = (*VALIDATED, "--net.steps=2", "--validation.every=100", "--validation.sheet=1")
    sheets: list[Path] = []
    draw = validation.sample_sheet

    def stop_in_last(rows: Any, path: Path, **choices: Any) -> None:
        sheets.append(path)
        if path.name == "sheet.png" and len(sheets) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        draw(rows, path, **choices)

    monkeypatch.setattr(validation, "sample_sheet", stop_in_last)
    assert train_here(tmp_path, *options) == 130
    assert newest(tmp_path).step == 2
    assert not (tmp_path / "run" / "summary.json").exists()
    monkeypatch.setattr(StepRunner, "take", lambda *_: pytest.fail("a step was repeated"))
    assert train_here(tmp_path, *options, "--resume") == 0
    assert [path.name for path in sheets] == ["net-00000002.png", "sheet.png", "sheet.png"]
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_stop_is_heard_after_the_step_at_hand(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the signal comes."""
    take = StepRunner.take
    steps = []

    def stop_in_second(runner: StepRunner, batches: Any) -> Any:
        steps.append(batches)
        if len(steps) == 2:
            for _ in range(3):
                os.kill(os.getpid(), signal.Signals[name])
        return take(runner, batches)

    monkeypatch.setattr(StepRunner, "take", stop_in_second)
    assert train_here(tmp_path, "--checkpoint_every=100") == 130
    assert len(steps) == 2
    assert newest(tmp_path).step == 2


# ------------------------------------------------------------------------------------------------------------ workers


def test_dead_worker_ends_the_run_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker is killed within a step: the step ends, the run is saved, one line says what to do."""
    options = ("--data.workers=1", "--checkpoint_every=100", "--net.steps=2")
    assert train_here(tmp_path / "whole", *options) == 0
    take = StepRunner.take

    def kill_in_first(runner: StepRunner, batches: Any) -> Any:
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # it stays for PyTorch's handler to find
        return take(runner, batches)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(StepRunner, "take", kill_in_first)
        assert train_here(tmp_path, *options) == 4
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("packing:", "net:"))]
    assert len(errors) == 1
    assert "a data worker died: DataLoader worker (pid" in errors[0]
    assert "is killed by signal: Killed. If it ran out of memory, lower data.workers" in errors[0]
    assert "if out of shared memory (Bus error), enlarge /dev/shm" in errors[0]
    assert "stopped after step 1 of stage net; to resume: python -m andfast.train --output" in errors[0]
    assert newest(tmp_path).step == 1
    assert train_here(tmp_path, *options, "--resume") == 0
    assert_same_weights(tmp_path, tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------- deleted folders


@pytest.mark.parametrize("phase", ["log", "checkpoint", "validation"])
@pytest.mark.parametrize("deleted", ["", "metrics.jsonl"])
def test_deleted_output_is_an_error_at_the_next_write(
    deleted: str, phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written to the folder afterwards, and no step is done in vain."""
    options = {
        "log": ["--checkpoint_every=100"],
        "checkpoint": ["--log_every=100"],
        "validation": [*VALIDATED, "--log_every=100", "--checkpoint_every=100", "--validation.sheet=1"],
    }[phase]
    take = StepRunner.take
    steps = []

    def delete_in_second(runner: StepRunner, batches: Any) -> Any:
        steps.append(batches)
        if len(steps) == 2:
            path = tmp_path / "run" / deleted
            path.unlink() if deleted else shutil.rmtree(path)
        return take(runner, batches)

    monkeypatch.setattr(StepRunner, "take", delete_in_second)
    assert train_here(tmp_path, "--net.steps=5", *options) == 2
    assert len(steps) == 2
    assert "was deleted while the run was writing to it" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / deleted).exists()


def test_run_ends_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert train_here(tmp_path, "--steps=1") == 0
    assert "loss_curve.png was not drawn: the loss curve requires matplotlib" in caplog.text
    assert (tmp_path / "run" / "summary.json").is_file()
    assert not (tmp_path / "run" / "loss_curve.png").exists()


# ------------------------------------------------------------------------------------------------------- best weights


def test_best_of_an_earlier_version_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Best weights chosen by PSNR-Y are scored in RGB when the run is resumed, and kept if they are still the best."""
    assert train_here(tmp_path, *VALIDATED, "--steps=1") == 0
    best = tmp_path / "run" / "weights" / "andnet_best.safetensors"
    generator = RRDBNet(4, features=4, blocks=1, growth=4)
    start_as_interpolation(generator)
    save_weights(best, generator)  # far better than what two steps have learned
    before = best.read_bytes()
    checkpoint = newest(tmp_path)
    state = {**checkpoint.state, "best_psnr_y": 3.0, "lines": None}
    del state["best_score"], state["best_by"]
    save_checkpoint(tmp_path / "run", state, checkpoint.weights, stage="net", step=1, keep=9)
    scored: list[float] = []
    validate = loop.validate

    def record(*arguments: Any, **options: Any) -> dict[str, float]:
        scores = validate(*arguments, **options)
        scored.append(scores["psnr_rgb"])
        return scores

    monkeypatch.setattr(loop, "validate", record)
    assert train_here(tmp_path, *VALIDATED, "--steps=2", "--resume") == 0
    assert len(scored) == 2
    assert scored[0] > scored[1] + 5
    assert newest(tmp_path).state["best_score"] == scored[0]
    assert best.read_bytes() == before


# -------------------------------------------------------------------------------------------------- checks at the start


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("problem", ["VGG weights of a later stage", "scale of init_weights"])
def test_weights_are_checked_before_the_run_begins(
    problem: str, overwrite: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No folder is left, and an earlier run is untouched."""
    save_weights(tmp_path / "x2.safetensors", RRDBNet(2, features=4, blocks=1, growth=4))
    arguments, message = {
        "VGG weights of a later stage": (
            ["--stages=[net,gan]", "--discriminator.kind=unet", "--loss.perceptual=1", "--loss.vgg_weights=none.pth"],
            "none.pth",
        ),
        "scale of init_weights": (
            [f"--init_weights={tmp_path / 'x2.safetensors'}"], "scale must be that of init_weights",
        ),
    }[problem]  # fmt: skip
    before: dict[str, bytes] = {}
    if overwrite:
        assert train_here(tmp_path, "--net.steps=1") == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        arguments = [*arguments, "--overwrite"]
    assert train_here(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    left = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left.keys() == before.keys()
    assert {name for name in before if left[name] != before[name]} <= {"run.lock"}
    assert overwrite or not (tmp_path / "run").exists()
