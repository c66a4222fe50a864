"""Files around upscale: links, unsupported formats, long names, limits, unwritable outputs, color shifts."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from andfast.files import atomic_file, atomic_path, check_writable, temporary_path
from andfast.inference import models
from andfast.inference.color_shift import ColorShift
from andfast.nn import RRDBNet
from andfast.nn.interpolation_start import start_as_interpolation
from andfast.nn.weights import save_weights
from andfast.upscale import main

BICUBIC = ["--weights", "bicubic", "--scale", "2", "--quiet", "--device", "cpu"]


def save(path: Path, color: tuple[int, ...] = (90, 120, 150), size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB" if len(color) == 3 else "RGBA", size, color).save(path)
    return path


def results(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_links_are_restored(tmp_path: Path) -> None:
    save(tmp_path / "in" / "rgb.png")
    (tmp_path / "in" / "a_link.png").symlink_to("rgb.png")
    save(tmp_path / "in" / "x" / "b.png")
    (tmp_path / "in" / "y").symlink_to("x")
    (tmp_path / "in" / "x" / "cycle").symlink_to(tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), *BICUBIC]) == 0
    assert results(tmp_path / "out") == ["a_link.png", "rgb.png", "x/b.png", "y/b.png"]


@pytest.mark.parametrize("pattern", ["in", "in/*"])
def test_unsupported_formats_are_reported(pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.gif")
    assert main([str(tmp_path / pattern), str(tmp_path / "out"), *BICUBIC]) == 0
    assert results(tmp_path / "out") == ["a.png"]
    assert capsys.readouterr().err == f"{tmp_path}/in/b.gif: skipped: GIF is not a supported format\n"


@pytest.mark.parametrize("length", [249, 250, 251, 255])
def test_long_names(length: int, tmp_path: Path) -> None:
    source = save(tmp_path / "a.png").rename(tmp_path / ("n" * (length - 4) + ".png"))
    assert main([str(source), str(tmp_path / "out"), *BICUBIC]) == 0
    assert results(tmp_path / "out") == [source.name]


def test_temporary_names_fit() -> None:
    short, long = Path("/x/a.onnx"), Path("/x/" + "\N{LATIN SMALL LETTER E WITH ACUTE}" * 125 + ".onnx")
    assert temporary_path(short).name == ".tmp-a.onnx"
    assert len(os.fsencode(temporary_path(long).name)) <= 255
    assert temporary_path(long).suffix == ".onnx"
    assert temporary_path(long) != temporary_path(long.with_name("f" + long.name[1:]))


def test_long_names_of_other_writers(tmp_path: Path) -> None:
    name = "n" * 251 + ".txt"
    with atomic_file(tmp_path / name) as file:
        file.write(b"x")
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_bytes(b"y")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"y")]


def test_pixel_limit_names_the_limit_and_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tmp_path / "a.png", size=(60, 50))
    assert main([str(source), str(tmp_path / "out"), "--max-pixels", "2999", *BICUBIC]) == 1
    assert "too many pixels: 3,000, the limit is 2,999 (see --max-pixels)" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["file.txt/out", "file.txt/out.png", "file.txt/deep/out"])
def test_unwritable_output_is_found_first(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.txt").write_text("")
    source = save(tmp_path / "a.png")
    monkeypatch.setattr(models, "generator_from_weights", lambda _: pytest.fail("weights were loaded"))
    assert main([str(source), str(tmp_path / target), "--weights", "g.pth"]) == 2
    message = f"error: {tmp_path / 'file.txt'} must be a folder to write "
    assert capsys.readouterr().err.startswith(message)


def test_check_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "a" / "b" / "c.png")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IsADirectoryError, match="must be a file to write, is a folder"):
        check_writable(tmp_path)

    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("andfast.files.tempfile.TemporaryFile", read_only)
    with pytest.raises(OSError, match=r"must be writable, was not: Read-only file system"):
        check_writable(tmp_path / "a.png")


def tinting_weights(path: Path, *offsets: float) -> Path:
    """Interpolation plus a constant per channel."""
    network = RRDBNet(4, features=8, blocks=1, growth=4)
    start_as_interpolation(network)
    with torch.no_grad():
        network.conv_last.bias += torch.tensor(offsets)
    save_weights(path, network)
    return path


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_color_shift_is_reported(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tinting_weights(tmp_path / "g.safetensors", 14 / 255, -7 / 255, -15 / 255)
    Image.new(mode, (20, 16), {"RGB": (128,) * 3, "RGBA": (128, 128, 128, 200), "L": 128}[mode]).save(
        tmp_path / "a.png"
    )
    arguments = ["--weights", str(weights), "--quiet", "--device", "cpu"]
    assert main([str(tmp_path / "a.png"), str(tmp_path / "out"), *arguments]) == 0
    err = capsys.readouterr().err
    if mode == "L":  # 0.299 * 14 - 0.587 * 7 - 0.114 * 15 = -1.6 levels
        assert err == ""
    else:
        assert "a.png: the mean color is shifted by more than 2 of 255 levels: R +14.0, G -7.0, B -15.0" in err


def test_no_color_shift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tinting_weights(tmp_path / "g.safetensors", 1 / 255, -1 / 255, 0)
    save(tmp_path / "a.png", (128, 128, 128), (20, 16))
    arguments = ["--weights", str(weights), "--quiet", "--device", "cpu"]
    assert main([str(tmp_path / "a.png"), str(tmp_path / "out"), *arguments]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_color_shift_is_the_difference_of_pooled_images(dtype: type) -> None:
    rng, top = np.random.default_rng(0), np.iinfo(dtype).max
    lr = rng.integers(0, top + 1, (300, 7, 3), dtype)
    sr = rng.integers(0, top + 1, (600, 14, 3), dtype)
    shift = ColorShift(lr)
    for rows in np.split(sr, [100, 101, 350]):
        shift.add(rows)
    pooled = sr.reshape(300, 2, 7, 2, 3).mean((1, 3), dtype=np.float64)
    np.testing.assert_allclose(shift.levels, (pooled - lr).mean((0, 1)) * 255 / top, atol=1e-9)


def test_hidden_colors_do_not_shift() -> None:
    lr = np.zeros((4, 4, 4), np.uint8)
    lr[:2] = (100, 100, 100, 255)
    sr = np.full((8, 8, 4), 200, np.uint8)
    sr[..., 3] = 0
    sr[:4] = (101, 100, 99, 255)
    shift = ColorShift(lr)
    shift.add(sr)
    np.testing.assert_allclose(shift.levels, [1, 0, -1])
    assert shift.warning() is None
