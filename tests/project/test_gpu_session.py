"""benchmarks/gpu_session.sh with a stand-in for Python: every part runs, within its limit, whatever others do."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_session.sh"
PARTS = ["tests", "convolution", "step", "profile", "tune", "compiled", "ops"]
PYTHON = """#!/bin/bash
echo "$@" >>"$CALLS"
case "$*" in *"$FAILS"*) exit 3 ;; esac
"""


def session(folder: Path, *arguments: str, fails: str = "nothing", **variables: str) -> tuple[int, str, list[str]]:
    """Exit code, output, and the arguments of each call of Python."""
    python, calls = folder / "python", folder / "calls"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "CALLS": str(calls), "FAILS": fails, **variables}
    done = subprocess.run(
        ["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines() if calls.exists() else []


def test_all_parts_run_in_order(tmp_path: Path) -> None:
    status, output, calls = session(tmp_path, str(tmp_path / "out"), GPU_CHECK_ARGS="--allow-cpu --quick")
    assert status == 0
    assert [line.split()[1].rstrip(":") for line in output.splitlines() if "at most" in line] == PARTS
    assert (
        calls[0]
        == f"-m benchmarks.gpu_check --part tests --budget 180 --output {tmp_path}/out/tests --allow-cpu --quick"
    )
    assert sum(int(line.split()[4]) for line in output.splitlines() if "at most" in line) <= 13 * 60
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == sorted(PARTS)


def test_failed_part_does_not_stop_the_others(tmp_path: Path) -> None:
    status, output, calls = session(tmp_path, str(tmp_path / "out"), fails="--part step")
    assert (status, len(calls)) == (1, len(PARTS))
    assert output.splitlines()[-1] == "failed: step (3)"


def test_named_parts(tmp_path: Path) -> None:
    status, _, calls = session(tmp_path, str(tmp_path / "out"), "profile", "convolution")
    assert status == 0
    assert ["profile" in calls[0], "convolution_check" in calls[1], len(calls)] == [True, True, 2]


@pytest.mark.parametrize(("arguments", "message"), [((), "usage: "), (("out", "step", "stept"), "PART must be one")])
def test_wrong_arguments(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    status, output, calls = session(tmp_path, *(str(tmp_path / x) if x == "out" else x for x in arguments))
    assert (status, calls) == (2, [])
    assert message in output
