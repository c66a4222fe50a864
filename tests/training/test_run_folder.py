"""The run folder: opening, weights, configuration and versions; and the random number generators."""

import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from andfast.config.files import load
from andfast.config.schema import DataConfig, TrainConfig
from andfast.training import run_folder
from andfast.training.checkpoint import latest, load_checkpoint, save_checkpoint
from andfast.training.rng import restore_rng_state, rng_state
from andfast.training.run_folder import open_run, save_stage_weights, weights_path, write_run_info


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


def test_open_run_keeps_runs_apart(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"--resume must find a run in output, .*run' has none"):
        open_run(output, resume=True, overwrite=False)
    assert open_run(output, resume=False, overwrite=False) == "new"
    assert output.is_dir()
    (output / "data").mkdir()
    assert open_run(output, resume=False, overwrite=False) == "new"
    save_checkpoint(output, {}, stage="net", step=5, keep=1)
    (output / "metrics.jsonl").write_text("")
    with pytest.raises(FileExistsError, match=r"run' holds a run already: --resume continues .*, --overwrite deletes"):
        open_run(output, resume=False, overwrite=False)
    assert open_run(output, resume=True, overwrite=False) == "resumed"
    assert latest(output) is not None
    assert open_run(output, resume=False, overwrite=True) == "new"
    assert [path.name for path in output.iterdir()] == ["data"]
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"output must be a folder, .*file' is a file"):
        open_run(tmp_path / "file", resume=False, overwrite=False)


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
