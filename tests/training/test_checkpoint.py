"""Checkpoints: written atomically, bit-exact, verified, pruned."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from andfast.training import checkpoint
from andfast.training.checkpoint import (
    CheckpointError,
    checkpoints,
    damage_of,
    latest,
    load_checkpoint,
    plain_state,
    save_checkpoint,
)
from andfast.training.rng import rng_state


def same(a: Any, b: Any) -> bool:
    """Bit-identical, types included."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.stride() == b.stride()
            and a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8))
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return bool(a == b)


def small_state(step: int = 0) -> dict[str, Any]:
    return {"step": step, "noise": torch.full((3,), float(step)), "optimizer": {0: {"betas": (0.9, 0.99)}}}


def save(output: Path, step: int, *, stage: str = "net", keep: int = 9) -> Path:
    weights = {"generator": {"conv.weight": torch.full((2, 3), float(step))}}
    return save_checkpoint(output, small_state(step), weights, stage=stage, step=step, keep=keep)


def names(output: Path) -> list[str]:
    return [path.name for path in checkpoints(output)]


def hidden(output: Path) -> list[str]:
    return [path.name for path in (output / "checkpoints").iterdir() if path.name.startswith(".")]


def test_training_state_round_trips(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last  # type: ignore[call-overload]
    )
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "rng": rng_state(),
        "text": "é",
        "nothing": None,
        "on": True,
    }
    folder = save_checkpoint(tmp_path, state, {"generator": model.state_dict()}, stage="gan", step=12, keep=1)
    assert folder == tmp_path / "checkpoints" / "gan-00000012"
    assert sorted(path.name for path in folder.iterdir()) == [
        "generator.safetensors",
        "manifest.json",
        "state.pt",
    ]
    loaded = load_checkpoint(folder)
    assert (loaded.stage, loaded.step) == ("gan", 12)
    assert same(loaded.state, plain_state(state, "state"))
    assert list(loaded.weights) == ["generator"]
    for name, tensor in model.state_dict().items():
        assert same(loaded.weights["generator"][name], tensor.contiguous())
    fresh = torch.optim.Adam(model.parameters())
    fresh.load_state_dict(loaded.state["optimizer"])
    assert same(plain_state(fresh.state_dict(), "s"), plain_state(optimizer.state_dict(), "s"))


tensors = st.builds(
    lambda dtype, shape, seed: (
        torch.randint(
            0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        .view(dtype)
        .squeeze(-1)
        .clone()
    ),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]),
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(0, 2**32),
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | tensors
)
states = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.recursive(
        leaves,
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers(0, 9), inner),
        max_leaves=10,
    ),
    max_size=5,
)


@settings(max_examples=50, deadline=None)
@given(state=states)
def test_states_round_trip_bit_for_bit(state: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        saved = save_checkpoint(Path(folder), state, stage="net", step=1, keep=1)
        assert same(load_checkpoint(saved).state, state)


def test_views_and_subclasses_are_stored_as_plain_values(tmp_path: Path) -> None:
    values = torch.arange(100_000.0)
    state = {"view": values[:3], "parameter": torch.nn.Parameter(values[3:5]), "ordered": OrderedDict(a=1)}
    folder = save_checkpoint(tmp_path, state, stage="net", step=1, keep=1)
    assert (folder / "state.pt").stat().st_size < 10_000
    loaded = load_checkpoint(folder).state
    assert type(loaded["ordered"]) is dict
    assert type(loaded["parameter"]) is Tensor
    assert loaded["view"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [1, object()]}}, r"state\['a'\]\['b'\]\[1\] must be a tensor, number, .* was object"),
        ({"a": np.float64(1)}, r"state\['a'\] must be .* was float64"),
        ({"a": Path("x")}, r"state\['a'\] must be .* was PosixPath"),
        ({(1, 2): 3}, r"state must have strings or integers as keys, was \(1, 2\) \(tuple\)"),
    ],
)
def test_unsupported_values_raise_before_writing(tmp_path: Path, state: dict[Any, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path, state, stage="net", step=1, keep=1)
    assert list(tmp_path.iterdir()) == []


def test_invalid_arguments_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage must be one of \('net', 'gan'\), was 'nat'"):
        save(tmp_path, 1, stage="nat")
    with pytest.raises(ValueError, match="step must be at least 0 and keep at least 1, were -1 and 9"):
        save(tmp_path, -1)
    with pytest.raises(ValueError, match="step must be at least 0 and keep at least 1, were 1 and 0"):
        save(tmp_path, 1, keep=0)
    with pytest.raises(
        ValueError, match=r"names in weights must consist of letters, digits and underscores, was '\.\./g'"
    ):
        save_checkpoint(tmp_path, {}, {"../g": {}}, stage="net", step=1, keep=1)


def test_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    for step in (5, 10, 100_000_000, 15):
        save(tmp_path, step, keep=3)
    assert names(tmp_path) == ["net-00000010", "net-00000015", "net-100000000"]
    save(tmp_path, 1, stage="gan", keep=3)
    assert names(tmp_path) == ["net-00000015", "net-100000000", "gan-00000001"]
    assert latest(tmp_path) == tmp_path / "checkpoints" / "gan-00000001"
    assert hidden(tmp_path) == []


def test_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5)
    folder = save_checkpoint(tmp_path, {"new": 1}, stage="net", step=5, keep=3)
    assert load_checkpoint(folder).state == {"new": 1}
    assert names(tmp_path) == ["net-00000005"]
    assert hidden(tmp_path) == []


