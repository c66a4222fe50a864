"""Memory and disk requirements of a configuration, computed from shapes without allocating anything.

Runs the training step on fake tensors and records the peak of live bytes. Temporaries inside ops, convolution
workspaces and allocator overhead are not included: on a CPU, steps were measured at 1.6 to 2 times the estimate.
"""

import shutil
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from andfast.config.machine import resolve_device
from andfast.config.schema import Stage, TrainConfig
from andfast.data.images import FORMATS
from andfast.data.sources import SourceFile
from andfast.training.build import build_generator, build_step, captures_step
from andfast.training.distributed import ProcessGroup

_ADAM_STATES: Final = 2
_HEADERS: Final = 2000  # number of image headers read; larger sets are extrapolated


@dataclass(frozen=True)
class StepMemory:
    """Estimated memory on the training device in bytes, per process.

    Attributes:
        stage: "net" or "gan".
        state: networks, gradients, Adam's states and EMA, allocated throughout.
        peak: peak of a step on top of ``state``: HR, identity networks, activations, gradients of theta. With
            ``cuda_graph``, also the graphs' static inputs and the batch that is kept for a failed step.
        parts: peak by phase of the step.
        saved: weights and Adam's states, stored in a checkpoint.
    """

    stage: Stage
    state: int
    peak: int
    saved: int
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return self.state + self.peak


def step_memory(config: TrainConfig, stage: Stage) -> StepMemory:
    """Estimate a stage's memory with a step on fake tensors; takes seconds and little memory.

    If the configuration's device is a GPU and none is available, ops are counted as they run on the CPU.
    """
    device = torch.device(resolve_device(config.device))
    bare = replace(
        config,
        init_weights=None,
        compile=False,
        cuda_graph=False,
        # All passes of the ascent have the same peak except the first, which may be in closed form.
        adversary=replace(config.adversary, steps=min(config.adversary.steps, 2)),
        loss=replace(config.loss, vgg_weights="random"),
    )
    live = LiveBytes()
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        step = build_step(bare, stage, build_generator(bare), ProcessGroup(0, 1, torch.device("meta")), timer=live)
    networks = [network for network in (step.generator, step.discriminator) if network is not None]
    # The meta device does not support autocast, fake tensors of the right device do.
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for network in (*networks, step.objective.vgg):
            if network is not None:
                fake_weights(network, device)
        weights = sum(_bytes(network) for network in networks)
        ema = _bytes(step.generator) if config.ema_decay else 0
        vgg = 0 if step.objective.vgg is None else _bytes(step.objective.vgg)
        side = config.data.patch_size
        batches = [torch.empty((config.batch_size, 3, side, side), device=device) for _ in range(config.accumulate)]
        stack.enter_context(live)
        step.gradients(batches, 0)
    saved = weights * (1 + _ADAM_STATES) + ema
    batch_bytes = sum(batch.nbytes for batch in batches)
    parts = {name: batch_bytes + peak for name, peak in live.peaks.items()}
    peak = max(parts.values())
    if captures_step(config, device.type):
        static_inputs = batches[0].nbytes + live.peaks["identity"]
        peak += batch_bytes + static_inputs
    return StepMemory(stage, saved + weights + vgg, peak, saved, parts)


def fake_weights(network: nn.Module, device: torch.device) -> None:
    """Replace a meta module's parameters, gradients and buffers by fake tensors of the same layout."""

    def new(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = nn.Parameter(new(parameter), requires_grad=parameter.requires_grad)
                if fake.requires_grad:
                    fake.grad = new(parameter)
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = new(buffer)


class LiveBytes(TorchDispatchMode):
    """Records the peak of live bytes: storages count from the op that allocates them until they are freed.

    Replaces a step's timer to separate its phases.

    Attributes:
        peaks: peak by phase; "" outside of all phases.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}
        self._part = ""
        self._live = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Same interface as the step's timer."""
        outer, self._part = self._part, name
        self._update_peak()
        yield
        self._part = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [tensor.untyped_storage() for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)]
        self._known.update(inputs)  # allocated earlier: neither these nor their views count
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self._live += storage.nbytes()
                self._update_peak()
                weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _update_peak(self) -> None:
        self.peaks[self._part] = max(self.peaks.get(self._part, 0), self._live)

    def _free(self, size: int) -> None:
        self._live -= size


def _bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])


@dataclass(frozen=True)
class Photographs:
    """Summary of the headers of image files.

    Attributes:
        files: number of files.
        usable: number of images that are large enough.
        bytes: size of their pixels in a pack.
        exact: all headers were read; otherwise ``usable`` and ``bytes`` are extrapolated.
    """

    files: int
    usable: int
    bytes: int
    exact: bool


def photographs(files: list[SourceFile], min_size: int) -> Photographs:
    """Read the headers of up to 2,000 images, spread over the list; unreadable files are not usable."""
    step = max(len(files) / _HEADERS, 1.0)
    sample = [files[int(step * index)] for index in range(min(len(files), _HEADERS))]
    usable = pixels = 0
    for file in sample:
        try:
            with Image.open(file.path, formats=FORMATS) as image:
                width, height = image.size
        except Exception:  # Pillow's plugins raise nearly anything on damaged headers; packing reports it
            continue
        if min(width, height) >= min_size:
            usable += 1
            pixels += width * height
    exact = len(sample) == len(files)
    return Photographs(len(files), round(usable * step), round(3 * pixels * step), exact)


def checkpoint_bytes(config: TrainConfig, memories: list[StepMemory]) -> int:
    """Size of the kept checkpoints, one more while the newest is written, and the stages' weight files."""
    if not memories:
        return 0
    sizes = [memory.saved for memory in memories]
    return max(sizes) * (config.keep_checkpoints + 1) + 2 * sum(sizes)


def free_bytes(folder: Path) -> int:
    """Free disk space at a folder, which may not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
