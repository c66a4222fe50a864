"""Small runs of ``python -m andfast.train``: results, stopping, resuming, failing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import environment, write_config

from andfast import train as train_command
from andfast.training import replay
from andfast.training.checkpoint import latest, load_checkpoint
from andfast.training.failure import load_failure
from andfast.training.metrics_log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("terminal_signals")]

OPS = {
    "ascent_step", "blur_pool", "degradation_block", "identity_gradients", "mean_distance", "residual_dense_block",
    "upsampled_convolution",
}  # fmt: skip


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "andfast.train", "--output", str(folder / "run"), *arguments]


def train(folder: Path, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(folder, *arguments), env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def train_here(folder: Path, *arguments: str) -> int:
    """The exit code of a run in this process, which has imported torch already; without workers."""
    try:
        return train_command.main(["--output", str(folder / "run"), "--data.workers=0", *arguments])
    except SystemExit as end:
        return int(end.code or 0)


def metrics(run: Path) -> list[dict[str, object]]:
    """All lines without timing."""
    return [
        {key: value for key, value in line.items() if key != "timing"} for line in read_metrics(run / "metrics.jsonl")
    ]


def assert_same(ours: object, theirs: object, where: str = "") -> None:
    """Bit-identical nested values."""
    if isinstance(ours, torch.Tensor):
        assert isinstance(theirs, torch.Tensor)
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert isinstance(theirs, dict)
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert isinstance(theirs, list | tuple)
        assert len(ours) == len(theirs), where
        for index, (our_item, their_item) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(our_item, their_item, f"{where}[{index}]")
    else:
        assert ours == theirs, where


def assert_same_run(run: Path, reference: Path) -> None:
    for name in ("andnet", "andgan"):
        assert_same(
            load_file(run / "weights" / f"{name}.safetensors"), load_file(reference / "weights" / f"{name}.safetensors")
        )
    newest = [latest(folder) for folder in (run, reference)]
    assert newest[0] is not None
    assert newest[1] is not None
    a, b = (load_checkpoint(folder) for folder in newest if folder is not None)
    assert (a.stage, a.step) == (b.stage, b.step) == ("gan", 6)
    for checkpoint in (a, b):  # which depend on the clock
        for name in ("seconds", "waited", "config", "run", "summary"):
            del checkpoint.state[name]
    assert_same(a.weights, b.weights)
    assert_same(a.state, b.state)
    assert metrics(run) == metrics(reference)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of both stages, without data workers."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train_here(folder, *write_config(folder)) == 0
    return folder / "run"


def test_run_writes_its_files(uninterrupted: Path) -> None:
    for name in (
        "weights/andnet.safetensors", "weights/andgan.safetensors", "weights/andnet_best.safetensors", "config.yaml",
        "versions.json", "metrics.jsonl", "loss_curve.png", "sheet.png", "summary.json", "samples/gan-00000006.png",
    ):  # fmt: skip
        assert (uninterrupted / name).stat().st_size > 0, name
    assert list((uninterrupted / "tensorboard").rglob("events.*"))
    for name in ("sheet.png", "loss_curve.png"):
        with Image.open(uninterrupted / name) as picture:
            assert min(picture.size) > 100
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert set(summary["psnr_y"]) == {"bicubic_clean", "sr_clean", "bicubic_degraded", "sr_degraded"}
    assert all(5 < value < 60 for value in summary["psnr_y"].values())
    assert summary["psnr_y"]["bicubic_degraded"] < summary["psnr_y"]["bicubic_clean"]
    assert summary["steps"] == 12
    assert summary["seconds"] > 0
    assert set(summary["ops"]) == OPS
    assert any("random (smoke run only)" in note for note in summary["notes"])
    lines = read_metrics(uninterrupted / "metrics.jsonl")
    steps = [(line["stage"], line["step"]) for line in lines if "loss" in line]
    assert steps == [(stage, step) for stage in ("net", "gan") for step in range(1, 7)]
    for line in lines:
        if "loss" in line:
            assert {"l1", "loss_clean", "loss_gain", "lr_psnr"} <= line.keys()
            assert {"images_per_second", "ascent_share", "data_wait"} <= line["timing"].keys()
    # On average the ascent raises the loss.
    assert sum(line["loss_gain"] for line in lines if "loss_gain" in line) > 0


def test_sigint_stops_after_the_step_and_resume_is_exact(uninterrupted: Path, tmp_path: Path) -> None:
    """Other signals: tests/faults, tests/training/test_run_stops.py."""
    arguments = write_config(tmp_path)
    process = subprocess.Popen(
        command(tmp_path, *arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(tmp_path / "run" / "metrics.jsonl", 4, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert "SIGINT" in errors
    folder = latest(tmp_path / "run")
    assert folder is not None
    step = load_checkpoint(folder).step
    lines = [line for line in metrics(tmp_path / "run") if "loss" in line]
    assert (lines[-1]["stage"], lines[-1]["step"]) == (folder.name.partition("-")[0], step)
    train(tmp_path, "--resume")
    assert_same_run(uninterrupted, tmp_path / "run")


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Wait until the metrics have ``count`` lines."""
    end = time.monotonic() + 200
    while time.monotonic() < end:
        if path.is_file() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, "the run ended early"
        time.sleep(0.01)
    raise AssertionError("the run logged nothing")


