"""Stopping a run by signals: the first SIGINT or SIGTERM requests a stop, the second forces it."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Final, Self

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """Context manager that turns SIGINT and SIGTERM into a flag, which the training loop reads between steps.

    The first signal sets :attr:`requested` and prints a line on stderr; a second one raises KeyboardInterrupt. The
    previous handlers are restored on exit. Forked children inherit the handler: there SIGINT is ignored, since the
    parent ends its workers itself, and SIGTERM terminates as usual.

    Raises:
        RuntimeError: entered outside the main thread, where Python cannot install handlers.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        """Name of the signal that requested the stop, "SIGINT" or "SIGTERM"."""
        self._previous: dict[signal.Signals, object] = {}
        self._process = 0

    @property
    def requested(self) -> bool:
        """Whether to stop after the current step."""
        return self.signal_name is not None

    def __bool__(self) -> bool:
        return self.requested

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("GracefulStop must be entered in the main thread")
        self._process = os.getpid()
        for number in SIGNALS:
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
        if self.requested:
            raise KeyboardInterrupt(f"{name} after {self.signal_name}")
        self.signal_name = name
        # os.write, because a handler may interrupt a print.
        os.write(2, f"\n{name}: finishing this step, then saving; send it again to stop at once.\n".encode())
