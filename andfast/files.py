"""Atomic file writes (temporary file in the same folder, fsync, rename), write checks and printable file names."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_MAX_NAME = 255  # bytes, on all common file systems
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a write for which there is no space."""


def temporary_path(path: Path) -> Path:
    """A hidden path in the folder of ``path``, with its suffix and a name that is short enough for the file system."""
    name = f".tmp-{path.name}"
    if len(os.fsencode(name)) > _MAX_NAME:
        name = f".tmp-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{path.suffix[:16]}"
    return path.with_name(name)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file for writing; it appears under ``path`` when the block exits without an error.

    After an error nothing is left of it. The error of a full disk gets the name of the file.
    """
    temporary = temporary_path(path)
    try:
        temporary.unlink(missing_ok=True)  # left by a crash, or a link that would be followed
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name_file(error, temporary, path)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the suffix of ``path``; it is renamed to ``path`` when the block exits.

    After an error the temporary file is deleted and ``path`` is unchanged. The error of a full disk gets its name.
    """
    temporary = temporary_path(path)
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name_file(error, temporary, path)
        raise
    sync_folder(path.parent)


def _name_file(error: BaseException, temporary: Path, path: Path) -> None:
    """Name the file in the error of a write, which has no name or that of the temporary file."""
    if isinstance(error, OSError) and error.errno in FULL and error.filename in (None, str(temporary)):
        error.filename = str(path)


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


def check_writable(path: Path) -> None:
    """Check that a file can be created at ``path``, before the work that ends in writing it. Creates nothing.

    Missing parent folders count as writable if they can be created.

    Raises:
        OSError: ``path`` is a folder, or its folder is a file or not writable; the message names the folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} must be a file to write, is a folder")
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} must be a folder to write {path} to, is a file")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, f"{folder} must be writable, was not: {error.strerror}") from error


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
