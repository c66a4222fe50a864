"""Time a row of a suite and record what its time means.

On a GPU, time is measured on the device, between two CUDA events around several calls. The host enqueues them while a
spinning kernel occupies the device, so launches cost nothing as long as the host is ahead, which is checked: the first
event must not have passed when the last call is enqueued. This matches a training step, whose launches are queued or
replayed from a graph. Inputs rotate through sets that together exceed twice the L2 cache. On a CPU, the host's clock is
read around a round of calls. Either way pytest-benchmark receives seconds per call through :func:`clock`.
"""

import gc
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.counts import Work
from benchmarks.machine import device
from benchmarks.rates import Rates, measured

MAX_SPIN = 1 << 28
"""Maximum cycles of the spinning kernel, about 0.15 s."""
MAX_SETS = 32

S = TypeVar("S")

_device_seconds: float | None = None


def clock() -> float:
    """pytest-benchmark's timer: the host's, or the sum of the measured device times while a GPU row runs."""
    return time.perf_counter() if _device_seconds is None else _device_seconds


@cache
def rates() -> Rates:
    """Rates of this machine, measured once per process or read from the file named by ``ANDFAST_BENCH_RATES``."""
    file = Path(os.environ.get("ANDFAST_BENCH_RATES", ""))
    if file.is_file():
        return Rates(**json.loads(file.read_text()))
    return measured(device(), quick=quick())


def quick() -> bool:
    """Whether to use sizes and rounds for trying the programs; such numbers mean nothing."""
    return os.environ.get("ANDFAST_BENCH_QUICK") == "1"


def cache_bytes() -> int:
    """Size of the last cache before memory."""
    if device() == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    try:
        size = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError):
        size = 0
    return size if size > 0 else 32 << 20


