"""The code's own standards: lint, format, types, and where things may stand."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lint():
    run("ruff", "check", "--no-cache", ".")


def test_format():
    run("ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.slow
def test_types():
    run("mypy")


def test_kernels_is_a_relative_link():
    link = ROOT / "andfast" / "kernels"
    assert link.is_symlink()
    assert link.readlink() == Path("../kernels")
    assert link.resolve() == ROOT / "kernels"


@pytest.mark.parametrize("pattern", ["andfast/**/*.py", "kernels/*.py", "csrc/*", "tests/*.py", "benchmarks/*.py"])
def test_files_hold_one_idea(pattern):
    """No file above 400 lines."""
    files = [path for path in ROOT.glob(pattern) if path.is_file()]
    assert files
    assert {path.name: lines for path in files if (lines := len(path.read_text().splitlines())) > 400} == {}
