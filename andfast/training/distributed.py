"""The process group of a run: a single process, or the ranks that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank, the number of processes, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Average ``values`` over all ranks in place; a NaN on any rank is a NaN on every rank."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def barrier(self) -> None:
        """Block until every rank has reached this point."""
        if self.world_size > 1:
            dist.barrier()

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap ``module`` in DistributedDataParallel; buffers stay local to each rank."""
        if self.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Initialize the process group from torchrun's environment variables, or a group of one without them.

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
                f"but there is a process of local rank {local_rank}"
            )
        torch.cuda.set_device(local_rank)
    rank_device = torch.device("cuda", local_rank) if device == "cuda" else torch.device(device)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", device_id=rank_device if device == "cuda" else None)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), rank_device)
    finally:
        dist.destroy_process_group()
