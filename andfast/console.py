"""Terminal output of the command lines: log messages that do not break progress bars."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


class _Handler(logging.Handler):
    """Write records to stderr, above progress bars; the stream is looked up per record."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


@contextmanager
def log_to_stderr(level: int = logging.INFO) -> Iterator[None]:
    """Print the messages of the ``andfast`` loggers on stderr inside the block."""
    logger = logging.getLogger("andfast")
    handler, previous = _Handler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(previous)
        logger.removeHandler(handler)
