"""Stopping a run from outside: the first SIGINT or SIGTERM asks for it, a second one does it at once."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Final, Self

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """Turn SIGINT and SIGTERM into a flag that a training loop reads between two steps.

    The first signal sets :attr:`requested` and says so on stderr; a second one raises KeyboardInterrupt. The
    earlier handlers are back after the block. Forked children inherit the handler: there SIGINT does nothing,
    since the loop that owns them ends them in its own time, and SIGTERM ends them as ever.

    Raises:
        RuntimeError: entered outside of the main thread, where Python takes no handlers.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        """Name of the signal that asked for the stop, "SIGINT" or "SIGTERM"."""
        self._earlier: dict[signal.Signals, object] = {}
        self._process = 0

    @property
    def requested(self) -> bool:
        """Whether to stop after the step at hand."""
        return self.signal_name is not None

    def __bool__(self) -> bool:
        return self.requested

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("GracefulStop must be entered in the main thread")
        self._process = os.getpid()
        for number in SIGNALS:
            self._earlier[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            # None: the handler was set by C code, and Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        self._earlier.clear()

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
        # os.write: a handler may run in the middle of a print.
        os.write(2, f"\n{name}: finishing this step, then saving; send it again to stop at once.\n".encode())
