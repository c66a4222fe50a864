"""andfast demo: the demo's configuration from the package, in any folder."""

import importlib.util
from pathlib import Path

import pytest

from andfast import demo, train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def arguments(monkeypatch):
    """Arguments that andfast.train gets."""
    received = []
    monkeypatch.setattr(train, "main", lambda argv: received.extend(argv) or 0)
    return received


def test_demo_trains_with_the_packaged_configuration(arguments):
    assert demo.main([]) == 0
    assert arguments == ["--config", str(demo.CONFIG), "--output", "runs/demo"]
    assert demo.CONFIG.read_text() == (ROOT / "configs" / "demo.yaml").read_text()


@pytest.mark.parametrize("output", [["--output", "here"], ["--output=here"]])
def test_demo_passes_settings_on(arguments, output):
    assert demo.main([*output, "--steps", "2", "--batch_size=2"]) == 0
    assert arguments == ["--config", str(demo.CONFIG), *output, "--steps", "2", "--batch_size=2"]


def test_demo_names_the_extra_it_lacks(arguments, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skimage" else find(name))
    assert demo.main([]) == 2
    assert "the demo needs skimage: pip install 'andfast[demo]'" in capsys.readouterr().err
    assert not arguments


@pytest.mark.slow
def test_demo_runs_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--batch_size=1", "--data.patch_size=32", "--validation.crops=2", "--validation.crop_size=64"]
    small += ["--validation.sheet=1", "--generator.features=8", "--adversary.steps=1"]
    assert demo.main(["--steps", "1", *small]) == 0
    assert (tmp_path / "runs" / "demo" / "weights" / "andgan.safetensors").is_file()
