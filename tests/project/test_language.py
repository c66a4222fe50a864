"""Conventions of CONTRIBUTING.md that a machine can check: names, wording, line lengths of prose, commit subjects."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("andfast", "kernels", "benchmarks", "tests")
FIRST_COMMIT = "3be0b89"
"""Subjects are checked after this commit."""
SUBJECT_LENGTH = 72

NAMES = {"one", "some", "other", "others", "found", "made", "given", "wanted", "asked", "say", "tell"}
"""Identifiers without a meaning: name the thing (losses, kernels, rows, config)."""
WORDS = (
    r"\banew\b",
    r"\bnobody\b",
    r"\brefus(e|es|ed)\b",
    r"\bwhat is none\b",
    r"\bis told\b",
    r"\b(a|an) (pixel|shape|image|network|layer|program|step|second|process) (at a time|apiece)\b",
    r"^What .* (is|are|can|has|have|does|do)\b.*\.$",
)
"""Wording that reads as if translated."""
ALLOWED_NAMES: dict[str, set[str]] = {}
"""Names that mean something in a file: path to identifiers."""
ALLOWED_WORDS: dict[str, set[str]] = {}
"""Sentences that need a word: path to the words."""


def python_files() -> list[Path]:
    """Files of the project, each once (andfast/kernels is a link)."""
    files = (
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "kernels" not in path.relative_to(ROOT).parts[1:2] or folder != "andfast"
    )
    return sorted(files)


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Variables, arguments and functions that a module defines, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno


def prose(path: Path) -> Iterator[tuple[str, int]]:
    """Docstring lines, comments and messages of a Python file, with their lines."""
    text = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# "), token.start[0]
        elif token.type == tokenize.STRING:
            for offset, line in enumerate(token.string.splitlines()):
                yield line.strip().strip("\"'"), token.start[0] + offset


def test_names() -> None:
    wrong = []
    for path in python_files():
        name = path.relative_to(ROOT).as_posix()
        allowed = ALLOWED_NAMES.get(name, set())
        wrong += [
            f"{name}:{line}: {identifier}"
            for identifier, line in bound_names(ast.parse(path.read_text(encoding="utf-8")))
            if identifier in NAMES - allowed
        ]
    assert not wrong, "\n".join(wrong)


def test_wording() -> None:
    wrong = []
    for path in python_files():
        name = path.relative_to(ROOT).as_posix()
        if path == Path(__file__):
            continue
        wrong += [
            f"{name}:{number}: {line.strip()}"
            for line, number in prose(path)
            for word in WORDS
            if re.search(word, line) and word not in ALLOWED_WORDS.get(name, set())
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["docs", "."])
def test_wording_of_pages(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in sorted((ROOT / folder).glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md"))
        if path.name != "CONTRIBUTING.md"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for word in WORDS
        if re.search(word, line)
    ]
    assert not wrong, "\n".join(wrong)


def test_commit_subjects() -> None:
    command = ["git", "-C", str(ROOT), "log", "--no-merges", "--format=%h %s", f"{FIRST_COMMIT}..HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a clone with the project's history")
    subjects = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    assert [subject for subject in subjects if len(subject) > SUBJECT_LENGTH] == []
    assert [subject for subject in subjects if not subject[:1].isupper() or subject.endswith(".")] == []
