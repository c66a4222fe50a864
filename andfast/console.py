"""Terminal output of the command lines: log messages that do not break progress bars."""

import logging
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
