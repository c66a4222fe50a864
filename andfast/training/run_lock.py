"""The lock of a run folder: one process writes to it at a time."""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

LOCK: Final = "run.lock"
_UNSUPPORTED: Final = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class RunLockedError(RuntimeError):
    """Another process is writing to the run folder."""


@contextmanager
def locked_run(output: Path) -> Iterator[None]:
    """Hold OUTPUT/run.lock (flock), which names this process and its host; the kernel releases it with the process.

    Forked workers do not hold it. The file stays with the run.

    Raises:
        RunLockedError: another process holds it; the message names the process and its host.
        NotADirectoryError: ``output`` is a file.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output must be a folder, {str(output)!r} is a file")
    output.mkdir(parents=True, exist_ok=True)
    path = output / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    held = _Held(descriptor)
    owned = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink == 0:
                raise BlockingIOError  # its holder has just deleted it with its empty folder
        except BlockingIOError:
            raise RunLockedError(f"output {str(output)!r} is in use by {_holder(path)}: wait until it ends") from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            logger.warning(
                "%s: the file system does not support flock (%s): a second process could write to the run",
                path, error.strerror,
            )  # fmt: skip
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
        owned = True
        yield
    finally:
        if owned and [file.name for file in output.glob("*")] == [LOCK]:  # a run that did not start leaves no folder
            path.unlink()
            output.rmdir()
        held.close()


class _Held:
    """A descriptor that forked children close, which would otherwise hold the lock after the process has ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        os.register_at_fork(after_in_child=self.close)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['process']} on host {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
