"""The strength benchmark: its yardstick, its results, costs and errors."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_steps import crops

from andfast.nn import RRDBNet
from andfast.nn.interpolation_start import start_as_interpolation
from andfast.nn.weights import save_weights
from benchmarks import strength
from benchmarks.strength import EXACT, ROWS, operations


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with three photographs of 64 x 64."""
    folder = tmp_path_factory.mktemp("photos")
    for number, crop in enumerate(crops(3, 64)):
        pixels = crop.mul(255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return str(folder)


def weights(path: Path, scale: int = 4, **sizes: int) -> Path:
    torch.manual_seed(0)
    generator = RRDBNet(scale, **sizes)
    start_as_interpolation(generator)
    save_weights(path, generator)
    return path


def one_photograph(file: Path, photos: str, *arguments: str) -> argparse.Namespace:
    """Options for 32 x 32 pixels of one photograph, in the whole ball."""
    command = ["--weights", str(file), "--photos", photos, "--patch=32", "--images=1", "--groups", "all"]
    return strength.parse([*command, *arguments])


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count operations of a small step."""
    monkeypatch.setattr(strength, "operations", lambda row: operations(row, features=4, blocks=1, hr=64))


def test_results_by_weights_group_and_row(
    costs: None, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [weights(tmp_path / f"{blocks}.safetensors", features=6, blocks=blocks, growth=3) for blocks in (1, 2)]
    command = ["--weights", *map(str, files), "--photos", photos, "--output", str(tmp_path / "out"), "--patch=64"]
    rows = ["--channels=4", "--groups", "kernel", "all", "--rows", "pgd", "fast", "random"]
    assert strength.main([*command, "--images=2", "--batch=1", "--draws=1", *rows]) == 0
    results = json.loads((tmp_path / "out" / "strength.json").read_text())
    assert [network["blocks"] for network in results["networks"]] == [1, 2]
    groups = ["kernel", "all"]
    for network in results["networks"]:
        entries = {(entry["group"], entry["row"]): entry for entry in network["strength"]}
        assert list(entries) == [(group, row) for group in groups for row in ("pgd", "fast", "random")]
        for group in groups:
            exact = entries[group, EXACT]
            assert exact["mean"] == exact["min"] == exact["quantile_10"] == exact["of_mean_gains"] == 1
            assert len(exact["gains"]) == 2
            # On noise for photographs and a G that has learned nothing, fast is weak with kernels alone.
            assert entries[group, "fast"]["mean"] > {"kernel": 0.3, "all": 0.5}[group]
            assert entries[group, "random"]["mean"] < 0.1
            assert exact["ms_per_image"] > 0
    assert results["operations"]["random"] < results["operations"]["fast"] < results["operations"]["pgd"]
    text = (tmp_path / "out" / "strength.md").read_text()
    assert text == capsys.readouterr().out
    assert "| attack | operations | ms | kernel | all |" in text
    assert text.count("1.000 / 1.000 / 1.000") == 4


def test_groups_are_those_of_the_ball_by_default() -> None:
    for preset, names in (("symmetric", "kernel rest noise"), ("calibrated", "convolution noise slope")):
        options = strength.parse(["--weights", "g.safetensors", "--preset", preset])
        assert options.groups == ["all", *names.split()]
        assert options.rows == list(ROWS)


def test_rows_differ_from_the_exact_attack(costs: None, photos: str, tmp_path: Path) -> None:
    """In their theta, not only in their labels; a second draw has other networks."""
    file = weights(tmp_path / "g.safetensors", features=6, blocks=1, growth=3)
    options = one_photograph(file, photos, "--draws=2", "--channels=8")
    entries = strength.run(options)["networks"][0]["strength"]
    assert [entry["row"] for entry in entries] == list(ROWS)
    gains = {entry["row"]: tuple(entry["gains"]) for entry in entries}
    assert len(set(gains.values())) == len(gains)
    assert all(len(set(values)) == 2 for values in gains.values())


@pytest.mark.slow
def test_generator_of_full_size(costs: None, photos: str, tmp_path: Path) -> None:
    file = weights(tmp_path / "full.safetensors")
    options = one_photograph(file, photos, "--draws=1", "--rows", "pgd", "fast")
    network = strength.run(options)["networks"][0]
    assert (network["blocks"], network["features"]) == (23, 64)
    assert network["strength"][1]["mean"] > 0.5


@pytest.mark.slow
def test_operations_at_full_size() -> None:
    """Of method.md's table, over the plain step."""
    plain = operations(None)
    assert plain == pytest.approx(220.3, rel=0.01)
    for name, expected in {"pgd": 4.95, "fast": 1.86, "pgd-3": 3.33, "pgd-2": 2.52, "pgd-1": 1.71}.items():
        assert operations(ROWS[name]) / plain == pytest.approx(expected, rel=0.01), name


def test_images_without_a_gain_are_left_out() -> None:
    entry = strength.strength(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([2.0, -1.0, 3.0]))
    assert (entry["mean"], entry["min"], entry["left_out"]) == (0.75, 0.5, 1)
    assert strength.strength(torch.ones(2), torch.zeros(2)) == {"left_out": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--groups", "color"],
            "--groups must be among all, kernel, rest, noise with preset symmetric, were color",
        ),
        (["--patch=65"], "--photos must hold pictures of 65 x 65 or more"),
        (["--photos=nowhere"], "source 'nowhere' must be an existing folder or file"),
        (["--weights", "missing.safetensors", "--patch=64"], "missing.safetensors"),
        (["--images=0"], "--images"),
        (["--patch=30", "--images=1"], "--patch was 30"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ["--photos", photos, "--weights", str(weights(tmp_path / "g.safetensors", features=4, blocks=1, growth=4))]
    try:
        code = strength.main([*file, *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