def sets_of(size: int) -> int:
    """Number of input sets of ``size`` bytes that exceed twice the cache, at most MAX_SETS."""
    return 1 if quick() else min(MAX_SETS, 2 * cache_bytes() // max(size, 1) + 1)


def bytes_of(nested: Any) -> int:
    """Bytes of the tensors in nested lists and tuples."""
    if isinstance(nested, (list, tuple)):
        return sum(map(bytes_of, nested))
    return nested.nbytes if isinstance(nested, torch.Tensor) else 0


def sets_like(first: S, make: Callable[[], S]) -> list[S]:
    """A set of inputs followed by further ones, :func:`sets_of` in all."""
    return [first, *(make() for _ in range(sets_of(bytes_of(first)) - 1))]


def results_of(
    call: Callable[..., torch.Tensor], arguments: Sequence[Any], leaves: Sequence[torch.Tensor], grad: torch.Tensor
) -> list[torch.Tensor]:
    """Output of a call, and the gradients with respect to ``leaves``, which may be empty."""
    out = call(*arguments)
    return [out.detach(), *(torch.autograd.grad(out, leaves, grad.to(out.dtype)) if leaves else ())]


def relative_error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """Norm of the difference over the norm of ``exact``, in float64."""
    return ((result.double() - exact).norm() / exact.norm()).item()


def largest_error(results: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """Largest :func:`relative_error` of several tensors."""
    return max(relative_error(result, reference) for result, reference in zip(results, exact, strict=True))


class DeviceQueue:
    """Times calls on a GPU by events, with the host ahead of the device."""

    def __init__(self, call: Callable[..., object], inputs: Sequence[Sequence[Any]]) -> None:
        self.call, self.sets = call, itertools.cycle(inputs)
        self.spin, self.ahead = 1 << 20, False

    def once(self) -> None:
        self.call(*next(self.sets))

    def seconds(self, calls: int) -> float:
        """Device seconds per call, averaged over ``calls``."""
        while True:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(self.spin)
            start.record()
            for _ in range(calls):
                self.once()
            end.record()
            self.ahead = not start.query()
            end.synchronize()
            if self.ahead or self.spin >= MAX_SPIN:
                return start.elapsed_time(end) / 1e3 / calls
            self.spin *= 4

    def calibrate(self, target: float) -> int:
        """Warm up, and return the number of calls that take about ``target`` seconds."""
        for _ in range(2):
            self.once()
        torch.cuda.synchronize()
        return max(1, min(64, math.ceil(target / max(self.seconds(1), 1e-7))))


def time_row(benchmark: Any, call: Callable[..., object], inputs: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Time ``call`` over rotating ``inputs`` with pytest-benchmark; return how it was timed, and peak memory."""
    if device() == "cuda":
        return _time_on_device(benchmark, call, inputs)
    sets = itertools.cycle(inputs)
    call(*next(sets))
    begun = time.perf_counter()
    call(*next(sets))
    once = time.perf_counter() - begun
    iterations = 1 if quick() else max(1, min(1000, round(0.01 / max(once, 1e-7))))
    benchmark.pedantic(lambda: call(*next(sets)), rounds=3 if quick() else 7, iterations=iterations, warmup_rounds=1)
    return {"timing": f"host clock, {iterations} calls per round", "peak_memory_bytes": None}


def _time_on_device(benchmark: Any, call: Callable[..., object], inputs: Sequence[Sequence[Any]]) -> dict[str, Any]:
    global _device_seconds  # noqa: PLW0603
    queue = DeviceQueue(call, inputs)
    queue.once()  # compiles, and fills the allocator's pool
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    queue.once()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    calls = queue.calibrate(0.002 if quick() else 0.01)
    each = queue.seconds(calls) * calls

    def one_round() -> None:
        global _device_seconds  # noqa: PLW0603
        _device_seconds = (_device_seconds or 0.0) + queue.seconds(calls)

    _device_seconds = 0.0
    try:
        benchmark.pedantic(one_round, rounds=max(3, min(15, round(0.3 / max(each, 1e-6)))))
    finally:
        _device_seconds = None
    host = "" if queue.ahead else ", the host was not ahead, so the time includes launches"
    return {"timing": f"CUDA events, {calls} calls per round{host}", "peak_memory_bytes": peak}


Prepared = tuple[Sequence[Any], Sequence[torch.Tensor], torch.Tensor | None]
"""Arguments of a call, the leaves to differentiate with respect to, and the incoming gradient."""


def time_passes(benchmark: Any, call: Callable[..., torch.Tensor], prepared: Sequence[Prepared]) -> dict[str, Any]:
    """:func:`time_row` of forward and backward; of forward alone, under no_grad, where there are no leaves."""
    if not prepared[0][1]:
        with torch.no_grad():
            return time_row(benchmark, call, [arguments for arguments, _, _ in prepared])
    return time_row(
        benchmark, lambda arguments, leaves, grad: torch.autograd.grad(call(*arguments), leaves, grad), prepared
    )


def describe_row(
    benchmark: Any,
    works: Sequence[Work],
    *,
    precision: str,
    timing: dict[str, Any],
    **facts: Any,
) -> None:
    """Write the row's facts, and the rates that follow from its median and its counts, to ``extra_info``.

    Args:
        works: passes that the row runs; their floors add up.
        precision: of :data:`benchmarks.rates.PRECISIONS`.
        timing: return value of :func:`time_row`.
        facts: identification of the row: op, implementation, direction, shape, dtype, error and so on.
    """
    seconds = benchmark.stats["median"] if benchmark.stats is not None else None
    floor = rates().seconds(*works, precision=precision)
    moved, flops = sum(work.bytes for work in works), sum(work.flops for work in works)
    benchmark.extra_info.update(
        **facts,
        **timing,
        precision=precision,
        device=rates().name,
        bytes=moved,
        gflop=flops / 1e9,
        intensity=flops / moved,
        matrix=all(work.matrix for work in works),
        roofline_seconds=floor,
        bound=rates().bound(*works, precision=precision),
        rates=rates().as_dict(),
    )
    if seconds:
        benchmark.extra_info.update(
            gb_per_s=moved / seconds / 1e9,
            tflop_per_s=flops / seconds / 1e12,
            fraction_of_roofline=floor / seconds,
        )
