"""The phases of a training step: profiler spans, and their times without a host synchronization.

The phases are, in order: identity (networks are drawn), ascent, degradation, generator, discriminator, optimizer, ema.
``torch.profiler`` and Nsight (with ``torch.autograd.profiler.emit_nvtx``) show them as ``andfast::<phase>``. Inside a
replayed CUDA graph there are no spans; the events that were captured with it give each phase its time in the last
replay, which stands for those before it.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch.profiler import record_function


def span(name: str) -> AbstractContextManager[None]:
    """A profiler span ``andfast::name``."""
    return record_function(f"andfast::{name}")


class Spans(Protocol):
    """Provides context managers for the phases of a step."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """A context manager around the phase ``name``."""
        ...


class StepTimer:
    """Sums the time of named phases: CUDA events on a GPU, the host's clock elsewhere.

    Timing does not wait for the device; reading the totals does.

    Attributes:
        runs_per_step: replays per step of the CUDA graph that is being captured.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._captured: list[tuple[str, int, torch.cuda.Event, torch.cuda.Event]] = []
        self.runs_per_step = 1

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A profiler span whose time is added to the phase ``name``."""
        with span(name):
            if self._cuda:
                capturing = torch.cuda.is_current_stream_capturing()
                start, end = (torch.cuda.Event(enable_timing=True, external=capturing) for _ in range(2))
                start.record()
                yield
                end.record()
                if capturing:
                    self._captured.append((name, self.runs_per_step, start, end))
                else:
                    self._events.append((name, start, end))
            else:
                start_time = time.perf_counter()
                yield
                self._add(name, time.perf_counter() - start_time)

    def drop_captured(self) -> None:
        """Forget the events of CUDA graphs that are no longer replayed."""
        self._captured.clear()

    def take(self, steps: int) -> dict[str, float]:
        """Seconds per phase since the last call, in which ``steps`` steps were taken."""
        if self._events or self._captured:
            torch.cuda.synchronize()
        for name, runs_per_step, start, end in self._captured:
            self._add(name, start.elapsed_time(end) / 1000 * runs_per_step * steps)
        for name, start, end in self._events:
            self._add(name, start.elapsed_time(end) / 1000)
        self._events.clear()
        taken, self._seconds = self._seconds, {}
        return taken

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
