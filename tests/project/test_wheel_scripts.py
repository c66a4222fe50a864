"""make wheel's and make test-wheel's scripts: a library compiled once for every Python, and errors before the work."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from test_packaging import copy_checkout, quick_compiler, run, run_well

from andfast.functional import extension

ROOT = Path(__file__).resolve().parents[2]
BUILD = ("-m", "build", "--no-isolation", "--wheel")


@pytest.mark.slow
def test_prebuilt_library_is_packaged_without_torch(tmp_path: Path) -> None:
    tree = copy_checkout(tmp_path / "checkout")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "torch.py").write_text("raise ImportError('hidden')\n")
    variables = {
        "PYTHONPATH": str(tmp_path / "hidden"),
        "CPLUS_INCLUDE_PATH": str(Path(torch.__file__).parent / "include"),
        "ANDFAST_PREBUILT_OPS": str(extension.LIBRARY),
        "ANDFAST_CUDA_ARCHS": extension.cuda_archs().replace(":", ";"),
        "CXX": quick_compiler(tmp_path),
    }
    run_well(*BUILD, "--outdir", tmp_path, ".", cwd=tree, **variables)
    (wheel,) = tmp_path.glob("andfast-*.whl")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("andfast/_ops.abi3.so") == extension.LIBRARY.read_bytes()
        archive.extractall(tmp_path / "wheel")
    code = "import _C; print(_C.CUDA_ARCHS)"
    assert run_well("-c", code, cwd=tmp_path / "wheel" / "andfast").strip() == extension.cuda_archs()


def test_missing_prebuilt_library_is_an_error(tmp_path: Path) -> None:
    tree = copy_checkout(tmp_path / "checkout")
    done = run("setup.py", "--version", cwd=tree, ANDFAST_PREBUILT_OPS="/no/such/file.so")
    assert done.returncode == 1
    assert "ANDFAST_PREBUILT_OPS must be an existing file, was '/no/such/file.so'" in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "usage: .ci/test-wheel.sh REQUIREMENTS WHEEL..."),
        ("andfast-1.0-cp311-cp311-linux.whl", "is no file; make wheel builds wheels into dist/"),
        ("other-1.0-cp311-cp311-linux.whl", "is not a wheel of andfast"),
        ("andfast-1.0+cpu-cp312-cp312-linux.whl", "needs Python 3.12, false is not that; set PYTHON"),
    ],
)
def test_wheels_that_cannot_be_tested(tmp_path: Path, name: str | None, message: str) -> None:
    wheels = [] if name is None else [tmp_path / name]
    for wheel in wheels:
        if "is no file" not in message:
            wheel.touch()
    command = ["bash", ".ci/test-wheel.sh", "requirements/reference.txt", *map(str, wheels)]
    environment = os.environ | {"PYTHON": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("andfast: error: ")
    assert done.stderr.rstrip().endswith(message)


def test_kept_environment_is_used_again(tmp_path: Path) -> None:
    python, log, wheel = tmp_path / "venv/bin/python", tmp_path / "log", tmp_path / "andfast-1.0-cp312-cp312-linux.whl"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$*" >>{log}\n[ "$1" != -c ] || echo 3.12\n')
    python.chmod(0o755)
    wheel.touch()
    command = ["bash", ".ci/test-wheel.sh", "requirements/reference.txt", str(wheel)]
    environment = os.environ | {"PYTHON": "false", "TEST_VENV": str(tmp_path / "venv"), "WHEEL_TESTS": "tests/nn"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    calls = [line for line in log.read_text().splitlines() if line.startswith("-m ")]
    assert [line.split()[:3] for line in calls] == [
        ["-m", "pip", "install"],
        ["-m", "pip", "install"],
        ["-m", "pytest", "--benchmark-disable"],
    ]
    assert calls[0].endswith("-r requirements/reference.txt")
    assert calls[1].endswith(str(wheel))
    assert "not slow and not gpu tests/nn" in calls[2]
    assert python.exists()
