"""Writes that fail for lack of space, at each point of an atomic write."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

WHEN: Final = ("open", "write", "fsync", "rename")


@contextmanager
def full_disk(when: str) -> Iterator[None]:
    """Fail in this process when a hidden file ".tmp-..." is opened, written (beyond 64 bytes), synced or renamed.

    Opening, syncing and renaming raise ENOSPC. Writes fail by themselves, in whichever library they are, by a limit of
    the size of files (EFBIG).
    """
    if when == "write":
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opens = Path.open

    def fail_to_open(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name.startswith(".tmp-"):
            fail()
        return opens(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        if when == "open":
            patch.setattr(Path, "open", fail_to_open)
        else:
            patch.setattr(os, {"fsync": "fsync", "rename": "replace"}[when], fail)
        yield
