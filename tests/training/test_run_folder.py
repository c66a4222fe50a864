"""Run folder: opening, weights, configuration and versions; random number generators."""

import errno
import fcntl
import json
import os
import random
import signal
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from andfast.config.files import load
from andfast.config.schema import DataConfig, TrainConfig
from andfast.training import run_folder
from andfast.training.checkpoint import load_checkpoint, save_checkpoint
from andfast.training.rng import restore_rng_state, rng_state
from andfast.training.run_folder import (
    begin_run,
    check_inputs,
    check_run_folder,
    delete_replaced,
    read_run_id,
    recover_run,
    restore_replaced,
    save_stage_weights,
    weights_path,
    write_run_info,
)
from andfast.training.run_lock import RunLockedError, locked_run


def test_rng_state_round_trips_through_a_checkpoint() -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))

    draw()
    state = rng_state()
    first = [draw() for _ in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        saved = save_checkpoint(Path(folder), {"rng": state}, stage="net", step=1, keep=1)
        loaded = load_checkpoint(saved).state["rng"]
    assert restore_rng_state(loaded) is True
    assert [draw() for _ in range(3)] == first
    elsewhere = {**loaded, "cuda": [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)}
    assert restore_rng_state(elsewhere) is False
    assert [draw() for _ in range(3)] == first


def test_save_stage_weights(tmp_path: Path) -> None:
    assert weights_path(tmp_path, "net") == tmp_path / "weights" / "andnet.safetensors"
    assert weights_path(tmp_path, "gan", best=True) == tmp_path / "weights" / "andgan_best.safetensors"
    path = save_stage_weights(tmp_path, "gan", {"conv_first.weight": torch.ones(2, 2)}, {"scale": "4"}, best=True)
    assert path == weights_path(tmp_path, "gan", best=True)
    assert path.is_file()


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def run_in(folder: Path) -> str:
    """Create a run with a checkpoint, weights and metrics; return its id."""
    folder.mkdir(exist_ok=True)
    run = begin_run(folder)
    write_run_info(folder, TrainConfig(output=folder, data=DataConfig(train=["a"])))
    save_checkpoint(folder, {}, stage="net", step=5, keep=1)
    save_stage_weights(folder, "net", {"conv_first.weight": torch.ones(2, 2)}, {})
    (folder / "metrics.jsonl").write_text("")
    return run


def test_check_run_folder(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"--resume must find a run in output, .*run' has none"):
        check_run_folder(output, resume=True, overwrite=False)
    check_run_folder(output, resume=False, overwrite=False)
    run = run_in(output)
    assert read_run_id(output) == run
    with pytest.raises(FileExistsError, match=r"run' holds a run already: --resume continues .*, --overwrite deletes"):
        check_run_folder(output, resume=False, overwrite=False)
    check_run_folder(output, resume=True, overwrite=False)
    check_run_folder(output, resume=False, overwrite=True)
    (output / "run.json").unlink()  # a run of an earlier version, which versions.json names
    check_run_folder(output, resume=False, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"output must be a folder, .*file' is a file"):
        check_run_folder(tmp_path / "file", resume=False, overwrite=False)


@pytest.mark.parametrize("name", ["weights/x.pth", "samples/holiday.png", "checkpoints/a", "config.yaml"])
def test_overwrite_rejects_a_folder_without_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"output must be a run of andfast or a folder without"):
        check_run_folder(tmp_path, resume=False, overwrite=True)
    assert (tmp_path / name).read_text() == "mine"


def test_overwrite_deletes_only_files_of_the_run(tmp_path: Path) -> None:
    first = run_in(tmp_path)
    foreign = {"weights/x.pth", "samples/holiday.png", "notes.txt", "data/index.json"}
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    earlier = listing(tmp_path)
    assert begin_run(tmp_path) != first
    assert {name for name in listing(tmp_path) if not name.startswith(".")} == foreign | {"run.json"}
    restore_replaced(tmp_path)  # the new run did not start
    assert listing(tmp_path) == earlier
    assert read_run_id(tmp_path) == first
    begin_run(tmp_path)
    delete_replaced(tmp_path)  # the new run has started
    assert listing(tmp_path) == foreign | {"run.json"}


def test_partly_replaced_run_is_restored(tmp_path: Path) -> None:
    """After a process was killed while setting a run aside."""
    first = run_in(tmp_path)
    earlier = listing(tmp_path)
    (tmp_path / ".replaced" / "weights").mkdir(parents=True)
    (tmp_path / "weights" / "andnet.safetensors").rename(tmp_path / ".replaced" / "weights" / "andnet.safetensors")
    recover_run(tmp_path)
    assert listing(tmp_path) == earlier
    assert read_run_id(tmp_path) == first


def test_check_inputs_rejects_overlap_with_run_folder(tmp_path: Path) -> None:
    photos, run = tmp_path / "photos", tmp_path / "photos" / "run"
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "a.pth").write_text("")
    data = DataConfig(train=[str(photos)])
    for config, message in (
        (TrainConfig(output=run, data=data), r"output must be outside data.train .*photos', was .*photos/run'"),
        (TrainConfig(output=photos, data=data), r"output must be outside data.train"),
        (
            TrainConfig(output=run, data=DataConfig(train=["a"]), init_weights=run / "weights" / "a.pth"),
            r"init_weights must be outside output .*run', was .*weights/a.pth'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check_inputs(config)
    check_inputs(TrainConfig(output=tmp_path / "run", data=data))


def test_damaged_record_is_named(tmp_path: Path) -> None:
    run_in(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_run_id(tmp_path)
    (tmp_path / "versions.json").write_text("[]")
    with pytest.raises(ValueError, match=r"versions\.json is damaged"):
        write_run_info(tmp_path, TrainConfig(output=tmp_path, data=DataConfig(train=["a"])))


def test_lock_names_its_holder(tmp_path: Path) -> None:
    with locked_run(tmp_path / "run"):
        with (
            pytest.raises(
                RunLockedError, match=rf"run' is in use by process {os.getpid()} on host {socket.gethostname()}"
            ),
            locked_run(tmp_path / "run"),
        ):
            raise AssertionError
        child = os.fork()
        if child == 0:  # a worker that outlives its parent must not hold the lock
            time.sleep(60)
            os._exit(0)
    try:
        with locked_run(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with locked_run(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()


def test_lock_without_flock_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked_run(tmp_path / "run"):
        pass
    assert "the file system does not support flock (No locks available)" in caplog.text


def test_run_info_keeps_earlier_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(output=tmp_path, data=DataConfig(train=["a"]))
    write_run_info(tmp_path, config)
    assert load(tmp_path / "config.yaml") == config
    first = json.loads((tmp_path / "versions.json").read_text())
    assert first["torch"] == torch.__version__.partition("+")[0] or first["torch"] == torch.__version__
    assert {"andfast", "triton", "numpy", "python", "platform", "device", "cuda", "commit", "changed"} <= set(first)
    assert first["device"]
    write_run_info(tmp_path, config)
    assert json.loads((tmp_path / "versions.json").read_text()) == first
    monkeypatch.setattr(run_folder, "versions", lambda _device: {"torch": "99"})
    write_run_info(tmp_path, config)
    assert json.loads((tmp_path / "versions.json").read_text()) == {"torch": "99", "earlier": [first]}
