"""The degrade command: calibration of radii, the cases of the gallery, files, invalid input."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from andfast import degrade
from andfast.adversary import GROUPS, PRESETS, Attack, AttackSettings, Ball, ConvolutionRadii, Objective
from andfast.adversary.calibration import find_factor, scaled
from andfast.config.parsing import parse_arguments
from andfast.config.schema import TrainConfig
from andfast.gallery import run
from andfast.gallery.cases import Degrader, configuration_lines, cut
from andfast.gallery.sheet import Cell, gallery_sheet
from andfast.nn import DegradationNetwork, RRDBNet
from andfast.nn.interpolation_start import start_as_interpolation
from andfast.nn.weights import save_weights
from andfast.training.build import build_attack_settings

SMALL = ["--crop", "32", "--degradation.channels", "8", "--factors", "0.5", "--quiet"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    x, y = np.meshgrid(np.arange(52), np.arange(44))
    waves = np.stack([np.sin(x / 3), np.cos(y / 4), np.sin((x + y) / 5)], -1)
    path = tmp_path / "waves.png"
    Image.fromarray((127 + 100 * waves).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(tmp_path / "g.safetensors", RRDBNet(4, features=8, blocks=1, growth=4))
    return tmp_path / "g.safetensors"


@pytest.fixture
def degrader() -> Degrader:
    torch.manual_seed(1)
    generator = RRDBNet(4, features=8, blocks=1, growth=4)
    start_as_interpolation(generator)
    ball = Ball(convolution=0.004, noise=0.1, slope=0.02)
    settings = AttackSettings(ball, steps=3, patch_size=32, channels=8)
    attack = Attack(DegradationNetwork(4), generator.eval(), Objective(l1=1.0), settings)
    return Degrader(attack, torch.rand(1, 3, 32, 40), networks=2)


# -------------------------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("target", [12.0, 29.9, 30.0, 31.3, 55.0, 80.0])
def test_find_factor(target: float) -> None:
    record = find_factor(lambda factor: 30 - 20 * math.log10(factor), target, tolerance=0.01)
    assert record.quality == pytest.approx(target, abs=0.01)
    assert record.factor == pytest.approx(10 ** ((30 - target) / 20), rel=0.002)
    assert (record.factor, record.quality) in record.tried
    assert [entry[0] for entry in record.tried] == sorted(entry[0] for entry in record.tried)
    assert len(record.tried) < 25


def test_find_factor_treats_nan_as_too_strong() -> None:
    record = find_factor(lambda factor: math.nan if factor > 3 else 30 - factor, 28.0, tolerance=0.01)
    assert record.factor == pytest.approx(2, abs=0.011)


def test_find_factor_without_solution() -> None:
    with pytest.raises(ValueError, match=r"no factor on the radii gives 20: the nearest is 2[56]"):
        find_factor(lambda factor: 25 + 1 / (1 + factor), 20.0)
    with pytest.raises(ValueError, match=r"29\.5 was not met within 0\.1 in 12 tries: the nearest is"):
        find_factor(lambda factor: 29.0 if factor > 0.7 else 30.0, 29.5, max_tries=12)
    with pytest.raises(ValueError, match="target must be finite"):
        find_factor(lambda factor: 1.0, math.inf)


def test_scaled_balls() -> None:
    ball = Ball(1.0, 2.0, 3.0, joint=True)
    assert scaled(ball, 2) == Ball(2.0, 4.0, 6.0, joint=True)
    assert scaled(ball, 0.5, ["noise"]) == Ball(0.0, 1.0, 0.0, joint=True)
    for groups in ([], ["noises"]):
        with pytest.raises(ValueError, match="groups must be among convolution, noise, slope"):
            scaled(ball, 1, groups)


def test_calibrate_meets_the_target(degrader: Degrader) -> None:
    reports = []
    ball, record = degrader.calibrate(28.0, tolerance=0.2, report=lambda *entry: reports.append(entry))
    assert record.quality == pytest.approx(28, abs=0.2)
    assert sorted(reports) == list(record.tried)
    assert ball.radii == pytest.approx([radius * record.factor for radius in degrader.attack.settings.ball.radii])
    # With these radii as the adversary's own, no factor is needed.
    settings = replace(degrader.attack.settings, ball=ball)
    again = replace(degrader, attack=replace(degrader.attack, settings=settings))
    assert again.calibrate(28.0, tolerance=0.25)[1].factor == 1.0
    alone, _ = degrader.calibrate(35.0, ["slope"], tolerance=0.2)
    assert alone.radii[:2] == (0, 0)
    assert alone.slope > 0


@pytest.mark.parametrize(
    "ball",
    [
        Ball(0.0012, 0.5, 0.025),
        Ball(0.0012, 0.5, 0.025, zero_mean_noise=True),
        Ball(ConvolutionRadii(0.001, 0.2, 0.01), 0.05, 0.02, zero_mean_noise=True),
        Ball(ConvolutionRadii(0.0, 0.2, 0.01, symmetric=False), 0.05, 0.02),
    ],
)
def test_configuration_lines_reproduce_the_ball(ball: Ball) -> None:
    settings = yaml.safe_load(configuration_lines(ball, 128))
    options = [f"--adversary.{name}={value}" for name, value in settings["adversary"].items()]
    options.append(f"--data.patch_size={settings['data']['patch_size']}")
    config, _ = parse_arguments([*options, "--output=x", "--data.train=[.]"])
    assert build_attack_settings(config, "net").ball == ball


def test_configuration_lines_reproduce_a_joint_ball() -> None:
    joint = replace(PRESETS["paper"].ball)
    settings = yaml.safe_load(configuration_lines(scaled(joint, 0.1), 256))["adversary"]
    options = [f"--adversary.{name}={value}" for name, value in settings.items()]
    config, _ = parse_arguments([*options, "--output=x", "--data.train=[.]"])
    assert build_attack_settings(config, "net").ball.radii == pytest.approx([2.0, 0.2, 0.04])


# ---------------------------------------------------------------------------------------------------------- the cases


def test_cases(degrader: Degrader) -> None:
    record = {entry.name: entry for entry in degrader.cases(factors=(0.5, 2.0))}
    steps = ["step 1", "step 2", "step 3"]
    groups = [f"{name} only" for name in GROUPS]
    assert list(record) == ["identity", "random", *steps, *groups, "radii x 0.5", "radii x 2"]
    clean = record["identity"]
    assert clean.lr_psnr > 100
    assert clean.loss_gain == 0
    for entry in record.values():
        assert entry.lr.shape == (3, 8, 10)
        assert entry.sr.shape == (3, 32, 40)
        assert entry.loss == pytest.approx((entry.sr - degrader.hr[0]).abs().mean().item(), rel=1e-5)
        assert entry.loss_gain == pytest.approx(entry.loss - clean.loss, abs=1e-6)
        error = (entry.lr - clean.lr).square().mean().item()
        if entry is not clean:
            assert entry.lr_psnr == pytest.approx(-10 * math.log10(error), abs=0.05)
    gains = [record[name].loss_gain for name in steps]
    assert 0 < gains[0] < gains[1] < gains[2]
    assert record["random"].loss_gain < gains[2] / 3
    assert record["radii x 0.5"].loss_gain < gains[2] < record["radii x 2"].loss_gain
    assert all(0 < record[name].loss_gain < gains[2] for name in groups)


def test_cases_of_a_ball_with_parts(degrader: Degrader) -> None:
    """Parts of radius 0 have no case; the random perturbation is on the boundary of all others."""
    ball = Ball(ConvolutionRadii(0.0, 0.2, 0.02), noise=0.1, slope=0.02, zero_mean_noise=True)
    settings = replace(degrader.attack.settings, ball=ball, channels=16, image_radius="uniform")
    degrader = replace(degrader, attack=replace(degrader.attack, settings=settings))
    record = {entry.name: entry for entry in degrader.cases(factors=())}
    names = ["kernel only", "rest only", "noise only", "slope only"]
    assert list(record)[-4:] == names
    assert set(record["kernel only"].numbers()["radii"]) == {"color", "kernel", "rest", "noise", "slope"}
    assert all(0 < record[name].loss_gain < record["step 3"].loss_gain for name in names)
    identity = degrader._identity(1)
    used = degrader.ball.overshoot(degrader.random(identity), identity)
    torch.testing.assert_close(used[1:], torch.ones_like(used[1:]), atol=1e-2, rtol=0)
    assert (used[0] < 1e-3).all() or used[0].isinf().all()  # rounding of weights, over a radius of 0


def test_path_is_the_attack_step_by_step(degrader: Degrader) -> None:
    identity = degrader._identity(1)
    path = degrader.path(identity)
    assert len(path) == 3
    for steps, theta in enumerate(path, start=1):
        settings = replace(degrader.attack.settings, ball=degrader.ball, steps=steps)
        expected = replace(degrader.attack, settings=settings).search(degrader.hr, identity)[1].theta
        for ours, reference in zip(theta.tensors(), expected.tensors(), strict=True):
            torch.testing.assert_close(ours, reference, rtol=0, atol=0)


@pytest.mark.parametrize("joint", [False, True])
def test_random_perturbation_is_on_the_boundary_of_the_ball(degrader: Degrader, joint: bool) -> None:
    settings = degrader.attack.settings
    settings = replace(settings, ball=replace(settings.ball, joint=joint))
    degrader = replace(degrader, attack=replace(degrader.attack, settings=settings))
    identity = degrader._identity(1)
    used = degrader.ball.overshoot(degrader.random(identity), identity)
    torch.testing.assert_close(used, torch.ones_like(used), atol=1e-3, rtol=0)


def test_radii_scale_with_the_photograph(degrader: Degrader) -> None:
    assert degrader.ball.noise == pytest.approx(0.1 * math.sqrt(40 / 32))
    assert degrader.ball.convolution == 0.004


def test_gallery_depends_on_the_seed_only(degrader: Degrader) -> None:
    first, second = (list(degrader.cases(factors=()))[4].lr for _ in range(2))
    assert torch.equal(first, second)
    second = list(replace(degrader, seed=1).cases(factors=()))[4].lr
    assert not torch.equal(first, second)


def test_cut() -> None:
    hr = torch.arange(30 * 41).reshape(1, 1, 30, 41)
    assert cut(hr, 0, 4).shape[2:] == (28, 40)
    assert cut(hr, 16, 4)[0, 0, 0, 0] == 7 * 41 + 12
    assert torch.equal(cut(hr, 8, 4, at=(0, 0)), hr[..., :8, :8])
    assert torch.equal(cut(hr, 8, 4, at=(40, 29)), hr[..., 22:, 33:])
    with pytest.raises(ValueError, match="at must be inside of the picture, 41x30, was 41, 0"):
        cut(hr, 8, 4, at=(41, 0))
    with pytest.raises(ValueError, match="must be at least 64 pixels wide and high, was 41x30"):
        cut(hr, 0, 64)


def test_sheet_rejects_images_that_do_not_fit(tmp_path: Path) -> None:
    cells = [Cell("a", (torch.rand(3, 8, 8),), ("",)), Cell("b", (torch.rand(3, 3, 3),), ("",))]
    with pytest.raises(ValueError, match="images of 'b' must have a size that divides 200x200, was 3x3"):
        gallery_sheet(tmp_path / "a.png", "", [("", cells)])
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- the command line


def test_writes_files(photo: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "gallery"
    assert degrade.main([str(photo), "--weights", str(weights), "--output", str(out), *SMALL]) == 0
    text = capsys.readouterr().out
    assert "radii x 0.5" in text
    assert sorted(entry.name for entry in out.iterdir()) == ["gallery.json", "gallery.png"]
    with Image.open(out / "gallery.png") as picture:
        assert min(picture.size) > 400
    record = json.loads((out / "gallery.json").read_text())
    assert record["hr_size"] == [32, 32]
    assert record["scale"] == 4
    assert record["adversary"]["radii"].keys() == {"color", "kernel", "rest", "noise", "slope"}
    assert record["adversary"]["radii"]["kernel"] == 0.8
    assert record["adversary"]["patch_size"] == 256
    assert len(record["cases"]) == 2 + 5 + 3 + 1
    noise = record["adversary"]["radii"]["noise"]
    assert record["cases"][6]["radii"]["noise"] == pytest.approx(noise / 8)  # 32 of 256 pixels
    assert record["cases"][6]["loss_gain"] > record["cases"][1]["loss_gain"]

    before = (out / "gallery.json").read_bytes()
    assert degrade.main([str(photo), "--output", str(out), *SMALL]) == 1
    assert "gallery.png is there already; --overwrite replaces it" in capsys.readouterr().err
    assert (out / "gallery.json").read_bytes() == before
    assert degrade.main([str(photo), "--output", str(out), *SMALL, "--overwrite", "--precision", "bf16"]) == 0
    assert json.loads((out / "gallery.json").read_text())["generator"].startswith("no weights were given")


def test_target_psnr(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [
        "--target-psnr",
        "33",
        "--each-group",
        "--networks",
        "1",
        "--adversary.preset",
        "strong",
        "--adversary.steps",
        "2",
    ]
    assert degrade.main([str(photo), "--output", str(tmp_path / "out"), *SMALL, *more]) == 0
    text = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "gallery.json").read_text())["calibration"]
    together = record["all groups together"]
    assert together["lr_psnr"] == pytest.approx(33, abs=0.1)
    assert together["radii"]["slope"] == pytest.approx(0.057 * together["factor"])
    assert f"radius_slope: {together['radii']['slope']:.4g}" in text
    last = yaml.safe_load(text[text.rindex("adversary:") : text.rindex("  " + str(tmp_path / "out" / "gallery.png"))])
    for group in GROUPS:
        alone = record[f"{group} alone"]
        assert alone["lr_psnr"] == pytest.approx(33, abs=0.1)
        assert alone["radii"][group] > together["radii"][group]
        assert last["adversary"][f"radius_{group}"] == pytest.approx(alone["radii"][group], rel=1e-3)


def test_config_file(photo: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "data: {train: [nowhere], patch_size: 32}\ndegradation: {channels: 4}\nprecision: fp32\n"
        "adversary: {steps: 2, radius_noise: 0.2}\n"
    )
    out = tmp_path / "out"
    arguments = [str(photo), "--config", str(file), "--output", str(out), "--crop", "32", "--quiet"]
    assert degrade.main([*arguments, "--factors", "2"]) == 0
    record = json.loads((out / "gallery.json").read_text())
    assert record["adversary"]["steps"] == 2
    assert record["adversary"]["channels"] == 4
    assert record["adversary"]["radii"]["noise"] == 0.2
    assert record["cases"][2]["radii"]["noise"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photo}", "--crop", "-1"], "--crop must be at least 0, was -1"),
        (["{photo}", "--crop", "2"], "the picture must be at least 4 pixels wide and high, was 52x44"),
        (["{photo}", "--seed", "-1"], "--seed must be from 0 to"),
        (["{photo}", "--factors", "nan"], "--factors must be numbers of at least 0, was nan"),
        (["{photo}", "--each-group"], "--each-group must come with --target-psnr"),
        (["{photo}", "--networks", "0"], "networks must be at least 1, was 0"),
        (["{photo}", "--at", "60", "0"], "at must be inside of the picture, 52x44, was 60, 0"),
        (["{photo}", "--adversary.step", "3"], "did you mean '--adversary.steps'"),
        (["{photo}", "--weights", "{folder}/none.safetensors"], "none.safetensors: no such file of weights"),
        (["{photo}", "--config", "{folder}/none.yaml"], "none.yaml' does not exist"),
        (["{folder}/none.png"], "none.png: No such file or directory"),
        (["{folder}/text.png"], "text.png: not a PNG, JPEG, WebP, TIFF or BMP image"),
    ],
)
def test_rejects_invalid_input(
    arguments: list[str], message: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("nothing")
    filled = [entry.format(photo=photo, folder=tmp_path) for entry in arguments]
    assert degrade.main([*filled, "--output", str(tmp_path / "out"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_rejects_crops_beyond_memory(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "host_memory", lambda: (10_000_000, 20_000_000))
    assert degrade.main([str(photo), "--crop", "0", "--output", str(tmp_path / "out"), "--quiet"]) == 1
    error = "error: --crop must be smaller: F would take about 38 MB for so many pixels, and 10 MB are available\n"
    assert capsys.readouterr().err == error


def test_rejects_scale_that_does_not_fit(photo: Path, weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {train: [x]}\nscale: 2\n")
    arguments = [str(photo), "--weights", str(weights), "--config", str(file), "--output", str(tmp_path / "out")]
    assert degrade.main([*arguments, "--quiet"]) == 1


def test_default_configuration_is_valid() -> None:
    assert isinstance(parse_arguments(["--data.train=[.]", "--precision=fp32", "--output=."])[0], TrainConfig)
