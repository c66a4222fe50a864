"""Saving weight files: tensors and metadata, atomic replacement, and errors."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from state_dicts import assert_equal, small_generator
from torch import nn

from andfast import files
from andfast.nn.weights import read_metadata, read_weights, save_weights


def test_saves_fp32_contiguous_unprefixed_tensors_and_metadata(tmp_path: Path) -> None:
    network = small_generator().to(torch.bfloat16).to(memory_format=torch.channels_last)
    wrapped = nn.ModuleDict({"module": network})
    file = tmp_path / "g.safetensors"
    save_weights(file, wrapped, {"architecture": "RRDBNet", "scale": "4", "iteration": "12"})
    stored = load_file(file)
    assert_equal(stored, {name: value.float() for name, value in network.state_dict().items()})
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())
    assert read_metadata(file) == {"format": "pt", "architecture": "RRDBNet", "scale": "4", "iteration": "12"}
    save_weights(file, torch.compile(network, backend="eager"))
    assert_equal(load_file(file), stored)
    assert read_metadata(file) == {"format": "pt"}


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    """safetensors' own order of metadata changes from call to call."""
    state = {"b": torch.rand(3, 5), "a": torch.rand(2)}
    metadata = {f"key {number}": f'é "{number}"' for number in range(8)}
    contents = set()
    for number in range(4):
        ordered = dict(sorted(metadata.items(), reverse=bool(number % 2)))
        save_weights(tmp_path / f"{number}.safetensors", state, ordered)
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1
    assert_equal(load_file(tmp_path / "0.safetensors"), state)
    assert read_metadata(tmp_path / "0.safetensors") == {"format": "pt", **metadata}


def test_saves_integers_and_shared_memory(tmp_path: Path) -> None:
    a = torch.rand(4)
    save_weights(tmp_path / "s.safetensors", {"a": a, "b": a, "c": a[::2], "n": torch.tensor(3)})
    stored = load_file(tmp_path / "s.safetensors")
    assert_equal(stored, {"a": a, "b": a, "c": a[::2], "n": torch.tensor(3)})
    assert stored["n"].dtype == torch.int64


def test_save_replaces_the_file_and_leaves_no_temporary_files(tmp_path: Path) -> None:
    file = tmp_path / "g.safetensors"
    for value in (1.0, 2.0):
        save_weights(file, {"a": torch.full((3,), value)})
        assert read_weights(file)["a"].tolist() == [value] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]
    (tmp_path / "plain").touch()
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_save_keeps_the_old_file(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "g.safetensors"
    save_weights(file, {"a": torch.zeros(3)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((files.os, "fsync") if failing == "fsync" else (files.os, "replace")), full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(file, {"a": torch.ones(3)})
    monkeypatch.undo()
    assert not read_weights(file)["a"].any()
    assert [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]


@pytest.mark.slow
def test_killed_writer_leaves_a_complete_file(tmp_path: Path) -> None:
    file = tmp_path / "g.safetensors"
    writer = (
        "import sys, torch\nfrom andfast.nn.weights import save_weights\n"
        "i = 0.0\nprint('ready', flush=True)\n"
        "while True:\n    save_weights(sys.argv[1], {'a': torch.full((300_000,), i)})\n    i += 1\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", writer, str(file)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        seen = set()
        while len(seen) < 5:  # concurrent reads see complete files
            if file.exists():
                values = set(read_weights(file)["a"].tolist())
                assert len(values) == 1
                seen |= values
        process.kill()
        process.wait()
    assert len(set(read_weights(file)["a"].tolist())) == 1


def test_save_rejects_invalid_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.safetensors, was .*g\.pth"):
        save_weights(tmp_path / "g.pth", {})
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        save_weights(tmp_path / "nowhere" / "g.safetensors", {})
    with pytest.raises(TypeError, match="step must be a tensor, was int"):
        save_weights(tmp_path / "g.safetensors", {"step": 3})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="metadata must map strings to strings, 'scale' was int"):
        save_weights(tmp_path / "g.safetensors", {}, {"scale": 4})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="without their prefixes, a occurs twice"):
        save_weights(tmp_path / "g.safetensors", {"a": torch.zeros(1), "module.a": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []
