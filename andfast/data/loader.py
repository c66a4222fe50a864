"""Training batches: worker processes that cut the crops, and the copy to the device.

Batch b of rank r out of W, of size B, holds samples (b * W + r) * B, ..., (b * W + r) * B + B - 1. The data of a step
depends on its number only: not on the workers, nor on interruptions; W ranks with batch size B see together what one
rank with batch size W * B sees.
"""

import atexit
import contextlib
import os
import shutil
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

PREFETCH = 2  # batches prefetched by each worker
SHARED_MEMORY = "/dev/shm"
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that workers ignore: a training process answers them between steps, and then ends its workers."""


class _GlobalBatches(Sampler[list[int]]):
    """Infinite batch sampler over sample indices."""

    def __init__(self, batch_size: int, start_batch: int, rank: int, world_size: int) -> None:
        self.batch_size, self.start_batch, self.rank, self.world_size = (
            batch_size,
            start_batch,
            rank,
            world_size,
        )

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.start_batch
        while True:
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            batch += 1


class _WorkerWatch:
    """Keeps the error that PyTorch's SIGCHLD handler raises for a dead worker until the next batch is requested.

    The handler would raise it wherever the training step happens to be.

    Attributes:
        error: the error; None while all workers live.
    """

    def __init__(self) -> None:
        self.error: RuntimeError | None = None
        self._waiting = False
        self._handler = None
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGCHLD)):
            self._handler = signal.signal(signal.SIGCHLD, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        assert callable(self._handler)
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            self.error = error
            if self._waiting:
                raise

    def next_of(self, iterator: Iterator[Tensor]) -> Tensor:
        """The next batch; raises the error of a worker that has died."""
        if self.error is not None:
            raise self.error
        self._waiting = True
        try:
            return next(iterator)
        finally:
            self._waiting = False

    def close(self) -> None:
        """Put PyTorch's handler back."""
        if self._handler is not None and signal.getsignal(signal.SIGCHLD) == self._handle:
            signal.signal(signal.SIGCHLD, self._handler)
        self._handler = None


class TrainingLoader:
    """Infinite iterator over (B, 3, P, P) uint8 batches in channels-last memory; see :func:`training_loader`.

    Raises:
        RuntimeError: in ``next``, a worker has died.
    """

    def __init__(self, make_loader: Callable[[], DataLoader[Tensor]]) -> None:
        self._iterator: Iterator[Tensor] | None = None
        with warnings.catch_warnings():
            # More workers than cores help where storage is slow. Python 3.12 warns about forking a multi-threaded
            # process; the workers use none of the parent's threads.
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            self._iterator = iter(make_loader())
        self._watch = _WorkerWatch()
        # Registered after DataLoader's own hook, so it runs first: workers are asked to stop instead of being killed.
        reference = weakref.ref(self)
        self._at_exit = lambda: reference() and reference().close()  # type: ignore[union-attr]
        atexit.register(self._at_exit)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tensor:
        if self._iterator is None:
            raise RuntimeError("the loader is closed")
        return self._watch.next_of(self._iterator)

    def close(self) -> None:
        """Stop the workers; may be called more than once."""
        iterator, self._iterator = self._iterator, None
        if iterator is None:
            return
        atexit.unregister(self._at_exit)
        self._watch.close()
        shutdown = getattr(iterator, "_shutdown_workers", None)  # called by DataLoader's own __del__
        if shutdown is not None:
            shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def training_loader(
    dataset: Dataset[Tensor],
    *,
    batch_size: int,
    start_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int,
    pin_memory: bool = False,
) -> TrainingLoader:
    """Create the infinite loader of a training stage.

    Workers run single-threaded and ignore SIGINT, SIGTERM, SIGHUP and SIGUSR1, so that the training process can finish
    its step; they exit on ``close()`` or with the training process, however it ends. The global RNG state is left
    unchanged.

    Args:
        dataset: ``dataset[g]`` is sample g, a (3, P, P) uint8 tensor.
        batch_size: Number of samples per batch.
        start_batch: Index of the first batch; step * accumulation + micro step when resuming.
        rank: Rank of this process.
        world_size: Number of processes that train together.
        workers: Number of worker processes; 0 loads in this process. The batches do not depend on it.
        pin_memory: Put batches into page-locked memory; requires CUDA.

    Raises:
        ValueError: A number is out of range, or ``pin_memory`` is True without CUDA.
        RuntimeError: Shared memory is too small for the prefetched batches.
    """
    for name, value, minimum in (
        ("batch_size", batch_size, 1), ("start_batch", start_batch, 0), ("world_size", world_size, 1),
        ("rank", rank, 0), ("workers", workers, 0),
    ):  # fmt: skip
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, was {value}")
    if rank >= world_size:
        raise ValueError(f"rank must be below world_size {world_size}, was {rank}")
    if pin_memory and not torch.cuda.is_available():
        raise ValueError("pin_memory must be False without a CUDA device, was True")
    if workers:
        _check_shared_memory(dataset, batch_size, workers)
    return TrainingLoader(
        lambda: DataLoader(
            dataset,
            batch_sampler=_GlobalBatches(batch_size, start_batch, rank, world_size),
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            collate_fn=_stack,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # otherwise DataLoader draws from the global generator
        )
    )


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)


