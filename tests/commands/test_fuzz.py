"""Over a thousand bad pictures, weights and configurations, each of which ends in an error of one line that names it.

Never in a traceback, a payload that ran, a partial file, or gigabytes of memory. What a mutation left usable may also
come out, whole.
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

from andfast.config.parsing import parse_train, setting_types
from andfast.files import printable
from andfast.upscale import main

MEMORY = 1 << 30


class Verdict:
    """Counts what ended as it should, and says of what."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.refused = self.usable = 0
        self._capsys = capsys

    def of(self, file: Path, run: Callable[[], int], names: list[str]) -> bool:
        """Run a command on a file; whether it was refused, in one line that has one of the names."""
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
        self.refused += 1
        return True

    @property
    def last(self) -> str:
        """What was printed since the last verdict."""
        return self._capsys.readouterr().err


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@pytest.mark.slow
def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict, before = Verdict(capsys), peak()
    out = tmp_path / "out"
    options = ["--weights", "bicubic", "--scale", "2", "--quiet", "--device", "cpu", "--format", "png"]
    options += ["--max-pixels", "100000000"]
    for name, content in fuzzing.bad_pictures(random.Random(1)):
        file = tmp_path / name
        file.write_bytes(content)

        def run(file: Path = file) -> int:
            return main([str(file), str(out), *options])

        refused = verdict.of(file, run, [f"{printable(str(file))}: not restored: "])
        left = list(out.iterdir()) if out.exists() else []
        assert len(left) == (0 if refused else 1), (name, left)
        for result in left:
            with Image.open(result) as picture:
                picture.load()
            result.unlink()
        file.unlink()
    assert verdict.refused >= 500, (verdict.refused, verdict.usable)
    assert verdict.usable >= 20, "absurd metadata beside sound pixels should not lose the picture"
    assert peak() - before < MEMORY


def test_good_pictures_are_good(tmp_path: Path) -> None:
    """What is mutated is sound to begin with, or the tests above would show nothing."""
    for name, content in fuzzing.good_pictures():
        (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / "*.*"), str(tmp_path / "out"), "--weights", "bicubic", "--scale", "1", "--quiet"]) == 0


@pytest.mark.slow
def test_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict, before, mark = Verdict(capsys), peak(), tmp_path / "executed"
    picture, out = tmp_path / "picture.png", tmp_path / "out"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(picture)
    for name, content in fuzzing.bad_weights(random.Random(2), mark):
        file = tmp_path / name
        file.write_bytes(content)

        def run(file: Path = file) -> int:
            return main([str(picture), str(out), "--weights", str(file), "--quiet", "--overwrite", "--device", "cpu"])

        # A mutation may leave finite weights that are so large that what they restore is not finite.
        refused = verdict.of(file, run, [f"error: {file}: ", "gave values that are not finite"])
        assert not mark.exists(), name
        if refused:
            assert not out.exists() or all(path.name == "picture.png" for path in out.iterdir())
        file.unlink()
    assert verdict.refused >= 400, (verdict.refused, verdict.usable)
    assert peak() - before < MEMORY


@pytest.mark.slow
def test_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict, before, mark = Verdict(capsys), peak(), tmp_path / "executed"
    settings = [name for name, _ in setting_types()]
    for name, content in fuzzing.bad_configurations(random.Random(3), mark, settings):
        file = tmp_path / name
        file.write_bytes(content)

        def run(file: Path = file) -> int:
            parse_train(["--config", str(file), "--output", str(tmp_path / "run")])
            return 0

        # An error of a value names the setting, one of the file names the file.
        verdict.of(file, run, [str(file), *(f"error: {setting} must" for setting in settings)])
        assert not mark.exists(), name
        file.unlink()
    assert verdict.refused >= 250, (verdict.refused, verdict.usable)
    assert not (tmp_path / "run").exists()
    assert peak() - before < MEMORY
