"""Ranks of a process group (gloo) as forked processes under a launcher, as torchrun has them."""

import os
import select
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path


class Ranks:
    """Two ranks that run a function, and the launcher that waits for them.

    Args:
        folder: rank R's standard output and error go to FOLDER/R.txt.
        body: the function; it finds torchrun's environment variables. Its return is exit code 0.

    Attributes:
        launcher: process id.
    """

    def __init__(self, folder: Path, body: Callable[[], object]) -> None:
        self._folder, self._body = folder, body
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._alive, writing = os.pipe()
        self._statuses, self._report = os.pipe()
        self.launcher = _fork()
        if self.launcher == 0:
            ranks = [self._start(rank) for rank in range(2)]
            os.close(writing)
            for process in ranks:
                status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                os.write(self._report, bytes([status % 256]))
            os._exit(0)
        os.close(writing)
        os.close(self._report)

    def _start(self, rank: int) -> int:
        if process := _fork():
            return process
        status = 1
        try:
            log = os.open(self._folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port)}
            self._body()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def text(self, rank: int) -> str:
        """Output of a rank so far."""
        return (self._folder / f"{rank}.txt").read_text()

    def wait_for(self, path: Path, seconds: float = 120.0) -> None:
        """Wait for a file that a rank writes."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end, f"{path} was not written: {self.text(0)}"
            time.sleep(0.01)

    def wait(self, seconds: float = 120.0) -> bool:
        """Wait until no rank is left; False if there is one after this time."""
        # Each rank holds the pipe open while it lives, whoever its parent is.
        ended = bool(select.select([self._alive], [], [], seconds)[0])
        os.waitpid(self.launcher, 0)
        return ended

    def statuses(self) -> list[int]:
        """Exit codes of the ranks; empty if the launcher was killed."""
        return list(os.read(self._statuses, 2))


def _fork() -> int:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        return os.fork()