def _stack(samples: list[Tensor]) -> Tensor:
    """Stack channels-last (3, P, P) samples to a channels-last (B, 3, P, P) batch."""
    rows = [sample.permute(1, 2, 0) for sample in samples]
    batch = torch.empty((len(rows), *rows[0].shape), dtype=rows[0].dtype)
    if get_worker_info() is not None:
        batch.share_memory_()  # before filling it, which saves a copy
    torch.stack(rows, out=batch)
    return batch.permute(0, 3, 1, 2)


def _check_shared_memory(dataset: Dataset[Tensor], batch_size: int, workers: int) -> None:
    """Containers often have 64 MB of shared memory; a worker that exhausts it dies with a bare SIGBUS."""
    if not os.path.isdir(SHARED_MEMORY):
        return
    needed = dataset[0].numel() * batch_size * (PREFETCH * workers + 1)
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise RuntimeError(
            f"workers={workers} need {needed / 1e6:.0f} MB of shared memory, {SHARED_MEMORY} has {free / 1e6:.0f} MB "
            "free: use fewer workers or a smaller batch, or enlarge it (docker run --shm-size)"
        )


class DevicePrefetcher:
    """Iterate over float32 batches in [0, 1] on the device, channels last, copying one batch ahead.

    On CUDA the copy (from pinned memory) and the conversion run on a side stream. On the CPU only the loader's workers
    run ahead.

    Args:
        loader: Iterator over uint8 (B, 3, H, W) batches; closed together with this object if it has ``close()``.
        device: Device of the batches.

    Attributes:
        waited_seconds: Total time spent waiting for the loader, without the conversion.
    """

    def __init__(self, loader: Iterator[Tensor], device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.waited_seconds = 0.0
        self._loader: Iterator[Tensor] | None = loader
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._next: Tensor | None = None
        self._started = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tensor:
        if self._stream is None:
            return _to_unit(self._wait())
        if not self._started:
            self._started = True
            self._copy_ahead(self._stream)
        batch = self._next
        if batch is None:
            raise StopIteration
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)
        batch.record_stream(current)  # allocated on the side stream: keep it until the current stream is done
        self._copy_ahead(self._stream)
        return batch

    def _wait(self) -> Tensor:
        if self._loader is None:
            raise RuntimeError("the prefetcher is closed")
        start = time.perf_counter()
        try:
            return next(self._loader)
        finally:
            self.waited_seconds += time.perf_counter() - start

    def _copy_ahead(self, stream: torch.cuda.Stream) -> None:
        self._next = None
        with contextlib.suppress(StopIteration):
            batch = self._wait()
            if not batch.is_pinned():
                batch = batch.pin_memory()
            with torch.cuda.stream(stream):
                self._next = _to_unit(batch.to(self.device, non_blocking=True))

    def close(self) -> None:
        """Drop the prefetched batch and stop the loader's workers; may be called more than once."""
        loader, self._loader, self._next = self._loader, None, None
        if self._stream is not None:
            self._stream.synchronize()
        close = getattr(loader, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _to_unit(batch: Tensor) -> Tensor:
    return batch.to(torch.float32, memory_format=torch.channels_last).div_(255)
