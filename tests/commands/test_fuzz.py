"""Over a thousand bad images, weights and configurations: each ends in a one-line error that names it.

None causes a traceback, runs a payload, leaves a partial file or takes gigabytes of memory. Files that a mutation left
usable may succeed.
"""

import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import fuzzing
import numpy as np
import pytest
from PIL import Image

from andfast.config.command_line import parse_train
from andfast.config.names import setting_types
from andfast.files import printable
from andfast.upscale import main

MEMORY = 1 << 30


class Outcomes:
    """Check and count the outcomes."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.rejected = self.usable = 0
        self._capsys = capsys

    def check(self, file: Path, run: Callable[[], int], names: list[str]) -> bool:
        """Run a command on a file; return whether it failed, with one line that contains one of the names."""
        try:
            code = run()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException as error:
            raise AssertionError(f"{file.name} came out as {error!r}") from error
        err = self._capsys.readouterr().err
        assert "Traceback" not in err, (file.name, err)
        if code == 0:
            self.usable += 1
            return False
        assert any(name in err for name in names), (file.name, err)
        assert len(err) < 2000, (file.name, err)
        assert all(character.isprintable() or character == "\n" for character in err), (file.name, err)
        self.rejected += 1
        return True


def peak() -> int:
    """Peak resident memory of this process in bytes."""
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss if sys.platform == "darwin" else rss * 1024


@pytest.mark.slow
def test_bad_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes, before = Outcomes(capsys), peak()
    out = tmp_path / "out"
    options = ["--weights", "bicubic", "--scale", "2", "--quiet", "--device", "cpu", "--format", "png"]
    options += ["--max-pixels", "100000000"]
    for name, content in fuzzing.bad_images(random.Random(1)):
        file = tmp_path / name
        file.write_bytes(content)

        def run(file: Path = file) -> int:
            return main([str(file), str(out), *options])

        rejected = outcomes.check(file, run, [f"{printable(str(file))}: not restored: "])
        left = list(out.iterdir()) if out.exists() else []
        assert len(left) == (0 if rejected else 1), (name, left)
        for result in left:
            with Image.open(result) as picture:
                picture.load()
            result.unlink()
        file.unlink()
    assert outcomes.rejected >= 500, (outcomes.rejected, outcomes.usable)
    assert outcomes.usable >= 20, "absurd metadata must not reject intact pixels"
    assert peak() - before < MEMORY


def test_good_images_are_restored(tmp_path: Path) -> None:
    """The files before mutation are valid."""
    for name, content in fuzzing.good_images():
        (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / "*.*"), str(tmp_path / "out"), "--weights", "bicubic", "--scale", "1", "--quiet"]) == 0


@pytest.mark.slow
def test_bad_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes, before, mark = Outcomes(capsys), peak(), tmp_path / "executed"
    picture, out = tmp_path / "picture.png", tmp_path / "out"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture)
    for name, content in fuzzing.bad_weights(random.Random(2), mark):
        file = tmp_path / name
        file.write_bytes(content)

        def run(file: Path = file) -> int:
            return main([str(picture), str(out), "--weights", str(file), "--quiet", "--overwrite", "--device", "cpu"])

        # A mutation may leave finite weights so large that the result is not finite.
        rejected = outcomes.check(file, run, [f"error: {file}: ", "values that are not finite"])
        assert not mark.exists(), name
        if rejected:
            assert not out.exists() or all(path.name == "picture.png" for path in out.iterdir())
        file.unlink()
    assert outcomes.rejected >= 400, (outcomes.rejected, outcomes.usable)
    assert peak() - before < MEMORY


@pytest.mark.slow
def test_bad_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes, before, mark = Outcomes(capsys), peak(), tmp_path / "executed"
    settings = [name for name, _ in setting_types()]
    for name, content in fuzzing.bad_configurations(random.Random(3), mark, settings):
        file = tmp_path / name
        file.write_bytes(content)

        def run(file: Path = file) -> int:
            parse_train(["--config", str(file), "--output", str(tmp_path / "run")])
            return 0

        # Errors of values name the setting, errors of files the file.
        outcomes.check(file, run, [str(file), *(f"error: {setting} must" for setting in settings)])
        assert not mark.exists(), name
        file.unlink()
    assert outcomes.rejected >= 250, (outcomes.rejected, outcomes.usable)
    assert not (tmp_path / "run").exists()
    assert peak() - before < MEMORY
