"""Work in threads, results in order: compression takes longer than restoring on a GPU, and zlib lets threads run."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

_THREADS = min(os.cpu_count() or 1, 16)
_POOL = ThreadPoolExecutor(_THREADS, thread_name_prefix="compress")


class InOrder(Generic[T]):
    """Runs functions in threads; what they return is taken, in this thread, in the order in which they were given.

    Args:
        take: called with each result.
    """

    def __init__(self, take: Callable[[T], object]) -> None:
        self._take = take
        self._pending: deque[Future[T]] = deque()

    def run(self, function: Callable[..., T], *arguments: object) -> None:
        """Have a function called; waits while twice as many as there are threads are not done."""
        self._pending.append(_POOL.submit(function, *arguments))
        while len(self._pending) > 2 * _THREADS:
            self._take(self._pending.popleft().result())

    def finish(self) -> None:
        """Wait for all that is not done."""
        while self._pending:
            self._take(self._pending.popleft().result())
