"""Copy bandwidth and matrix rates of a device, measured on it or nominal from a data sheet."""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch

from benchmarks.counts import Work

PRECISIONS: Final = ("bf16", "fp16", "tf32", "fp32")
_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}


@dataclass(frozen=True)
class Rates:
    """Rates of a device.

    Attributes:
        name: of the device.
        source: "measured", or the data sheet.
        bandwidth: bytes per second, read plus written, of a copy.
        matrix: operations per second of a large matrix product, by precision of :data:`PRECISIONS`; fp32 is the faster
            of the FMA units and three tf32 products, which are as exact.
    """

    name: str
    source: str
    bandwidth: float
    matrix: dict[str, float] = field(default_factory=dict)

    def seconds(self, *works: Work, precision: str = "bf16") -> float:
        """Floor of passes that run one after the other: for each, the longer of its bytes and its operations."""
        rate = self.matrix[precision]
        return sum(max(work.bytes / self.bandwidth, work.flops / rate if work.matrix else 0.0) for work in works)

    def bound(self, *works: Work, precision: str = "bf16") -> str:
        """The larger part of :meth:`seconds`: "memory" or "matrix"."""
        memory = sum(work.bytes / self.bandwidth for work in works)
        matrix = sum(work.flops / self.matrix[precision] for work in works if work.matrix)
        return "memory" if memory >= matrix else "matrix"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _nominal(name: str, source: str, gigabytes: float, half: float, tf32: float, fma: float) -> Rates:
    matrix = {"bf16": half, "fp16": half, "tf32": tf32, "fp32": max(fma, tf32 / 3)}
    return Rates(
        name, f"nominal: {source}", gigabytes * 1e9, {precision: rate * 1e12 for precision, rate in matrix.items()}
    )


NOMINAL: Final = {
    "A100": _nominal("A100 SXM 80GB", "NVIDIA A100 data sheet, dense", 2039, 312, 156, 19.5),
    "H100": _nominal("H100 SXM", "NVIDIA H100 data sheet, half of the rates with sparsity", 3350, 989.5, 494.5, 67),
    "H200": _nominal("H200 SXM", "NVIDIA H200 data sheet, half of the rates with sparsity", 4800, 989.5, 494.5, 67),
}
"""Data sheet numbers; a device reaches about 90% of the bandwidth and 60 to 80% of the matrix rate."""


def measured(device: str, *, quick: bool = False) -> Rates:
    """Copy bandwidth and matrix rates of this device, medians over buffers that exceed its caches.

    Args:
        device: "cuda" or "cpu".
        quick: small sizes for trying a program; the rates mean nothing.
    """
    if device == "cuda":
        return _measured_cuda(quick)
    bandwidth = _copy_bandwidth(device, (16 if quick else 256) << 20, _host_seconds)
    size = 256 if quick else 1024
    matrix = {name: _matrix_rate(device, size, _DTYPES[name], _host_seconds) for name in ("bf16", "fp32")}
    matrix |= {"fp16": matrix["bf16"], "tf32": matrix["fp32"]}  # a CPU has no separate rates
    return Rates("CPU", "measured", bandwidth, matrix)


def _measured_cuda(quick: bool) -> Rates:
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    bandwidth = _copy_bandwidth("cuda", max((64 if quick else 1024) << 20, 4 * cache), _event_seconds)
    size = 2048 if quick else 8192
    before, matrix = torch.backends.cuda.matmul.fp32_precision, {}
    try:
        for name in PRECISIONS:
            torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
            matrix[name] = _matrix_rate("cuda", size, _DTYPES[name], _event_seconds)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    matrix["fp32"] = max(matrix["fp32"], matrix["tf32"] / 3)
    return Rates(torch.cuda.get_device_name(), "measured", bandwidth, matrix)


def _copy_bandwidth(device: str, size: int, seconds: Callable[[Callable[[], object]], float]) -> float:
    """Bytes read plus written per second by a copy between rotating pairs of buffers of ``size`` bytes."""
    pairs = itertools.cycle([[torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2)] for _ in range(2)])

    def copy() -> None:
        source, target = next(pairs)
        target.copy_(source)

    return 2 * size / seconds(copy)


def _matrix_rate(device: str, size: int, dtype: torch.dtype, seconds: Callable[[Callable[[], object]], float]) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b, out=out))


def _host_seconds(call: Callable[[], object]) -> float:
    call()
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _event_seconds(call: Callable[[], object]) -> float:
    """Seconds per call, from CUDA events around ten calls: median of seven, after warming up the clocks."""
    for _ in range(10):
        call()
    seconds = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            call()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e4)
    return statistics.median(seconds)
