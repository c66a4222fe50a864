"""Package versions and the commit."""

import os
import subprocess
from pathlib import Path

import pytest

from andfast import provenance
from andfast.provenance import commit_of, versions


def git(folder: Path, *arguments: str) -> str:
    identity = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def test_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    package, installed = tmp_path / "package", tmp_path / "venv"
    package.mkdir()
    installed.mkdir()
    (package / "a.py").write_text("1")
    (installed / "a.py").write_text("1")
    assert commit_of(package) == (None, None)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "package")
    assert commit_of(package) == (None, None)
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(package) == (commit, False)
    assert commit_of(installed) == (None, None)
    (package / "a.py").write_text("2")
    assert commit_of(package) == (commit, True)
    monkeypatch.setenv("PATH", "")
    assert commit_of(package) == (None, None)


def test_versions_of_missing_packages_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("torch", "no-such-package-here"))
    record = versions()
    assert record["no-such-package-here"] is None
    assert record["torch"]
