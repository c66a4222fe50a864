""".ci/run with stand-ins: the newest packages are installed during the tests, and a failed install fails the run."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKE = """#!/bin/bash
echo "make $1" | tee -a "$CALLS"
[ "$1" = test ] || exit 0
until [ -s "$CALLS.pid" ]; do sleep 0.01; done
exit "$TEST_STATUS"
"""
SETUP = """
echo "$@" | tee -a "$CALLS"
sleep "$SETUP_SECONDS" &
echo $! >"$CALLS.pid"
wait
exit "$SETUP_STATUS"
"""
INSTALL = ".venv-newest requirements/newest.txt packages"


def ci_run(folder: Path, setup_seconds: str = "0", setup_status: int = 0, test_status: int = 0) -> tuple[int, str]:
    """Exit code and output."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
    (folder / ".ci" / "setup.sh").write_text(SETUP)
    (folder / "make").write_text(MAKE)
    (folder / "make").chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls"), "SETUP_SECONDS": setup_seconds,
        "SETUP_STATUS": str(setup_status), "TEST_STATUS": str(test_status), "TMPDIR": str(folder),
    }  # fmt: skip
    done = subprocess.run(
        [folder / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert not list(folder.glob("tmp.*"))  # the log
    return done.returncode, done.stdout


def test_output_of_the_install_follows_the_tests(tmp_path: Path) -> None:
    status, output = ci_run(tmp_path, setup_seconds="0.3")
    assert status == 0
    assert output.splitlines() == ["make test", INSTALL, "make test-newest"]
    assert set((tmp_path / "calls").read_text().splitlines()[:2]) == {INSTALL, "make test"}


def test_failed_install_fails_the_run(tmp_path: Path) -> None:
    status, output = ci_run(tmp_path, setup_status=7)
    assert status == 7
    assert output.splitlines() == ["make test", INSTALL]


@pytest.mark.parametrize("status", [1, 2])
def test_failed_tests_end_the_install(tmp_path: Path, status: int) -> None:
    assert ci_run(tmp_path, setup_seconds="600", test_status=status) == (status, "make test\n")
    end = time.monotonic() + 20
    while is_running((tmp_path / "calls.pid").read_text().strip()):
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(process: str) -> bool:
    try:
        return (Path("/proc") / process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
