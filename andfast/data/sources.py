"""Find the image files of sources: folders (searched recursively), single files, ``package:NAME/sub/folder``."""

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from .images import SUFFIXES

PACKAGE = "package:"


@dataclass(frozen=True)
class SourceFile:
    """An image file of a source.

    Attributes:
        name: Path relative to the source, with forward slashes; the real path where two sources have the same relative
            path. Unique within a list.
        path: Absolute path; the real path in a list of unique files.
    """

    name: str
    path: str


def resolve_source(source: str | Path) -> Path:
    """Return the folder or file of a source; ``~`` is the home folder.

    ``package:NAME/sub/folder`` is a folder (or file) inside the installed top-level package NAME, without importing it.

    Raises:
        ValueError: The text after ``package:`` is not a top-level package and a path inside it.
        FileNotFoundError: The package, folder or file does not exist.
    """
    text = str(source)
    if not text.startswith(PACKAGE):
        path = Path(source).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"source {text!r} must be an existing folder or file")
        return path
    name, _, inside = text.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier():
        raise ValueError(f"source {text!r} must be package:NAME/folder with a top-level package NAME, was {name!r}")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise FileNotFoundError(f"source {text!r} names the package {name!r}, which is not installed")
    for root in spec.submodule_search_locations:
        path = Path(root) / inside
        if path.exists():
            return path
    raise FileNotFoundError(f"source {text!r}: the package {name!r} has no folder or file {inside!r}")


def find_images(
    sources: Sequence[str | Path],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    unique: bool = True,
) -> list[SourceFile]:
    """List the image files of the sources, in the order of the sources, sorted by name within a folder.

    Folders are searched recursively, linked folders included, for the suffixes in ``images.SUFFIXES``
    (case-insensitive); names that start with a dot are skipped. A source that is a file is listed whatever its suffix.
    With ``unique`` a file reached twice, for instance through a link, is listed once, as training requires; otherwise
    each name is listed.

    Args:
        sources: See :func:`resolve_source`.
        include: Keep only files whose name or path relative to the source matches one of these glob patterns
            (case-sensitive, ``*`` also matches slashes); empty keeps all.
        exclude: Then drop files that match one of these patterns.
        unique: List each real file once.
    """
    files: list[tuple[str, str, str]] = []  # relative, absolute and real path
    seen: set[str] = set()
    for source in sources:
        root = resolve_source(source)
        for relative in [root.name] if root.is_file() else sorted(walk_files(root, SUFFIXES, unique=unique)):
            file = root if root.is_file() else root / relative
            if include and not matches(relative, include):
                continue
            real = os.path.realpath(file)
            if not matches(relative, exclude) and not (unique and real in seen):
                seen.add(real)
                files.append((relative, real if unique else os.path.abspath(file), real))
    count = Counter(relative for relative, _, _ in files)
    return [SourceFile(name if count[name] == 1 else path, real) for name, path, real in files]


def walk_files(root: Path, suffixes: AbstractSet[str], *, unique: bool = True) -> Iterator[str]:
    """Yield files below a folder by suffix (case-insensitive), relative to it, in POSIX form; hidden names are skipped.

    Linked folders are followed: each folder once if ``unique`` is True, else everywhere but into a cycle.
    """
    visited = {str(root): {os.path.realpath(root)}}  # links may form a cycle: folders visited on the way to each
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_raise):
        seen = visited.pop(folder)
        unvisited = []
        for name in sorted(subfolders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if not name.startswith(".") and real not in seen:
                if unique:
                    seen.add(real)
                    visited[path] = seen
                else:
                    visited[path] = seen | {real}
                unvisited.append(name)
        subfolders[:] = unvisited
        below = Path(folder).relative_to(root)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield (below / name).as_posix()


def _raise(error: OSError) -> None:
    raise error


def matches(relative: str, patterns: Sequence[str]) -> bool:
    """Whether a relative path or its file name matches one of the glob patterns."""
    name = PurePosixPath(relative).name
    return any(fnmatchcase(name, pattern) or fnmatchcase(relative, pattern) for pattern in patterns)
