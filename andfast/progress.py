"""The progress bar of long-running work."""

import sys
from typing import Self, TextIO

from tqdm import tqdm

_LOG_INTERVAL = 10.0
"""Minimum seconds between two updates where the output is not a terminal: there each update is a line."""


class _LineStream:
    """Write each of tqdm's updates, which start with a carriage return, as a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


class Progress:
    """A progress bar on stderr.

    Args:
        description: text in front of the bar.
        total: number of units.
        unit: name of a unit.
        done: units done before, of a resumed run.
        enabled: False shows nothing.
        leave: keep the finished bar on the screen; False also hides it from a log unless it takes long.
        file: output stream; stderr by default.
    """

    def __init__(
        self,
        description: str,
        total: int,
        *,
        unit: str,
        done: int = 0,
        enabled: bool = True,
        leave: bool = True,
        file: TextIO | None = None,
    ) -> None:
        stream = sys.stderr if file is None else file
        terminal = stream.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=description,
            unit=unit,
            disable=not enabled,
            file=stream if terminal else _LineStream(stream),
            leave=leave,
            delay=0 if terminal or leave else _LOG_INTERVAL,
            dynamic_ncols=True,
            mininterval=0.2 if terminal else _LOG_INTERVAL,
        )

    def show(self, text: str) -> None:
        """Set the text behind the bar; it appears with the next update."""
        self._bar.set_postfix_str(text, refresh=False)

    def advance(self, units: int = 1) -> None:
        """Count finished units."""
        self._bar.update(units)

    def close(self) -> None:
        """Stop updating; the bar stays on the screen."""
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
