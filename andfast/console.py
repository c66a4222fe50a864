"""Used by the command lines: log messages that do not break progress bars, results, waiting threads."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

from tqdm import tqdm

from andfast.config.errors import one_line


class _Handler(logging.Handler):
    """Write records above progress bars; the stream is looked up per record."""

    def __init__(self, stream: Literal["stdout", "stderr"]) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream = getattr(sys, self._stream)
        try:
            tqdm.write(self.format(record), file=stream)
            stream.flush()
        except Exception:
            self.handleError(record)


@contextmanager
def log_to(stream: Literal["stdout", "stderr"], level: int = logging.INFO) -> Iterator[None]:
    """Print the messages of the ``andfast`` loggers on a standard stream inside the block."""
    logger = logging.getLogger("andfast")
    handler, previous = _Handler(stream), logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(previous)
        logger.removeHandler(handler)


def log_to_stderr(level: int = logging.INFO) -> AbstractContextManager[None]:
    """As :func:`log_to`, for commands whose standard output is their result."""
    return log_to("stderr", level)


def limit_spinning() -> None:
    """Let OpenMP's threads sleep soon while they wait for each other, unless the environment says how they wait.

    By default libgomp's spin 300,000 times, so where another process uses a core, training small networks on a CPU is
    20 times slower and more. With 2,000 it is at most a tenth slower where none does. Read once, when torch is
    imported: call this before.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "2000"


def print_result(command: Callable[[], str]) -> int:
    """Run a command that writes its files last, and print its text; return its exit code.

    Returns:
        0; 1 with the error as one line on standard error; 130 if interrupted.
    """
    try:
        print(command())
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0
