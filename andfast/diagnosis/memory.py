"""How much memory and disk a configuration needs, computed from shapes before anything is allocated.

The memory is that of the training step itself, run on tensors without contents: what is alive at its peak. What an
implementation allocates inside of an op, convolution workspaces and the allocator's slack come on top and are not seen:
on a CPU a step was measured to take 1.6 to 2 times as much.
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
from andfast.training.build import build_generator, build_step, records_ascent
from andfast.training.distributed import ProcessGroup

_ADAM_STATES: Final = 2
_HEADERS: Final = 2000  # pictures of which the size is read; a larger set is extrapolated from so many


@dataclass(frozen=True)
class StepMemory:
    """Estimated bytes on the training device, for one process.

    Attributes:
        stage: "net" or "gan".
        state: networks, their gradients, Adam's states and the average of the weights: there all the time.
        peak: the most that a step has alive beside these: HR, identity networks, activations, gradients of theta. With
            ``cuda_graph`` the ascent's own comes on top of the others', as a graph keeps its memory.
        parts: the same by sub-step.
        saved: the weights and Adam's states, which a checkpoint holds.
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
    """Estimate a stage's memory by a step on tensors without contents: takes seconds, and no memory to speak of.

    Where the configuration means a GPU and there is none, ops count as they run on a CPU.
    """
    device = torch.device(resolve_device(config.device))
    bare = replace(
        config,
        init_weights=None,
        compile=False,
        cuda_graph=records_ascent(config, stage, device.type),
        # From the second pass of the ascent on all have the same alive; the first may be in closed form.
        adversary=replace(config.adversary, steps=min(config.adversary.steps, 2)),
        loss=replace(config.loss, vgg_weights="random"),
    )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        step = build_step(bare, stage, build_generator(bare), ProcessGroup(0, 1, torch.device("meta")))
    step.capture = None
    networks = [one for one in (step.generator, step.discriminator) if one is not None]
    # The meta device knows no autocast, so fake tensors of the right device take over.
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for network in (*networks, step.objective.vgg):
            if network is not None:
                fake_weights(network, device)
        weights = sum(_bytes(network) for network in networks)
        average = _bytes(step.generator) if config.ema_decay else 0
        vgg = 0 if step.objective.vgg is None else _bytes(step.objective.vgg)
        side = config.data.patch_size
        batches = [torch.empty((config.batch_size, 3, side, side), device=device) for _ in range(config.accumulate)]
        step.stopwatch = alive = Alive()  # type: ignore[assignment]
        stack.enter_context(alive)
        step.gradients(batches, 0)
    saved = weights * (1 + _ADAM_STATES) + average
    given = sum(one.nbytes for one in batches)
    parts = {name: given + peak for name, peak in alive.peaks.items()}
    peak = max(parts.values())
    if bare.cuda_graph:
        peak = parts["ascent"] + max(peak for name, peak in parts.items() if name != "ascent") - given
    return StepMemory(stage, saved + weights + vgg, peak, saved, parts)


def fake_weights(network: nn.Module, device: torch.device) -> None:
    """Replace the tensors of a module on the meta device by fake ones of the same layout, gradients included."""

    def new(one: Tensor) -> Tensor:
        return torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=device)

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


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that ops make, from when they are made until nothing refers to them.

    In place of a step's stopwatch it tells the sub-steps apart.

    Attributes:
        peaks: the most that was alive in each part; outside of them under "".
    """

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, int] = {}
        self._part = ""
        self._now = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """As of a stopwatch."""
        before, self._part = self._part, name
        self._see()
        yield
        self._part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one.untyped_storage() for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
        self._known.update(given)  # made before: not counted, nor are views of it
        out = func(*args, **(kwargs or {}))
        for one in tree_iter(out):
            if isinstance(one, Tensor) and (storage := one.untyped_storage()) not in self._known:
                self._known.add(storage)
                self._now += storage.nbytes()
                self._see()
                weakref.finalize(storage, self._drop, storage.nbytes())
        return out

    def _see(self) -> None:
        self.peaks[self._part] = max(self.peaks.get(self._part, 0), self._now)

    def _drop(self, size: int) -> None:
        self._now -= size


def _bytes(network: nn.Module) -> int:
    return sum(one.nbytes for one in [*network.parameters(), *network.buffers()])


@dataclass(frozen=True)
class Photographs:
    """What the headers of picture files say.

    Attributes:
        files: how many there are.
        usable: how many are large enough.
        bytes: of the usable ones' pixels, as a pack holds them.
        exact: every header was read; else ``usable`` and ``bytes`` are extrapolated.
    """

    files: int
    usable: int
    bytes: int
    exact: bool


def photographs(files: list[SourceFile], min_size: int) -> Photographs:
    """Read the headers of up to 2,000 pictures, spread over the list; a file without a readable one is not usable."""
    step = max(len(files) / _HEADERS, 1.0)
    looked_at = [files[int(step * number)] for number in range(min(len(files), _HEADERS))]
    usable = pixels = 0
    for file in looked_at:
        try:
            with Image.open(file.path, formats=FORMATS) as image:
                width, height = image.size
        except Exception:  # Pillow's plugins meet damaged headers with all kinds of errors; packing tells them
            continue
        if min(width, height) >= min_size:
            usable += 1
            pixels += width * height
    exact = len(looked_at) == len(files)
    return Photographs(len(files), round(usable * step), round(3 * pixels * step), exact)


def checkpoint_bytes(config: TrainConfig, memories: list[StepMemory]) -> int:
    """Of all checkpoints that are kept, one more while the newest is written, and the stages' weights files."""
    if not memories:
        return 0
    return max(one.saved for one in memories) * (config.keep_checkpoints + 1) + 2 * sum(one.saved for one in memories)


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder that need not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