def test_incomplete_and_foreign_folders_are_ignored(tmp_path: Path) -> None:
    newest = save(tmp_path, 5)
    folder = tmp_path / "checkpoints"
    (folder / ".tmp-net-00000010").mkdir()
    (folder / ".tmp-net-00000010" / "state.pt").write_bytes(b"half")
    (folder / "net-10").mkdir()
    (folder / "mine").mkdir()
    assert latest(tmp_path) == newest
    save(tmp_path, 10)
    assert hidden(tmp_path) == []
    assert (folder / "mine").is_dir()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("state.pt", truncate, r"state\.pt has \d+ bytes, \d+ were written"),
        ("state.pt", flip, r"state\.pt has changed since it was written \(SHA-256\)"),
        ("generator.safetensors", flip, r"generator\.safetensors has changed since it was written"),
        ("generator.safetensors", Path.unlink, r"generator\.safetensors is missing"),
        ("manifest.json", Path.unlink, r"manifest\.json is missing"),
        ("manifest.json", truncate, r"manifest\.json is not readable"),
        ("manifest.json", lambda path: path.write_text("[]"), r"manifest\.json is not readable"),
        (
            "manifest.json",
            lambda path: path.write_text(json.dumps({"format": 99, "files": {}})),
            "its format is 99, this version reads 1",
        ),
    ],
)
def test_damaged_checkpoint_raises_with_a_remedy(tmp_path: Path, name: str, damage: Any, message: str) -> None:
    older, newest = save(tmp_path, 5), save(tmp_path, 10)
    damage(newest / name)
    with pytest.raises(CheckpointError, match=message) as caught:
        latest(tmp_path)
    assert str(newest) in str(caught.value)
    assert f"to resume from {older} instead, delete the damaged folder" in str(caught.value)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(newest)
    damage(older / name)
    with pytest.raises(CheckpointError, match="no earlier checkpoint is usable"):
        latest(tmp_path)
    save(tmp_path, 10)
    assert latest(tmp_path) == newest
    assert damage_of(newest) is None


def test_missing_checkpoint_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a checkpoint must be a folder, .*nowhere' is not"):
        load_checkpoint(tmp_path / "nowhere")


def test_load_unpickles_no_objects(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    torch.save({"bad": Path("x")}, folder / "state.pt")
    (folder / "manifest.json").unlink()
    checkpoint._write_manifest(folder, "net", 1)
    with pytest.raises(CheckpointError, match=r"was not written by andfast: state\.pt: Weights only load failed"):
        load_checkpoint(folder)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Make writes beyond ``size`` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("big", ["state", "weights"])
def test_failed_write_keeps_earlier_checkpoints(tmp_path: Path, big: str) -> None:
    older = save(tmp_path, 5, keep=1)
    state: dict[str, Any] = {"x": torch.zeros(100_000)} if big == "state" else {}
    weights = {"generator": {"x": torch.zeros(100_000 if big == "weights" else 1)}}
    with (
        pytest.raises(CheckpointError, match=r"net-00000010 could not be written, earlier ones are intact: .*MB free"),
        files_limited_to(50_000),
    ):
        save_checkpoint(tmp_path, state, weights, stage="net", step=10, keep=1)
    assert names(tmp_path) == ["net-00000005"]
    assert hidden(tmp_path) == []
    assert latest(tmp_path) == older


def test_failed_rename_keeps_the_replaced_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, 5)
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target) == folder and "replaced" not in Path(source).name:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_checkpoint(tmp_path, {"new": 1}, stage="net", step=5, keep=1)
    assert load_checkpoint(folder).state["step"] == 5
    assert hidden(tmp_path) == []


def test_uncreatable_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="File exists"):
        save(tmp_path, 5)


WRITER = """
import sys, torch
from pathlib import Path
from andfast.training.checkpoint import save_checkpoint
for step in range(1, 10**9):
    save_checkpoint(Path(sys.argv[1]), {"step": step, "x": torch.full((200_000,), float(step))},
                    {"generator": {"w": torch.full((50_000,), float(step))}}, stage="net", step=step, keep=2)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_sigkill_leaves_a_complete_checkpoint(tmp_path: Path) -> None:
    seeded = random.Random(0)
    for attempt in range(2):
        output = tmp_path / str(attempt)
        with subprocess.Popen([sys.executable, "-c", WRITER, str(output)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(3)]
            time.sleep(seeded.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        printed = int(lines[-1])
        newest = latest(output)
        assert newest is not None
        loaded = load_checkpoint(newest)
        assert loaded.step in (printed, printed + 1)
        assert loaded.state["step"] == loaded.step
        assert set(loaded.state["x"].tolist()) == {float(loaded.step)} == set(loaded.weights["generator"]["w"].tolist())
        save(output, loaded.step + 1, keep=2)
        assert hidden(output) == []
        assert len(names(output)) == 2
