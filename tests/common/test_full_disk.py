"""A full disk at every place that writes a file: the error names the file, none is partial, earlier ones are intact."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disk import WHEN, full_disk
from PIL import Image

from andfast import degrade, doctor, evaluate, export, upscale
from andfast.config.schema import TrainConfig
from andfast.data import pack
from andfast.drawing import sample_sheet
from andfast.evaluation.report import write_json
from andfast.gallery.sheet import Cell, gallery_sheet
from andfast.metrics.niqe_parameters import NIQEParameters, write_niqe_parameters
from andfast.nn import RRDBNet
from andfast.nn.weights import save_weights
from andfast.training.checkpoint import CheckpointError, checkpoints, save_checkpoint
from andfast.training.failure import dump_failure
from andfast.training.metrics_log import MetricsLog, read_metrics
from andfast.training.run_folder import mark_run, save_stage_weights, write_run_info
from andfast.training.summary import Summary

IMAGE = torch.linspace(0, 1, 3 * 16 * 16).view(3, 16, 16)


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "scores": ("s.json", lambda f: write_json(f / "s.json", {"images": list(range(40))})),
    "sheet": ("s.png", lambda f: sample_sheet([[IMAGE]], f / "s.png", titles=["HR"], captions=[["a"]])),
    "gallery": ("g.png", lambda f: gallery_sheet(f / "g.png", "a", [("b", [Cell("c", (IMAGE,), ("d",))])])),
    "NIQE parameters": (
        "n.npz", lambda f: write_niqe_parameters(NIQEParameters(np.zeros(36), np.eye(36), "n"), f / "n.npz"),
    ),
    "weights": ("w.safetensors", lambda f: save_weights(f / "w.safetensors", {"a": torch.zeros(40)})),
    "stage weights": (
        "weights/andnet.safetensors", lambda f: save_stage_weights(f, "net", {"a": torch.zeros(40)}, {}),
    ),
    "dump of a failed step": (
        "failures/net-00000003-l1.pt", lambda f: dump_failure(f, stage="net", step=3, name="l1", state={}),
    ),
    "config.yaml": ("config.yaml", lambda f: write_run_info(f, TrainConfig(output=f))),
    "run.json": ("run.json", lambda f: mark_run(f, "a" * 32, {"stage": "net", "step": 3, "processes": 1})),
    "summary.json": ("summary.json", lambda f: Summary(notes=["a" * 80]).write(f / "summary.json")),
}  # fmt: skip


def partial_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".tmp-*")]


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("name", WRITERS)
def test_writers(name: str, when: str, tmp_path: Path) -> None:
    file, write = WRITERS[name]
    write(tmp_path)
    before = (tmp_path / file).read_bytes()
    with full_disk(when), pytest.raises(OSError, match=r"No space left|File too large") as caught:
        write(tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    assert (tmp_path / file).read_bytes() == before
    (tmp_path / file).unlink()
    with full_disk(when), pytest.raises(OSError, match=r"No space left|File too large"):
        write(tmp_path)
    assert not (tmp_path / file).exists()
    assert partial_files(tmp_path) == []


@pytest.mark.parametrize("when", WHEN)
def test_checkpoints(when: str, tmp_path: Path) -> None:
    def save(step: int) -> Path:
        weights = {"generator": {"a": torch.zeros(40)}}
        return save_checkpoint(tmp_path, {"a": torch.ones(9)}, weights, stage="net", step=step, keep=2)

    earlier = save(1)
    with full_disk(when), pytest.raises(CheckpointError, match=r"net-00000002 could not be written, earlier ones are"):
        save(2)
    assert checkpoints(tmp_path) == [earlier]
    assert partial_files(tmp_path) == []


def test_metrics(tmp_path: Path) -> None:
    """The error names the file; a resumed run finds the whole lines from before."""

    def fill() -> None:
        with MetricsLog(tmp_path, tensorboard=False) as log:
            for step in range(1, 9):
                log.write("net", step, {"loss": 0.5})

    with full_disk("write"), pytest.raises(OSError, match=r"File too large: .*metrics.jsonl"):
        fill()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    with MetricsLog(tmp_path, tensorboard=False, resume_from=("net", 1), lines=1) as log:
        log.write("net", 2, {"loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def save_photograph(path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def evaluation(folder: Path, *arguments: str) -> list[str]:
    for name, factor in (("LR", 1), ("HR", 4)):
        (folder / "pairs" / name).mkdir(parents=True)
        with Image.open(save_photograph(folder / "a.png")) as image:
            image.resize((16 * factor, 12 * factor)).save(folder / "pairs" / name / "a.png")
    common = ["--weights", "bicubic", "--max-shift", "inf", "--quiet"]
    return ["--data", str(folder / "pairs"), *common, *arguments]


def weights(folder: Path) -> str:
    save_weights(folder / "g.safetensors", RRDBNet(4, features=3, blocks=1, growth=2))
    return str(folder / "g.safetensors")


COMMANDS: dict[str, tuple[Callable[[list[str]], int], int, Callable[[Path], list[str]]]] = {
    "evaluate --json": (evaluate.main, 1, lambda f: evaluation(f, "--json", str(f / "out"))),
    "evaluate --sheet": (evaluate.main, 1, lambda f: evaluation(f, "--sheet", str(f / "out.png"))),
    "degrade": (degrade.main, 1, lambda f: [
        str(save_photograph(f / "a.png")), "--output", str(f / "out"), "--crop", "16", "--factors", "2", "--quiet",
        "--degradation.channels", "4", "--adversary.steps", "1",
    ]),
    "export": (export.main, 1, lambda f: [
        "--weights", weights(f), "--format", "safetensors", "--output", str(f / "out.safetensors"), "--quiet",
    ]),
    "export, basicsr": (export.main, 1, lambda f: [
        "--weights", weights(f), "--format", "basicsr", "--output", str(f / "out.pth"), "--quiet",
    ]),
    "upscale": (upscale.main, 1, lambda f: [
        str(save_photograph(f / "a.png")), str(f / "out"), "--weights", "bicubic", "--scale", "2", "--quiet",
    ]),
    "doctor --json": (doctor.main, 2, lambda f: ["--json", str(f / "out"), "--no-self-test"]),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the file, and the exit code of an error."""
    main, code, arguments = COMMANDS[name]
    filled = arguments(tmp_path)
    with full_disk("write"):
        assert main(filled) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if "File too large" in line]
    assert len(lines) == 1
    assert str(tmp_path / "out") in lines[0]
    assert [path.name for path in tmp_path.rglob("*out*") if path.is_file()] == []
    assert partial_files(tmp_path) == []


def test_packing(tmp_path: Path) -> None:
    """Neither a shard nor an index is left; :mod:`tests.data.test_pack_failures` has earlier packs."""
    (tmp_path / "photographs").mkdir()
    save_photograph(tmp_path / "photographs" / "a.png")
    with full_disk("write"), pytest.raises(OSError, match=r"the disk is full, the pack .* is unchanged"):
        pack.pack_images([tmp_path / "photographs"], tmp_path / "pack", min_size=8, workers=0, progress=False)
    assert [path.name for path in (tmp_path / "pack").iterdir()] == ["pack.lock"]


UNWRITABLE: dict[str, tuple[Callable[[list[str]], int], int, list[str]]] = {
    "degrade": (degrade.main, 1, ["a.png", "--weights", "g.pth", "--output", "{folder}/out"]),
    "export": (export.main, 1, ["--weights", "g.pth", "--format", "onnx", "--output", "{folder}/out.onnx"]),
    "upscale": (upscale.main, 2, ["{folder}/a.png", "{folder}/out", "--weights", "g.pth"]),
    "doctor": (doctor.main, 2, ["--json", "{folder}/out"]),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_unwritable_outputs_are_found_first(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the weights, which do not exist, are looked for."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    main, code, arguments = UNWRITABLE[name]
    save_photograph(tmp_path / "a.png")
    monkeypatch.setattr("andfast.files.tempfile.TemporaryFile", fail)
    assert main([argument.format(folder=tmp_path) for argument in arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert "writable" in line
    assert "Read-only file system" in line
    assert str(tmp_path) in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_numbers_are_printed_before_they_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk at the end of an evaluation does not cost its result."""
    arguments = evaluation(tmp_path, "--json", str(tmp_path / "s.json"))
    with full_disk("write"):
        assert evaluate.main(arguments) == 1
    assert "bicubic" in capsys.readouterr().out
    assert evaluate.main(arguments) == 0
    assert json.loads((tmp_path / "s.json").read_text())["pairs"] == 1
