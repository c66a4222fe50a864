"""The prepare command."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from andfast.data.store import PackedImages
from andfast.prepare import main


@pytest.fixture
def photos(tmp_path):
    """Two images, one of them small, and a damaged file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("large.png", 40), ("small.png", 20)):
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(folder / name)
    (folder / "words.jpg").write_text("words")
    return folder


def run(*arguments):
    command = [sys.executable, "-W", "error", "-m", "andfast.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_packs_and_prints_a_table(photos, tmp_path):
    result = run(photos, "--output", tmp_path / "pack", "--min-size", 30, "--workers", 2)
    assert result.returncode == 0, result.stderr
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[:5])
    assert rows == {"packed": "1", "reused": "0", "removed": "0", "skipped": "2", "MB": "0.0"}
    assert "skipped small.png: 20x20 pixels, smaller than the minimum of 30" in result.stdout
    assert "skipped words.jpg: not a PNG" in result.stdout
    assert "packing: 100%" in result.stderr  # the progress bar
    assert PackedImages(tmp_path / "pack").names == ["large.png"]


def test_filters_and_second_run(photos, tmp_path, capsys):
    arguments = [
        str(photos),
        "--output",
        str(tmp_path / "pack"),
        "--min-size",
        "8",
        "--workers",
        "0",
        "--quiet",
    ]
    assert main([*arguments, "--include", "*.png", "--exclude", "small*", "--exclude", "other*"]) == 0
    assert PackedImages(tmp_path / "pack").names == ["large.png"]
    assert main([*arguments, "--include", "*.png"]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[5].split() == ["packed", "1"]
    assert output.out.splitlines()[6].split() == ["reused", "1"]
    assert output.err == ""


def test_errors_are_one_line(photos, tmp_path, capsys):
    output = ["--output", str(tmp_path / "pack"), "--workers", "0", "--quiet"]
    assert main([str(photos), *output]) == 1  # all are smaller than the default of 256
    assert main([str(tmp_path / "nowhere"), *output]) == 1
    assert main([str(photos), "--output", str(photos)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"error: sources hold no usable images: {photos}; large.png: 40x40 pixels")
    assert "must be an existing folder or file" in lines[1]
    assert "output must be a pack or an empty folder" in lines[2]


@pytest.mark.parametrize("arguments", [[], ["x"], ["x", "--output", "y", "--min-size", "0"]])
def test_rejects_invalid_command_lines(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "error:" in capsys.readouterr().err


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for word in (
        "FOLDER",
        "--output",
        "--min-size",
        "--include",
        "--exclude",
        "--workers",
        "package:NAME",
        "256",
    ):
        assert word in text


def test_interrupt(photos, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("andfast.prepare.pack_images", interrupted)
    assert main([str(photos), "--output", str(tmp_path / "pack")]) == 130
    assert "is unchanged" in capsys.readouterr().err
