"""``andfast COMMAND``: the commands, and unknown ones."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from andfast import __version__
from andfast.__main__ import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code in (0, None)
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_a_module(name: str) -> None:
    assert importlib.import_module(f"andfast.{name}").__doc__


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_help_lists_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"andfast {__version__}\n"


@pytest.mark.parametrize(("name", "hint"), [("upscael", "did you mean upscale?"), ("xyzzy", "one of train, ")])
def test_unknown_command_returns_2(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    assert capsys.readouterr().err.startswith(f"error: {name!r} is not an andfast command; {hint}")


def test_andfast_is_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "andfast", "nothing"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


TRAIN = ["andfast.train", "--output", "run", "--data.train=[missing]"]


@pytest.mark.parametrize(
    ("arguments", "chosen", "spins"),
    [
        (TRAIN, {}, "2000"),
        (TRAIN, {"GOMP_SPINCOUNT": "7"}, "7"),
        (TRAIN, {"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
        (["andfast", "evaluate", "--data", "missing", "--weights", "missing"], {}, "2000"),
        (["andfast.upscale", "missing", "out", "--weights", "missing"], {}, "2000"),
        (["andfast.degrade", "missing", "--output", "out"], {}, "2000"),
        (["andfast.calibrate", "--pairs", "missing"], {}, "2000"),
    ],
)
def test_threads_spin_briefly(arguments: list[str], chosen: dict[str, str], spins: str, tmp_path: Path) -> None:
    """OpenMP prints what it read when torch was imported."""
    unset = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = unset | {"OMP_DISPLAY_ENV": "VERBOSE", **chosen}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
