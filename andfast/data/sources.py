"""Find the picture files of sources: folders (searched through), single files, "package:NAME/sub/folder"."""

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from .images import SUFFIXES

PACKAGE = "package:"


@dataclass(frozen=True)
class SourceFile:
    """A file to pack.

    Attributes:
        name: its path relative to its source, with forward slashes; where two sources hold the same one, its
            real path. Unique in a list of files.
        path: its real path, absolute.
    """

    name: str
    path: str


def resolve_source(source: str | Path) -> Path:
    """The folder or file that a source names.

    ``package:NAME/sub/folder`` is a folder (or file) inside the installed top-level package NAME, found
    without importing it.

    Raises:
        ValueError: the text after ``package:`` is not a top-level package and a path inside it.
        FileNotFoundError: there is no such package, folder or file.
    """
    text = str(source)
    if not text.startswith(PACKAGE):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(f"source {text!r} must be a folder or a file, there is none")
        return path
    name, _, inside = text.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier():
        raise ValueError(f"source {text!r} must be package:NAME/folder with a top-level package's NAME, was {name!r}")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise FileNotFoundError(f"source {text!r} names the package {name!r}, which is not installed")
    for root in spec.submodule_search_locations:
        path = Path(root) / inside
        if path.exists():
            return path
    raise FileNotFoundError(f"source {text!r}: the package {name!r} has no folder or file {inside!r}")


def find_images(
    sources: Sequence[str | Path], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[SourceFile]:
    """List the picture files of the sources: in their order, within a folder by name.

    A folder is searched through, linked folders included, for the suffixes of ``images.SUFFIXES`` in either
    case; what begins with a dot is left out. A file that is named itself counts whatever its suffix. A file
    that is reached twice counts once.

    Args:
        sources: what ``resolve_source`` takes.
        include: keep only files of which the name, or the path relative to the source, matches one of these
            glob patterns (case counts, ``*`` also matches slashes); empty keeps all.
        exclude: then leave out those that match one of these.
    """
    found: dict[str, str] = {}  # real path: path relative to the source
    for source in sources:
        root = resolve_source(source)
        for relative in [root.name] if root.is_file() else sorted(_walk(root)):
            file = root if root.is_file() else root / relative
            if include and not _matches(relative, include):
                continue
            if not _matches(relative, exclude):
                found.setdefault(os.path.realpath(file), relative)
    count = Counter(found.values())
    return [SourceFile(name if count[name] == 1 else path, path) for path, name in found.items()]


def _walk(root: Path) -> Iterator[str]:
    """Paths of pictures below a folder, relative to it, in POSIX form."""
    seen = {os.path.realpath(root)}  # a link may lead in a circle
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_raise):
        fresh = []
        for name in sorted(subfolders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                fresh.append(name)
        subfolders[:] = fresh
        below = Path(folder).relative_to(root)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield (below / name).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _matches(relative: str, patterns: Sequence[str]) -> bool:
    name = PurePosixPath(relative).name
    return any(fnmatchcase(name, pattern) or fnmatchcase(relative, pattern) for pattern in patterns)
