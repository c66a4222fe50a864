"""``andfast COMMAND``: the commands, and unknown ones."""

import importlib
import subprocess
import sys

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
