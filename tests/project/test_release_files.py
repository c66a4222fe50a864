"""CITATION.cff, CHANGELOG.md and the GitHub workflow: versions, form, and the commands that they run."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

import andfast

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
SECTIONS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
"""Keep a Changelog's, in its order."""


def steps():
    """Steps of all jobs of the workflow."""
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_citation_has_the_version_and_the_required_keys():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == andfast.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert [author["family-names"] for author in citation["preferred-citation"]["authors"]] == ["Luo", "Wu", "Guo"]


def test_changelog_keeps_the_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", version) for version in versions[1:])
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert kinds == [kind for kind in SECTIONS if kind in kinds]
        assert kinds


def test_workflow_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = "\n".join(step.get("run", "") for step in steps())
    assert (ROOT / ".ci" / "run").is_file()
    assert ".ci/run" in commands
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) == {"wheel", "test-wheel"} <= targets


def test_workflow_builds_and_tests_every_supported_python():
    requirement = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    supported = [f"3.{minor}" for minor in range(int(requirement[1]), int(requirement[2]))]
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["env"]["PYTHONS"].split() == [f"python{version}" for version in supported]
    assert workflow["jobs"]["test-wheels"]["strategy"]["matrix"]["python"] == supported
    (setup,) = (step for step in workflow["jobs"]["wheels"]["steps"] if "setup-python" in step.get("uses", ""))
    assert setup["with"]["python-version"].split() == supported


def test_actions_are_pinned_to_commits():
    lines = [line for line in WORKFLOW.read_text().splitlines() if "uses:" in line]
    assert len(lines) == sum("uses" in step for step in steps())
    for line in lines:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$", line), line


def test_workflow_shell_code_parses():
    for step in steps():
        if "run" in step:
            script = re.sub(r"\$\{\{.*?\}\}", "value", step["run"])
            subprocess.run(["bash", "-n", "-c", script], check=True)


@pytest.mark.parametrize(("tag", "expected"), [("v1.2.0", "- New."), ("v1.1.0", "- Old."), ("v1.2.1", None)])
def test_release_notes_are_the_versions_section(tag, expected, tmp_path):
    """Run the step itself with a stand-in for gh that prints the notes."""
    (step,) = (step["run"] for step in steps() if "gh release" in step.get("run", ""))
    changelog = "# Changelog\n\n## [1.2.0] - 2026-02-01\n\n- New.\n\n## [1.1.0] - 2026-01-01\n\n- Old.\n"
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "andfast.whl").touch()
    (tmp_path / "gh").write_text('#!/bin/sh\necho "$@"\ncat notes.md\n')
    (tmp_path / "gh").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_REF_NAME": tag}
    done = subprocess.run(
        ["bash", "-e", "-c", step], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    if expected is None:
        assert done.returncode == 1
        assert done.stdout == "CHANGELOG.md has no section for 1.2.1\n"
    else:
        assert done.returncode == 0, done.stderr
        command, *notes = done.stdout.splitlines()
        assert command.startswith(f"release create {tag} dist/andfast.whl --verify-tag --title andfast {tag[1:]}")
        assert [line for line in notes if line] == [expected]


def test_tag_check_compares_with_the_version():
    (command,) = (step["run"] for step in steps() if step.get("name") == "Check that the tag is the version")
    for tag, code in ((f"v{andfast.__version__}", 0), (f"v{andfast.__version__}0", 1)):
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env={"PATH": "/usr/bin:/bin", "GITHUB_REF_NAME": tag}, check=False
        )
        assert done.returncode == code
