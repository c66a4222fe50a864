"""Best weights by PSNR, NIQE or LPIPS: the choice of the metric, its scores, and what a run keeps."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_steps import crops
from tiny_runs import write_config
from torch import Tensor

from andfast.config.command_line import parse_train
from andfast.config.data import ValidationConfig
from andfast.config.schema import TrainConfig
from andfast.metrics import NIQE, fit_niqe, write_niqe_parameters
from andfast.training import loop, selection
from andfast.training.checkpoint import latest, load_checkpoint
from andfast.training.metrics_log import read_metrics
from andfast.training.selection import Selection, build_selection
from andfast.training.validation_set import ValidationSet

CONFIG = TrainConfig(output=Path("x"), validation=ValidationConfig(hr=["a"], crop_size=256))
CROPS = ValidationSet(("a",), torch.zeros(1, 3, 256, 256, dtype=torch.uint8), None, 4)


def textures(count: int = 2) -> Any:
    """In place of packed images: (H, W, 3) uint8 arrays, all of whose blocks are sharp."""
    return list(np.random.default_rng(0).integers(0, 256, (count, 480, 480, 3), dtype=np.uint8))


def tensors(images: Any) -> list[Tensor]:
    """(3, H, W)."""
    return [torch.from_numpy(image.transpose(2, 0, 1).copy()) for image in images]


def build(stage: Any, images: Any, **settings: Any) -> Selection:
    config = replace(CONFIG, validation=replace(CONFIG.validation, **settings))
    return build_selection(config, stage, CROPS, images)


def test_gan_stage_uses_niqe_by_default(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="andfast")
    images = textures()
    assert build("net", images) == Selection("psnr_rgb")
    by_niqe = build("gan", images)
    assert by_niqe.metric == "niqe"
    assert "stage gan: NIQE, fitted to the training photographs, chooses the best weights" in caplog.text
    assert by_niqe.niqe is not None
    np.testing.assert_array_equal(by_niqe.niqe.parameters.mean, fit_niqe(tensors(images)).mean)


@pytest.mark.parametrize(
    ("images", "settings", "reason"),
    [
        ([], {"crop_size": 196}, "requires validation.crop_size of at least 200"),
        ([np.zeros((50, 50, 3), np.uint8)], {}, "NIQE cannot be fitted: images must contain more than 36 sharp blocks"),
    ],
)
def test_gan_stage_uses_psnr_where_niqe_is_undefined(
    images: Any, settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="andfast")
    assert build("gan", images, **settings) == Selection("psnr_rgb")
    assert reason in caplog.text


def test_niqe_that_was_asked_for_must_be_possible(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"validation.niqe_parameters must be a file .*, was null, and it cannot be"):
        build("net", [np.zeros((50, 50, 3), np.uint8)], best_by="niqe")
    with pytest.raises(FileNotFoundError):
        build("net", [], best_by="niqe", niqe_parameters=tmp_path / "none.npz")


def test_scores() -> None:
    """NIQE's mean over the images with texture; other scores of a validation stay as they are."""
    by_niqe = build("net", textures(), best_by="niqe")
    assert by_niqe.niqe is not None
    hr = crops(2, 256)
    flat = torch.full_like(hr[:1], 0.5)
    values = [by_niqe.niqe((image * 255).round().byte()) for image in hr]
    assert by_niqe.score([*hr, *flat], hr, crop_border=0)["niqe"] == pytest.approx(sum(values) / 2, rel=1e-9)
    assert math.isnan(by_niqe.score(flat, flat, crop_border=0)["niqe"])
    assert Selection().score(hr, hr, crop_border=0) == {}


def test_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeLPIPS:
        def __init__(self, *, weights: Path | None) -> None:
            self.weights = weights

        def __call__(self, sr: Tensor, hr: Tensor, *, crop_border: int) -> Tensor:
            return (sr - hr)[..., crop_border:].abs().mean()[None]

    monkeypatch.setattr(selection, "LPIPS", FakeLPIPS)
    by_lpips = build("net", [], best_by="lpips", lpips_weights=Path("alex.pth"))
    hr = torch.zeros(2, 3, 8, 8)
    sr = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.4)])
    assert by_lpips.score(sr, hr, crop_border=2)["lpips"] == pytest.approx(0.3, abs=1e-6)
    assert by_lpips.lpips.weights == Path("alex.pth")  # type: ignore[union-attr]

    def missing(**_: object) -> None:
        raise ModuleNotFoundError("LPIPS requires the lpips package")

    monkeypatch.setattr(selection, "LPIPS", missing)
    with pytest.raises(ValueError, match=r"validation.best_by must be 'psnr' or 'niqe' here, was 'lpips'"):
        build("net", [], best_by="lpips")


def test_missing_parameters_are_an_error_before_the_run_folder_exists(tmp_path: Path) -> None:
    arguments = [*write_config(tmp_path), "--output", str(tmp_path / "run"), "--validation.crop_size=200"]
    missing = tmp_path / "none.npz"
    config, options = parse_train([*arguments, "--validation.best_by=niqe", f"--validation.niqe_parameters={missing}"])
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        loop.run(config, options)
    assert not (tmp_path / "run" / "data").exists()


def test_better_is_higher_for_psnr_only() -> None:
    assert Selection().improves(30.0, None)
    assert Selection().improves(30.0, 29.0)
    assert not Selection().improves(29.0, 30.0)
    for metric in ("niqe", "lpips"):
        assert Selection(metric).improves(3.0, 4.0)
        assert not Selection(metric).improves(4.0, 3.0)
        assert not Selection(metric).improves(math.nan, None)
        assert not Selection(metric).improves(math.nan, 4.0)


def test_run_keeps_the_weights_of_the_lowest_niqe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores are replaced, so that another validation has the lowest NIQE than has the highest PSNR."""
    write_niqe_parameters(fit_niqe(tensors(textures())), tmp_path / "niqe.npz")
    niqe = iter([5.0, 3.0, 4.0, 6.0])
    monkeypatch.setattr(NIQE, "__call__", lambda *_, **__: next(niqe))
    arguments = [
        *write_config(tmp_path), "--output", str(tmp_path / "run"), "--stages=[net]", "--data.workers=0",
        "--validation.crops=1", "--validation.crop_size=200", "--validation.best_by=niqe", "--tensorboard=false",
        f"--validation.niqe_parameters={tmp_path / 'niqe.npz'}", "--validation.every=1", "--adversary.steps=1",
    ]  # fmt: skip
    loop.run(*parse_train([*arguments, "--net.steps=3", "--checkpoint_every=1", "--keep_checkpoints=3"]))
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "validation_niqe" in line]
    assert [line["validation_niqe"] for line in lines] == [5.0, 3.0, 4.0]
    folders = sorted((tmp_path / "run" / "checkpoints").iterdir())
    best = load_file(tmp_path / "run" / "weights" / "andnet_best.safetensors")
    second = load_file(folders[1] / "generator_ema.safetensors")
    assert all(torch.equal(best[name], second[name]) for name in second)
    folder = latest(tmp_path / "run")
    assert folder is not None
    state = load_checkpoint(folder).state
    assert (state["best_by"], state["best_score"]) == ("niqe", 3.0)

    # Resumed with another score, the run rates its best weights by that one.
    resumed = [argument for argument in arguments if "niqe" not in argument]
    loop.run(*parse_train([*resumed, "--net.steps=4", "--resume"]))
    folder = latest(tmp_path / "run")
    assert folder is not None
    state = load_checkpoint(folder).state
    assert state["best_by"] == "psnr_rgb"
    assert 5 < state["best_score"] < 60
