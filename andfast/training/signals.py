"""Stop a run on signals: SIGINT, SIGTERM, SIGHUP and SIGUSR1 request a stop; only a second SIGINT forces it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Final, Self

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
FORCE_AFTER: Final = 1.0
"""Seconds after the first SIGINT before another one forces the stop: launchers may deliver a signal several times."""


class StopRequested(Exception):
    """A signal requested a stop in a phase that can be abandoned; see :meth:`GracefulStop.interrupting`."""


class GracefulStop:
    """Context manager that turns signals into a flag, which the training loop reads between steps.

    The first signal sets :attr:`requested` and prints a line on stderr. Slurm and torchrun deliver SIGTERM more than
    once, so further signals change nothing, except for SIGINT: a second one, at least :data:`FORCE_AFTER` seconds after
    the first, raises KeyboardInterrupt. Signals that were ignored on entry (nohup) stay ignored. The previous handlers
    are restored on exit. Forked children inherit the handler: there SIGTERM terminates as usual and the others are
    ignored, since the parent ends its workers itself.

    Raises:
        RuntimeError: entered outside the main thread, where Python cannot install handlers.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        """Name of the signal that requested the stop, such as "SIGTERM"."""
        self._previous: dict[signal.Signals, object] = {}
        self._process = 0
        self._interrupted: float | None = None
        self._raises = False

    @property
    def requested(self) -> bool:
        """Whether to stop after the current step."""
        return self.signal_name is not None

    def __bool__(self) -> bool:
        return self.requested

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise StopRequested inside the block as soon as a stop is requested, or on entry if one was already.

        For packing and validation, which a resumed run repeats.
        """
        if self.requested:
            raise StopRequested(self.signal_name)
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("GracefulStop must be entered in the main thread")
        self._process = os.getpid()
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: installed by C code, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if os.getpid() != self._process:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is not None and now - self._interrupted >= FORCE_AFTER:
                raise KeyboardInterrupt("second SIGINT")
            self._interrupted = now if self._interrupted is None else self._interrupted
        if self.requested:
            return
        self.signal_name = name
        # os.write, because a handler may interrupt a print.
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        os.write(2, f"\n{name}: finishing this step, then saving{again}.\n".encode())
        if self._raises:
            self._raises = False
            raise StopRequested(name)
