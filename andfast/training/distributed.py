"""The processes of a run: one alone, or those that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes files and talks."""
        return self.rank == 0

    def average(self, values: Tensor) -> Tensor:
        """The mean over all processes, in place; NaN anywhere is NaN everywhere."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values /= self.world_size
        return values

    def wait(self) -> None:
        """Return once all processes have come here."""
        if self.world_size > 1:
            dist.barrier()

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, averaging its gradients over all processes; buffers stay each process's own."""
        if self.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started (its environment variables say so), or stand alone.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL, one GPU a process).
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(
            0,
            1,
            torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device),
        )
        return
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise RuntimeError(
                f"--nproc_per_node must be at most the number of GPUs, {torch.cuda.device_count()}, "
                f"but there is a process of local rank {local}"
            )
        torch.cuda.set_device(local)
    place = torch.device(device, local) if device == "cuda" else torch.device(device)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", device_id=place if device == "cuda" else None)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), place)
    finally:
        dist.destroy_process_group()