def test_existing_run_is_neither_overwritten_nor_resumed_with_other_settings(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (uninterrupted / "summary.json").read_bytes()
    arguments = [*write_config(tmp_path), "--output", str(uninterrupted)]
    for options, message in (
        ([], "--overwrite"),
        (["--resume", "--net.betas=[0.5,0.9]"], "net.betas was [0.9, 0.99], is [0.5, 0.9]"),
    ):
        with pytest.raises(SystemExit) as end:
            train_command.main([*arguments, *options])
        assert end.value.code == 2
        errors = capsys.readouterr().err
        assert message in errors
        assert "--resume" in errors or options
    assert (uninterrupted / "summary.json").read_bytes() == before


def test_non_finite_loss_stops_the_run_with_a_dump(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_here(tmp_path, *write_config(tmp_path), "--stages=[net]", "--net.lr", "1e30") == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "loss" in line
    assert "stage net" in line
    (dump,) = (tmp_path / "run" / "failures").glob("*.pt")
    failure = load_failure(dump)
    assert str(dump) in line
    assert f"step {failure['step']}" in line
    weights = load_file(tmp_path / "run" / "weights" / "andnet.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
    folder = latest(tmp_path / "run")
    assert folder is not None
    assert load_checkpoint(folder).step == failure["step"] - 1
    monkeypatch.setattr(sys, "argv", ["replay", str(dump)])
    assert replay.main() == 1
    values = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert not torch.tensor(float(values[failure["name"]])).isfinite()


VARIANTS = {
    "bf16, accumulate, one F": [
        "--precision", "bf16", "--degradation.precision", "mixed", "--accumulate", "2",
        "--degradation.images_per_network", "0",
    ],
    "scale 2, strong, relativistic, no EMA, single noise, channel slopes, rounding": [
        "--scale", "2", "--adversary.preset", "strong", "--loss.gan_kind", "relativistic", "--ema_decay", "0",
        "--degradation.noise", "single", "--degradation.slope", "channel", "--degradation.round_lr", "true",
        "--channels_last", "false",
    ],
    "least squares, no perceptual loss, no validation": [
        "--loss.gan_kind", "least_squares", "--loss.perceptual", "0", "--validation.hr", "[]", "--tensorboard", "false",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run(tmp_path: Path, name: str) -> None:
    assert train_here(tmp_path, *write_config(tmp_path), "--steps", "2", *VARIANTS[name]) == 0
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert len(losses) == 4
    assert all(isinstance(loss, float) and 0 < loss < 10 for loss in losses)
    assert (tmp_path / "run" / "weights" / "andgan.safetensors").is_file()


def test_pairs_are_validated(tmp_path: Path) -> None:
    """LR/HR pairs are scored, and the best weights are kept."""
    generator = torch.Generator().manual_seed(0)
    for name in ("a.png", "b.png"):
        low = torch.randint(0, 256, (16, 20, 3), generator=generator, dtype=torch.uint8)
        for folder, factor in (("LR", 1), ("HR", 4)):
            (tmp_path / folder).mkdir(exist_ok=True)
            array = low.repeat_interleave(factor, 0).repeat_interleave(factor, 1).numpy()
            Image.fromarray(array).save(tmp_path / folder / name)
    pairs = [f"--validation.hr=['{tmp_path / 'HR'}']", f"--validation.lr={tmp_path / 'LR'}", "--validation.include=[]"]
    assert train_here(tmp_path, *write_config(tmp_path), "--stages=[net]", "--steps", "4", *pairs) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"sr_pairs", "bicubic_pairs"} <= summary["psnr_y"].keys()
    assert any("validation_psnr_y" in line and "validation_ssim_y" in line for line in metrics(tmp_path / "run"))
    assert (tmp_path / "run" / "weights" / "andnet_best.safetensors").is_file()


def test_stage_gan_starts_from_init_weights(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = uninterrupted / "weights" / "andnet.safetensors"
    arguments = [*write_config(tmp_path), "--stages=[gan]", f"--init_weights={weights}", "--steps", "1"]
    assert train_here(tmp_path, *arguments) == 0
    first = next(line for line in metrics(tmp_path / "run") if "loss" in line)
    assert first == next(line for line in metrics(uninterrupted) if line["stage"] == "gan")
    assert train_here(tmp_path, *arguments, "--overwrite", "--generator.features", "16") == 2
    assert "generator.features must be that of init_weights" in capsys.readouterr().err


def test_demo_degrades_like_a_camera_and_restores_better_than_bicubic(tmp_path: Path) -> None:
    """A shortened configs/demo.yaml: LR loses detail, not its colors, and G is better than bicubic on both."""
    config = ["--config", str(Path(__file__).parents[2] / "configs" / "demo.yaml")]
    short = ["--net.steps=40", "--net.lr=3e-4", "--gan.steps=4", "--validation.every=1000", "--validation.crops=6"]
    train(tmp_path, *config, *short, timeout=900)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for stage in ("net", "gan"):
        quality, rgb = summary["stages"][stage]["psnr_y"], summary["stages"][stage]["psnr_rgb"]
        assert quality["sr_clean"] > quality["bicubic_clean"] + 0.1, (stage, quality)
        assert quality["sr_degraded"] > quality["bicubic_degraded"] + 0.1, (stage, quality)
        assert rgb["sr_clean"] > rgb["bicubic_clean"] + 0.1, (stage, rgb)
    assert summary["psnr_y"]["bicubic_degraded"] < summary["psnr_y"]["bicubic_clean"] - 0.8
    for case in ("bicubic_degraded", "sr_clean", "sr_degraded"):
        assert all(abs(shift) < 2 for shift in summary["color_shift"][case]), (case, summary["color_shift"])
    assert summary["data_wait"] < 0.1
