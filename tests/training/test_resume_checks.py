"""Checks of checkpoints and settings on resume."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from andfast.config.files import dump
from andfast.config.resume import digest
from andfast.config.schema import DataConfig, NetConfig, TrainConfig
from andfast.training.checkpoint import Checkpoint, CheckpointError, latest, save_checkpoint
from andfast.training.distributed import ProcessGroup
from andfast.training.resume import check_no_progress, check_same_run, run_identity


def group(count: int = 1) -> ProcessGroup:
    return ProcessGroup(0, count, torch.device("cpu"))


def config_of(output: Path, **settings: Any) -> TrainConfig:
    return dataclasses.replace(TrainConfig(output=output, batch_size=4, data=DataConfig(train=["a"])), **settings)


def checkpoint_of(config: TrainConfig, processes: int = 1) -> Checkpoint:
    return Checkpoint("net", 5, run_identity(config, group(processes), {"pictures": "a"}, "run 1"), {})


def test_learning_rate_may_change(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(config_of(tmp_path))
    changed = config_of(tmp_path, net=NetConfig(lr=1e-5))
    assert check_same_run(checkpoint, changed, group(), output=tmp_path, run="run 1") == {"net.lr": (1e-4, 1e-5)}
    assert check_same_run(checkpoint, config_of(tmp_path), group(), output=tmp_path, run="run 1") == {}


def test_settings_that_change_the_result_raise(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(config_of(tmp_path))
    changed = config_of(tmp_path, net=NetConfig(lr=1e-5, betas=(0.5, 0.9)), seed=2)
    with pytest.raises(CheckpointError, match=r"seed was 0, is 2; net.betas was \[0.9, 0.99\], is \[0.5, 0.9\]$"):
        check_same_run(checkpoint, changed, group(), output=tmp_path, run="run 1")


def test_other_run_raises(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"belongs to another run, run 1; this folder's run is run 2"):
        check_same_run(checkpoint_of(config), config, group(), output=tmp_path, run="run 2")


def test_other_number_of_processes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = checkpoint_of(config_of(tmp_path))
    same_batch = config_of(tmp_path, batch_size=2)
    assert check_same_run(checkpoint, same_batch, group(2), output=tmp_path, run="run 1") == {}
    assert "2 processes (1 before)" in caplog.text
    assert "not be bit-identical" in caplog.text
    with pytest.raises(CheckpointError, match=r"at 4, was 2 \* 4 \* 1 = 8"):
        check_same_run(checkpoint, config_of(tmp_path), group(2), output=tmp_path, run="run 1")


def test_checkpoint_with_a_digest_only(tmp_path: Path) -> None:
    """Checkpoints up to version 0.1; the optimizer's state has the learning rate."""
    config = config_of(tmp_path)
    state = {
        "digest": digest(config), "world_size": 1, "optimizers": {"generator": {"param_groups": [{"lr": 1e-4}]}}
    }  # fmt: skip
    checkpoint = Checkpoint("net", 5, state, {})
    changed = config_of(tmp_path, net=NetConfig(lr=1e-5))
    assert check_same_run(checkpoint, changed, group(), output=tmp_path, run=None) == {"net.lr": (1e-4, 1e-5)}
    (tmp_path / "config.yaml").write_text(dump(config))
    with pytest.raises(CheckpointError, match="seed was 0, is 2"):
        check_same_run(checkpoint, config_of(tmp_path, seed=2), group(), output=tmp_path, run=None)
    (tmp_path / "config.yaml").write_text(dump(config_of(tmp_path, seed=3)))
    with pytest.raises(CheckpointError, match=r"its config\.yaml was edited"):
        check_same_run(checkpoint, config_of(tmp_path, seed=2), group(), output=tmp_path, run=None)


def test_missing_checkpoints_raise_if_the_run_has_progressed(tmp_path: Path) -> None:
    config = config_of(tmp_path, checkpoint_every=3)
    check_no_progress(tmp_path, config)
    line = '{"stage": "net", "step": %d}\n'
    (tmp_path / "metrics.jsonl").write_text("".join(line % step for step in (1, 2, 3)))
    check_no_progress(tmp_path, config)  # killed while the first checkpoint was written
    (tmp_path / "metrics.jsonl").write_text("".join(line % step for step in (1, 2, 3, 4)))
    with pytest.raises(
        CheckpointError, match=r"found none although the run has progressed \(step 4 of stage net in its"
    ):
        check_no_progress(tmp_path, config)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "andnet.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has progressed \(.*andnet.safetensors\)"):
        check_no_progress(tmp_path, config)


def test_latest_restores_a_checkpoint_that_was_being_replaced(tmp_path: Path) -> None:
    """After a kill between the two renames of the only checkpoint."""
    path = save_checkpoint(tmp_path, {"a": 1}, stage="net", step=5, keep=1)
    path.rename(path.with_name(f".tmp-replaced-{path.name}"))
    assert latest(tmp_path) == path
    path.rename(path.with_name(f".tmp-replaced-{path.name}"))
    save_checkpoint(tmp_path, {"a": 2}, stage="net", step=5, keep=1)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == [path.name]
