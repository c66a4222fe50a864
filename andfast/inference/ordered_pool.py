"""Run work in threads and consume the results in order: compression can take longer than restoring on a GPU.

zlib releases the GIL, so threads suffice.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

_THREADS = min(os.cpu_count() or 1, 16)
_POOL = ThreadPoolExecutor(_THREADS, thread_name_prefix="compress")


class OrderedPool(Generic[T]):
    """Run functions in threads and pass their results to a consumer in submission order.

    Args:
        consume: Called with each result, in the submitting thread.
    """

    def __init__(self, consume: Callable[[T], object]) -> None:
        self._consume = consume
        self._pending: deque[Future[T]] = deque()

    def submit(self, function: Callable[..., T], *arguments: object) -> None:
        """Submit a call; blocks while more than two calls per thread are pending."""
        self._pending.append(_POOL.submit(function, *arguments))
        while len(self._pending) > 2 * _THREADS:
            self._consume(self._pending.popleft().result())

    def finish(self) -> None:
        """Wait for all pending calls."""
        while self._pending:
            self._consume(self._pending.popleft().result())
