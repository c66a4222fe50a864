"""The process group of a run: a single process, or the ranks that torchrun started."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_LONG: Final = timedelta(days=30)
_ORPHAN_POLL: Final = 1.0
_ORPHAN_GRACE: Final = 60.0
"""Seconds for a rank to save and exit once its launcher is gone; a rank that waits for a dead one would never exit."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as seen by one of them.

    Attributes:
        rank: of this process.
        world_size: number of processes.
        device: of this process.
        waiting: gloo group with a long timeout, for waits while rank 0 packs, validates or saves; None with one
            process.
    """

    rank: int
    world_size: int
    device: torch.device
    waiting: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Average ``values`` over all ranks in place and return it; a NaN on any rank is a NaN on every rank."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def barrier(self) -> None:
        """Block until every rank has reached this point, however long rank 0 works."""
        if self.world_size > 1:
            dist.barrier(group=self.waiting)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; every rank must call it."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor(float(flag))
        dist.all_reduce(flags, group=self.waiting)
        return bool(flags > 0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on rank 0, then on the others; if it raises on rank 0, the others exit without a message."""
        if self.world_size == 1:
            yield
            return
        if not self.is_main and self.any(False):
            raise SystemExit(2)
        try:
            yield
        except BaseException:
            if self.is_main:
                self.any(True)
            raise
        if self.is_main:
            self.any(False)

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap ``module`` in DistributedDataParallel; buffers stay local to each rank."""
        if self.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Initialize the process group from torchrun's environment variables; without them, a group of one process.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL, one GPU per process).

    Raises:
        RuntimeError: torchrun started more processes than there are GPUs.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield ProcessGroup(
            0, 1, torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else torch.device(device)
        )
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"--nproc_per_node must be at most the number of GPUs, {torch.cuda.device_count()}, "
                f"was at least {local_rank + 1}"
            )
        torch.cuda.set_device(local_rank)
    rank_device = torch.device("cuda", local_rank) if device == "cuda" else torch.device(device)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", device_id=rank_device if device == "cuda" else None)
    _end_with_launcher()
    try:
        waiting = dist.new_group(backend="gloo", timeout=_LONG)
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), rank_device, waiting)
    finally:
        dist.destroy_process_group()


def _end_with_launcher() -> None:
    """Watch the launcher: if torchrun is killed, request a stop as SIGTERM does, and end after a grace period."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_ORPHAN_POLL)
        os.write(2, b"the launcher has exited: stopping\n")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_GRACE)
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
