"""Decode many files in parallel, in worker processes that may crash.

A worker runs ``images.py`` behind two pipes instead of being a ``multiprocessing`` process: it imports neither torch
nor the caller's main module (it starts fast, and scripts need no ``__main__`` guard), and when a decoder crashes, the
file that caused it is known. A worker exits when its parent is gone, however the parent ended.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import images
from .store import digest_of

PIPE_BYTES = 1 << 20
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
"""Signals by which a decoder dies of the file; others come from outside."""


class DecodedPixels(NamedTuple):
    """(H, W, 3) uint8 pixels and their digest."""

    pixels: NDArray[np.uint8]
    digest: str


Decoded = DecodedPixels | str
"""The pixels, or the reason why the file could not be decoded."""


class DecoderKilledError(RuntimeError):
    """A decoding process was killed twice on the same file, from outside."""


def default_workers() -> int:
    """Number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_files(paths: Sequence[str], *, min_size: int, workers: int | None) -> Generator[Decoded, None, None]:
    """Decode files in parallel; yield pixels, or the reason for a failure, in the order of ``paths``.

    Args:
        paths: Files to decode.
        min_size: Minimum height and width in pixels.
        workers: Number of processes; None for one per core, 0 to decode in this process.

    A file whose process dies is tried once more. If the process crashes again, the file is unusable.

    Raises:
        DecoderKilledError: The process was killed again, by the system for lack of memory for instance.
    """
    if workers == 0:
        for path in paths:
            yield _decode_here(path, min_size)
        return
    workers = min(workers or default_workers(), len(paths))
    if workers == 0:
        return
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        team = [_Worker() for _ in range(workers)]
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        # Callbacks run in reverse order: closing the workers unblocks the threads, which then stop. A thread may have
        # started a new process in the meantime, so the workers are closed a second time.
        for worker in team:
            stack.callback(worker.close)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        for worker in team:
            stack.callback(worker.close)
            idle.put(worker)

        def decode(path: str) -> Decoded:
            worker = idle.get()
            try:
                return worker.decode(path, min_size)
            finally:
                idle.put(worker)

        pending: deque[Future[Decoded]] = deque()
        for path in paths:
            pending.append(pool.submit(decode, path))
            if len(pending) > 2 * workers:  # bounds the number of decoded images in memory
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _decode_here(path: str, min_size: int) -> Decoded:
    try:
        pixels = images.decode(path, min_size=min_size)
    except images.UnusableImageError as error:
        return str(error)
    return DecodedPixels(pixels, digest_of(pixels))


class _Worker:
    """One decoding process, started on first use and restarted after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._closed = False

    def decode(self, path: str, min_size: int) -> Decoded:
        for _ in range(2):
            result, status = self._decode(path, min_size)
            if status is None or self._closed:
                return result
        assert status is not None
        if status >= 0 or signal.Signals(-status) in _CRASHES:
            return result
        raise DecoderKilledError(
            f"{path}: {result} twice, often for lack of memory: pack with fewer workers (andfast prepare --workers) "
            "or exclude the file; finished images are kept"
        )

    def _decode(self, path: str, min_size: int) -> tuple[Decoded, int | None]:
        """The result, and the exit status of the process if it ended."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([path, min_size]).encode() + b"\n")
            process.stdin.flush()
            kind, height, width = images.HEADER.unpack(self._read(process, images.HEADER.size).tobytes())
            if kind == images.REASON:
                return self._read(process, height).tobytes().decode(), None
            pixels = self._read(process, height * width * 3).reshape(height, width, 3)
            return DecodedPixels(pixels, digest_of(pixels)), None
        except (EOFError, BrokenPipeError):
            reason = f"the decoder {self._wait()}"
            return reason, process.returncode or 0

    def _start(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise EOFError("the pool is closed")
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", images.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
            pipesize=PIPE_BYTES,
        )
        try:
            self._read(process, images.HEADER.size)
        except EOFError:
            raise RuntimeError(f"the image decoder {sys.executable} {images.__file__} {self._wait()}") from None
        return process

    @staticmethod
    def _read(process: subprocess.Popen[bytes], count: int) -> NDArray[np.uint8]:
        buffer = np.empty(count, np.uint8)
        assert process.stdout is not None
        if process.stdout.readinto(buffer.data) != count:  # type: ignore[attr-defined] # a BufferedReader
            raise EOFError
        return buffer

    def _wait(self) -> str:
        """Reap the process; describe how it ended, with the last line of its stderr."""
        process, self._process = self._process, None
        if process is None:
            return "was closed"
        self._reap(process)
        code = process.returncode
        status = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if self._closed:
            return status
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        self._stderr.seek(0)
        self._stderr.truncate()
        return f"{status}: {last}" if last else status

    @staticmethod
    def _reap(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()

    def close(self) -> None:
        self._closed = True
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it may be decoding a file that is no longer needed
            self._reap(process)
        self._stderr.close()
