"""Damaged and invented files for degrade, export and doctor: one-line errors that name the input, no files left.

A mutation of a byte that is never read may succeed; everything else must end in one line, ``error: ...``.
"""

import io
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save as to_safetensors

from andfast import degrade, doctor, export
from andfast.config.parsing import parse_arguments
from andfast.diagnosis import machine
from andfast.gallery import cases
from andfast.nn import RRDBNet
from andfast.training import frozen_attack

WEIGHTS, PICTURES, CONFIGURATIONS = 350, 150, 60


def damaged(generator: random.Random, good: bytes) -> bytes:
    """Mutate a file: change, truncate, delete, repeat or replace bytes."""
    kind = generator.randrange(6)
    if kind == 0:
        return generator.randbytes(generator.randrange(200))
    if kind == 1:
        return good[: generator.randrange(len(good))]
    at = generator.randrange(len(good))
    if kind == 2:
        return good[:at] + good[at + generator.randrange(1, 64) :]
    if kind == 3:
        return good[:at] + good[max(at - generator.randrange(1, 999), 0) :]
    changed = bytearray(good)
    near = len(good) if generator.random() < 0.4 else min(len(good), 600)  # mostly headers
    for _ in range(generator.choice((1, 1, 3, 20))):
        changed[generator.randrange(near)] = generator.randrange(256)
    return bytes(changed)


def check(
    command: Callable[[list[str]], int],
    arguments: list[str],
    input_file: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> bool:
    """Return whether the command succeeded; check the error if not."""
    before = sorted(folder.rglob("*"))
    code = command(arguments)
    error = capsys.readouterr().err
    if code == 0:
        return True
    assert code == 1, error
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    assert len(error) < 2000, error
    assert input_file.name in error, error
    assert sorted(folder.rglob("*")) == before
    return False


def good_weights() -> Iterator[tuple[str, bytes]]:
    state = RRDBNet(4, features=4, blocks=1, growth=2).state_dict()
    yield ".safetensors", to_safetensors(dict(state))
    for contents in ({"params_ema": state}, state):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(contents, buffer, _use_new_zipfile_serialization=zipped)
            yield ".pth", buffer.getvalue()


@pytest.mark.slow
def test_damaged_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(1)
    good = list(good_weights())
    taken = 0
    for number in range(WEIGHTS):
        suffix, contents = good[number % len(good)]
        file = tmp_path / f"number-{number}{suffix}"
        file.write_bytes(damaged(generator, contents))
        output = tmp_path / "out.safetensors"
        arguments = ["--weights", str(file), "--format", "safetensors", "--output", str(output), "--quiet"]
        taken += check(export.main, arguments, file, tmp_path, capsys)
        file.unlink()
        output.unlink(missing_ok=True)
    assert taken < WEIGHTS / 2


def test_weights_of_other_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("this must not be printed",)

    state = dict(RRDBNet(4, features=4, blocks=1, growth=2).state_dict())
    kinds: list[object] = [
        {"params_ema": Runs()},
        [1, 2, 3],
        {},
        {"params_ema": {"conv_first.weight": 3}},
        {**state, "conv_first.weight": torch.zeros(0)},
        {**state, "conv_first.weight": torch.zeros(4, 5, 3, 3)},
        {**state, "conv_last.bias": torch.full((3,), torch.nan)},
        {name: value for name, value in state.items() if "conv_hr" not in name},
        {name: value.int() for name, value in state.items()},
        {name: value.to_sparse() for name, value in state.items()},
        {name: value.to(torch.complex64) for name, value in state.items()},
    ]
    for number, contents in enumerate(kinds):
        file = tmp_path / f"kind-{number}.pth"
        torch.save(contents, file)
        arguments = ["--weights", str(file), "--format", "basicsr", "--output", str(tmp_path / "out.pth"), "--quiet"]
        taken = check(export.main, arguments, file, tmp_path, capsys)
        assert not taken or number == 8, f"{contents!r:.80}"
        (tmp_path / "out.pth").unlink(missing_ok=True)
    file = tmp_path / "bomb.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    arguments = ["--weights", str(file), "--format", "basicsr", "--output", str(tmp_path / "out.pth"), "--quiet"]
    assert not check(export.main, arguments, file, tmp_path, capsys)


@pytest.mark.slow
def test_damaged_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases.Degrader, "cases", lambda self, factors: iter(()))  # only the input is tested
    config = parse_arguments(["--data.train=[.]", "--precision=fp32", "--output=."])
    monkeypatch.setattr(frozen_attack, "parse_arguments", lambda _: config)  # reading it takes most of the time
    generator = random.Random(2)
    picture = Image.effect_mandelbrot((40, 36), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    good = []
    for kind, suffix in (("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"), ("TIFF", ".tif"), ("BMP", ".bmp")):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        good.append((suffix, buffer.getvalue()))
    taken = 0
    for number in range(PICTURES):
        suffix, contents = good[number % len(good)]
        file = tmp_path / f"number-{number}{suffix}"
        file.write_bytes(damaged(generator, contents))
        output = tmp_path / f"out-{number}"
        taken += check(degrade.main, [str(file), "--output", str(output), "--quiet"], file, tmp_path, capsys)
    assert taken < PICTURES * 0.7


@pytest.mark.slow
def test_damaged_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("versions", "devices", "extension", "ops", "tests", "weights"):
        monkeypatch.setattr(machine, name, lambda *_: None)
    generator = random.Random(3)
    good = (
        "data: {train: [photos], patch_size: 64}\nbatch_size: 2\nstages: [net, gan]\nprecision: fp32\n"
        "adversary:\n  preset: strong\n  steps: 3\nloss: {perceptual_layers: {conv1_2: 0.1}}\n"
    )
    invented = [
        "a: !!python/object/apply:os.system [echo this must not run]",
        "data: &a [*a]",
        "? [1, 2]\n: 3",
        "batch_size: 1e999",
        "batch_size: 0x",
        "seed: " + "9" * 5000,
        "stages: [[[[[[]]]]]]",
        "[" * 3000,
        "output: \0",
        "data: {train: {a: b}}",
        "2001-99-99: 3",
    ]
    for number in range(CONFIGURATIONS):
        file = tmp_path / f"number-{number}.yaml"
        if number < len(invented):
            file.write_text(invented[number])
        else:
            file.write_bytes(damaged(generator, good.encode()))
        code = doctor.main(["--config", str(file), "--output", str(tmp_path / "run")])
        result = capsys.readouterr()
        assert code == 1, result.out  # fails in any case: there are no photographs
        assert result.err == ""
        assert "would not run:\n  - " in result.out
        assert "Traceback" not in result.out
        assert "must not run" not in result.out.replace("echo this must not run", "")
    assert not (tmp_path / "run").exists()
