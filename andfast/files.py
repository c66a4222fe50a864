"""Atomic file writes (temporary file in the same folder, fsync, rename), write checks and printable file names."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file for writing; it appears under ``path`` when the block exits without an error."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.unlink(missing_ok=True)  # left by a crash, or a link that would be followed
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the suffix of ``path``; it is renamed to ``path`` when the block exits.

    After an error the temporary file is deleted and ``path`` is unchanged.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def check_output_path(name: str, path: Path) -> None:
    """Raise if a file cannot be written, before the work whose result it is; ``name`` begins the message.

    Raises:
        FileNotFoundError: its folder does not exist.
        IsADirectoryError: the path is a folder.
        OSError: its folder is not writable.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{name} must be in an existing folder, was {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{name} must be a file, was the folder {path}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"{name} must be in a writable folder, was {path}: {error.strerror}") from error


def sync_file(path: Path) -> None:
    """Flush a file's contents to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def printable(name: str) -> str:
    """Escape a file name of any bytes to one printable line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
