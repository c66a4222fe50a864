"""Source distribution, the wheel built from it, and the environment variables of setup.py."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch

import andfast

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = (".*", "runs", "build", "dist", "*.egg-info", "*.so", "__pycache__")
SWITCHES = ("ANDFAST_CPU_ONLY", "ANDFAST_CUDA_ARCHS", "ANDFAST_REQUIRE_EXT", "CXX")
SHOW_KERNELS = """
import os, torch, andfast, andfast._C, andfast.kernels
from andfast.functional import blur_pool
x = torch.rand(2, 3, 16, 16)
torch.testing.assert_close(blur_pool(x, 4, impl="cpp"), blur_pool(x, 4, impl="reference"))
folder = os.path.dirname(andfast.kernels.__file__)
assert not os.path.islink(folder), folder
print(andfast.__file__, andfast._C.__file__, folder, andfast.__version__, sep="\\n")
"""
SHOW_REASON = """
import torch
from andfast.functional import blur_pool
x = torch.ones(1, 3, 8, 8)
assert torch.equal(blur_pool(x, 4), torch.ones(1, 3, 2, 2))
blur_pool(x, 4, impl="cpp")
"""


def run(*command, cwd, **variables):
    """Run Python with these switches and no others."""
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES} | variables
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def run_well(*command, cwd, **variables):
    done = run(*command, cwd=cwd, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def copy_checkout(target):
    """Copy the checkout with its links, so that building does not change it."""
    return Path(shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCES)))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return copy_checkout(tmp_path_factory.mktemp("packaging") / "checkout")


@pytest.fixture(scope="module")
def sdist(checkout):
    run_well("-m", "build", "--no-isolation", "--sdist", "--outdir", checkout.parent, ".", cwd=checkout)
    (archive,) = checkout.parent.glob("andfast-*.tar.gz")
    return archive


def unpack(archive, target):
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    (folder,) = target.iterdir()
    return folder


def build_wheel(source, target, **variables):
    variables["ANDFAST_CPU_ONLY"] = "1"
    output = run_well("-m", "build", "--no-isolation", "--wheel", "--outdir", target, ".", cwd=source, **variables)
    (wheel,) = target.glob("andfast-*.whl")
    return wheel, output


def quick_compiler(folder):
    """A C++ compiler that leaves out the optimizations that setup.py asks for: half of the time."""
    script = folder / "g++"
    script.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    script.chmod(0o755)
    return str(script)


def install(wheel, target):
    run_well("-m", "pip", "install", "--no-index", "--no-deps", "--target", target, wheel, cwd=target.parent)


def run_alone(site, code):
    """Run code with the packages of ``site``, then those of this environment except for editable ones (-S)."""
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return run("-S", "-P", "-c", code, cwd=site, PYTHONPATH=path)


@pytest.mark.slow
def test_sdist_is_complete(sdist):
    with tarfile.open(sdist) as tar:
        members = {member.name.partition("/")[2]: member for member in tar.getmembers()}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    expected |= {f"andfast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "andfast").rglob("*.py")}
    expected |= {"LICENSE", "README.md", "CHANGELOG.md", "setup.py", "pyproject.toml", "andfast/py.typed"}
    assert expected <= members.keys(), expected - members.keys()
    assert not any(member.issym() or member.islnk() for member in members.values())
    assert not any(name.endswith(".so") or name.startswith("kernels") for name in members)


@pytest.mark.slow
def test_wheel_from_sdist_runs(sdist, tmp_path):
    source = unpack(sdist, tmp_path / "source")
    wheel, _ = build_wheel(source, tmp_path, ANDFAST_REQUIRE_EXT="1", CXX=quick_compiler(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packages = {name.split("/")[0] for name in names}
    assert packages == {"andfast", f"andfast-{andfast.__version__}.dist-info"}
    assert "andfast/kernels/__init__.py" in names
    assert any(re.fullmatch(r"andfast/_C\..*\.so", name) for name in names)
    assert "andfast/_ops.abi3.so" in names
    site = tmp_path / "site"
    install(wheel, site)
    *paths, version = run_alone(site, SHOW_KERNELS).stdout.split()
    assert all(Path(path).is_relative_to(site) for path in paths), paths
    assert version == andfast.__version__


@pytest.mark.slow
def test_wheel_without_a_compiler_is_pure_python(checkout, tmp_path):
    wheel, output = build_wheel(checkout, tmp_path, CXX="no-such-compiler")
    assert "WARNING: installing without the compiled extension: no C++ compiler: no-such-compiler" in output
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    done = run_alone(site, SHOW_REASON)
    assert done.returncode == 1
    assert "impl='cpp' of blur_pool is not available: no compiled extension: this andfast was" in done.stderr


NO_COMPILER = {"CXX": "no-such-compiler"}


@pytest.mark.parametrize(
    ("cuda_sources", "variables", "message"),
    [
        (0, {"ANDFAST_CPU_ONLY": "yes"}, "ANDFAST_CPU_ONLY must be 0 or 1, was 'yes'"),
        (
            0,
            {"ANDFAST_REQUIRE_EXT": "1", **NO_COMPILER},
            "ANDFAST_REQUIRE_EXT=1, and the extension cannot be built: no C",
        ),
        (0, {"ANDFAST_CPU_ONLY": "1", "ANDFAST_CUDA_ARCHS": "8.0"}, "ANDFAST_CPU_ONLY=1 and ANDFAST_CUDA_ARCHS cont"),
        (
            0,
            {"ANDFAST_CUDA_ARCHS": "A100"},
            "ANDFAST_CUDA_ARCHS must be compute capabilities like 8.0;9.0a, was 'A100'",
        ),
        (0, {"ANDFAST_CUDA_ARCHS": "8.0;9.0"}, "'8.0;9.0' asks for the CUDA part, but csrc/ has no .cu files"),
        (
            1,
            {"ANDFAST_CUDA_ARCHS": "8.0", "CUDA_HOME": "/no/such/folder"},
            "asks for the CUDA part: no CUDA toolkit found",
        ),
        (
            1,
            {"ANDFAST_CUDA_ARCHS": "8.0", **NO_COMPILER},
            "ANDFAST_CUDA_ARCHS='8.0', and the extension cannot be built",
        ),
    ],
)
def test_rejects_unsatisfiable_switches(tmp_path, cuda_sources, variables, message):
    tree = copy_checkout(tmp_path / "checkout")
    for path in tree.glob("csrc/**/*.cu"):
        path.unlink()
    for number in range(cuda_sources):
        (tree / "csrc" / f"kernel{number}.cu").touch()
    done = run("setup.py", "--version", cwd=tree, **variables)
    assert done.returncode == 1
    assert message in done.stderr


def fake_toolkit(folder, release, script="exit 1"):
    """A folder that looks like a CUDA toolkit, with an nvcc that runs ``script``."""
    (folder / "bin").mkdir(parents=True)
    (folder / "include").mkdir()
    (folder / "include" / "cuda_runtime.h").touch()
    nvcc = folder / "bin" / "nvcc"
    version = f"Cuda compilation tools, release {release}"
    nvcc.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" && exit 0\n{script}\n')
    nvcc.chmod(0o755)
    return {"CUDA_HOME": str(folder)}


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch built with CUDA")
@pytest.mark.parametrize(
    ("release", "script", "message"),
    [
        ("1.2", "exit 1", r"is CUDA 1\.2, torch .* is built for "),
        (None, "echo 'nvcc fatal: unknown gpu' >&2; exit 1", "a small kernel: nvcc fatal: unknown gpu"),
    ],
    ids=["another major version", "does not compile"],
)
def test_unsuitable_toolkits(tmp_path, release, script, message):
    """A one-line error, as CUDA is requested."""
    home = fake_toolkit(tmp_path / "cuda", release or torch.version.cuda, script)
    tree = copy_checkout(tmp_path / "checkout")
    done = run("setup.py", "build_ext", "--help", cwd=tree, ANDFAST_CUDA_ARCHS="9.0", **home)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert re.match(r"andfast: ANDFAST_CUDA_ARCHS='9.0' asks for the CUDA part: .*" + message, line), line


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch built with CUDA")
def test_unsuitable_toolkit_builds_the_cpu_part(tmp_path):
    """CUDA is not requested: a message."""
    home = fake_toolkit(tmp_path / "cuda", "1.2")
    done = run("setup.py", "build_ext", "--help", cwd=copy_checkout(tmp_path / "checkout"), **home)
    assert done.returncode == 0, done.stderr
    assert re.search(r"andfast: building the CPU part only: .*is CUDA 1\.2, torch .* is built for ", done.stderr)


def test_version_has_one_source():
    from importlib.metadata import version  # noqa: PLC0415

    assert version("andfast") == andfast.__version__
    assert andfast.__version__ not in (ROOT / "pyproject.toml").read_text() + (ROOT / "setup.py").read_text()


def test_requirements_name_no_urls():
    """Pinned names and versions only; the index is configured on the machine."""
    for path in (ROOT / "requirements").glob("*.txt"):
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"(#.*|-r common\.txt|[A-Za-z0-9_-]+==[\w.]+|)", line), (path.name, line)


def test_mentioned_extras_exist():
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    files = [*(ROOT / "andfast").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = {name for file in files for name in re.findall(r"andfast\[(\w+)\]", file.read_text())}
    assert {"metrics", "models", "export"} <= named <= extras
