"""Tiny runs that are resumed or overwritten: what is recorded, printed, kept and restored."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import train_here

from andfast.data.pack_update import PackUpdate
from andfast.training.step_runner import StepRunner


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step."""
    folder = tmp_path_factory.mktemp("finished")
    assert train_here(folder, "--net.steps=1") == 0
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in (folder / "run").rglob("*") if path.is_file() and path.name != "run.lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stop_in(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Request a stop in the first call of a method."""
    method = getattr(owner, name)

    def stopped(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return method(*arguments)

    monkeypatch.setattr(owner, name, stopped)


@pytest.mark.parametrize("problem", ["typo", "stop while packing"])
def test_overwritten_run_is_kept_until_the_new_one_has_begun(
    problem: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    if problem == "typo":
        assert train_here(folder, "--overwrite", "--data.train=[/no/such/folder]") == 2
        assert "/no/such/folder" in capsys.readouterr().err
    else:
        stop_in(monkeypatch, PackUpdate, "_add")
        assert train_here(folder, "--overwrite", "--data.include=[coins.png]") == 130
    after = contents(folder)
    assert {name: after[name] for name in before if "/data/" not in name} == {
        name: content for name, content in before.items() if "/data/" not in name
    }


def test_resume_command_repeats_steps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It ends the resumed run where the first one would have ended; fewer steps than are done take none back."""
    with monkeypatch.context() as patch:
        stop_in(patch, StepRunner, "take")
        assert train_here(tmp_path, "--steps=2") == 130
    assert capsys.readouterr().err.strip().endswith(f"--output {tmp_path / 'run'} --resume --steps 2")
    assert train_here(tmp_path, "--resume", "--steps=2") == 0
    assert train_here(tmp_path, "--resume", "--steps=1") == 0
    assert "--steps 1 is below the 2 steps already done in stage net" in caplog.text
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [entry["step"] for entry in record["resumed"]] == [1, 2]


def test_changed_learning_rate_is_logged_and_recorded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert train_here(folder, "--resume", "--net.steps=1", "--net.lr=1e-4") == 0
    assert "net.lr was 0.001, is 0.0001" in caplog.text
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["resumed"][-1]["changed"] == {"net.lr": [1e-3, 1e-4]}


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_stage_weights_are_restored_from_the_checkpoint(
    damage: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "run" / "weights" / "andnet.safetensors"
    before = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(before[:1000])
    assert train_here(folder, "--resume", "--net.steps=1") == 0
    assert path.read_bytes() == before
    assert (f"{path}: not a whole safetensors file" in caplog.text) == (damage == "cut")
