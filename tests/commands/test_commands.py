"""``andfast COMMAND``: every command is there, and what is none is refused."""

import importlib
import subprocess
import sys

import pytest

from andfast import __version__
from andfast.__main__ import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code in (0, None)
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_started_as_a_module_of_its_own(name: str) -> None:
    assert importlib.import_module(f"andfast.{name}").__doc__


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_the_list(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"andfast {__version__}\n"


@pytest.mark.parametrize(("name", "hint"), [("upscael", "did you mean upscale?"), ("xyzzy", "one of train, ")])
def test_a_name_that_is_no_command(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    assert capsys.readouterr().err.startswith(f"error: {name!r} is no command of andfast; {hint}")


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "andfast", "nothing"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
