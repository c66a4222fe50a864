"""Faults at file-system events: kill the process, or fail for lack of space, right before the n-th one below a folder.

Events are Python's audit events of opening for writing, renaming, removing and making folders, and calls of os.fsync.
A process killed at the fsync of a file leaves half of what was written since the last one, or since it was opened, as
if the machine died while writing.
"""

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

_CHANGES: Final = {"os.rename": 2, "os.remove": 1, "os.mkdir": 2, "os.rmdir": 1}
"""Audit events whose first argument is a path; at this position is the descriptor of the folder it is relative to."""
LIMIT: Final = 16384


class Injection:
    """Count events below ``folder`` and act at number ``at``; install it once per process.

    Args:
        folder: events outside of it are not counted.
        at: number of the event, from 0; None only records.
        fault: "kill"; "full" (ENOSPC); or "limit", from which on files cannot grow beyond :data:`LIMIT` bytes (EFBIG),
            whatever writes to them: Python, PyTorch or safetensors.

    Attributes:
        events: the events so far, as "fsync checkpoints/net-00000001/state.pt".
    """

    def __init__(self, folder: Path, at: int | None, fault: str) -> None:
        self.folder, self.at, self.fault = os.path.abspath(folder), at, fault
        self.events: list[str] = []
        self._busy = False
        self._durable: dict[str, int] = {}  # bytes that are on disk already, by path
        self._fsync: Callable[[int], None] = os.fsync

    def install(self) -> None:
        """Hook into this process, for good."""
        os.fsync = self._observed_fsync
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._busy:
            return
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, str | os.PathLike | bytes):
                self._happens("open", os.fsdecode(path))
                kept = not flags & os.O_TRUNC and os.path.exists(path)
                self._durable[os.path.abspath(os.fsdecode(path))] = os.path.getsize(path) if kept else 0
        elif event in _CHANGES and isinstance(arguments[0], str | os.PathLike | bytes):
            path, descriptor = os.fsdecode(arguments[0]), arguments[_CHANGES[event]]
            if isinstance(descriptor, int) and descriptor >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)
            self._happens(event.removeprefix("os."), path)

    def _observed_fsync(self, descriptor: int) -> None:
        self._busy = True
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self._busy = False
        self._happens("fsync", path, cut=not os.path.isdir(path))
        self._fsync(descriptor)
        self._durable[path] = os.fstat(descriptor).st_size

    def _happens(self, kind: str, path: str, *, cut: bool = False) -> None:
        if not f"{os.path.abspath(path)}{os.sep}".startswith(self.folder + os.sep):
            return
        number = len(self.events)
        self.events.append(f"{kind} {os.path.relpath(path, self.folder)}")
        if number != self.at:
            return
        if self.fault == "full":
            # Deleting works on a full disk.
            if kind not in ("remove", "rmdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            return
        if self.fault == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
            return
        if cut:
            self._busy = True
            size = os.path.getsize(path)
            durable = min(self._durable.get(path, 0), size)
            os.truncate(path, durable + (size - durable) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
