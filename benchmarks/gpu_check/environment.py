"""gpu-check's first stage: install what is missing from wheels/ into a temporary folder, and describe the machine.

python -m benchmarks.gpu_check.environment SCRATCH WHEELS
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

WANTED = (
    "torch",
    "triton",
    "numpy",
    "pytest",
    "pytest-benchmark",
    "pytest-timeout",
    "hypothesis",
    "ninja",
    "setuptools",
)
SETUPTOOLS = 77
"""Oldest version that reads pyproject.toml's license."""


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(name: str) -> bool:
    """Whether a package is installed, setuptools in a sufficient version."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return normal(name) != "setuptools" or int(version.split(".")[0]) >= SETUPTOOLS


def missing_wheels(folder: Path) -> list[Path]:
    """The wheels of packages that are not installed."""
    return [path for path in sorted(folder.glob("*.whl")) if not installed(normal(path.name.split("-")[0]))]


def main(scratch: Path, wheels: Path) -> int:
    missing = missing_wheels(wheels) if wheels.is_dir() else []
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--disable-pip-version-check", "--target", str(scratch / "site"), *map(str, missing)]
        subprocess.run(command, check=True)
        sys.path.append(str(scratch / "site"))
        importlib.invalidate_caches()
    from benchmarks import machine  # noqa: PLC0415  # torch is not imported before there is a message about it

    described = machine.describe()
    described["slug"] = machine.slug(described["name"])
    described["missing"] = [name for name in WANTED if not installed(name)]
    described["from_wheels"] = [path.name for path in missing]
    (scratch / "machine.json").write_text(json.dumps(described))
    print(json.dumps(described, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
