"""A whole training step as CUDA graphs: attack, both networks' passes, optimizers, EMA and the check for NaN.

Random numbers, such as identity networks, are drawn outside the graph and copied in; the rest of a step is replayed
without CPU launch overhead. With one micro batch on one process a step is a single graph. Otherwise one graph is
replayed per micro batch and another for the update; the ranks average the gradients in between.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from andfast.nn.frozen import copies, put_back
from andfast.training.cuda_graph import Backend, CUDAGraphCallable
from andfast.training.distributed import ProcessGroup
from andfast.training.ema import EMA
from andfast.training.latch import Latch
from andfast.training.profiling import StepTimer
from andfast.training.radius_controller import RadiusController
from andfast.training.step import FINITE, TrainingStep

STEPS_AHEAD: Final = 2
"""Number of steps that the host may run ahead of the GPU."""
_ALIGNMENT: Final = 64
"""In elements; fused optimizers use vectorized loads only at aligned addresses."""


def flat_views(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Zeros in one buffer, and views into it in the layouts of ``tensors``, which must be dense and of one dtype."""
    sizes = [-(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
    flat = torch.zeros(sum(sizes), dtype=tensors[0].dtype, device=tensors[0].device)
    parts = flat.split(sizes)
    return flat, [part.as_strided(t.size(), t.stride()) for part, t in zip(parts, tensors, strict=True)]


class CapturedStep:
    """Takes training steps by replaying captured ones. From the first non-finite step on, steps change nothing.

    Gradients become views into one buffer per network, and the EMA's weights into another: their addresses change. The
    optimizers must be fused Adam, whose ``found_inf`` skips an update on the device, and capturable on CUDA.

    Args:
        step: the training step, with networks that are not wrapped in DistributedDataParallel.
        networks, optimizers: the trained networks and their optimizers, under the same names.
        scaler: the gradient scaler; if enabled, it handles overflows, and only a non-finite loss counts as non-finite.
        ema: of G's weights.
        group: the processes that train together.
        timer: times the step's phases.
        backend: captures the step.
        name: for log messages.
        radii: adjusts the attack's factor on the radii; None without one.
        check, required: see :class:`CUDAGraphCallable`.

    Attributes:
        latch: the values of the last step, and the first non-finite step if there was one.
    """

    def __init__(
        self,
        step: TrainingStep,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        scaler: torch.amp.GradScaler,
        ema: EMA,
        group: ProcessGroup,
        timer: StepTimer,
        backend: Backend,
        *,
        name: str,
        radii: RadiusController | None = None,
        check: bool = True,
        required: bool,
    ) -> None:
        self._step, self._networks, self._optimizers = step, networks, optimizers
        self._scaler, self._ema, self._group, self._timer, self._radii = scaler, ema, group, timer, radii
        self.latch = Latch(group.device)
        self._buffers = [buffer for network in networks.values() for buffer in network.buffers()]
        self._saved_buffers = copies(self._buffers)
        self._gradients: dict[str, Tensor] = {}
        self._verified = False
        self._names: tuple[str, ...] = ()
        self._events: list[torch.cuda.Event] = []
        for key, network in networks.items():
            parameters = list(network.parameters())
            self._gradients[key], views = flat_views(parameters)
            for parameter, view in zip(parameters, views, strict=True):
                parameter.grad = view
        averaged = list(ema.module.parameters())
        self._flat_ema, views = flat_views(averaged)
        for parameter, view in zip(averaged, views, strict=True):
            view.copy_(parameter.data)
            parameter.data = view
        if scaler.is_enabled():
            scaler.scale(torch.ones((), device=group.device))  # creates the scale, whose address a graph records
        self._initialize_optimizers()
        # Listed once: walking the modules at every step would take most of the host's time.
        static_tensors = [*step.attack.static_tensors(), *(t for tensors in self._state().values() for t in tensors)]
        options: dict[str, Any] = {
            "static_tensors": lambda: static_tensors,
            "state": self._state,
            "check": check,
            "required": required,
        }
        self._whole = CUDAGraphCallable(self._run_whole, backend, name=name, **options)
        self._micro = CUDAGraphCallable(self._run_micro, backend, name=f"{name}, micro batch", **options)
        self._update = CUDAGraphCallable(self._run_update, backend, name=f"{name}, update", **options)

    def take(self, batches: Sequence[Tensor], done: int) -> None:
        """Take one step; the host waits only if it is more than ``STEPS_AHEAD`` steps ahead of the GPU.

        Args:
            batches: micro batches of HR, each (N, 3, H, W) in [0, 1].
            done: number of steps taken in this stage.
        """
        self._wait()
        batches = self.latch.begin(batches, done + 1)
        draws = [list(self._step.draws(hr, done, micro)) for micro, hr in enumerate(batches)]
        if len(batches) == 1 and self._group.world_size == 1:
            self._whole(batches[0], draws[0])
        else:
            self._begin()
            values = []
            for hr, drawn in zip(batches, draws, strict=True):
                values.append(self._micro(hr, drawn, len(batches)).clone())  # the next replay overwrites it
            mean = self._group.all_reduce_mean(torch.stack(values).mean(0))
            for gradients in self._gradients.values():
                self._group.all_reduce_mean(gradients)
            self._update(mean)
        if not self.captured:
            self._timer.drop_captured()
        if self._group.device.type == "cuda":
            self._events.append(torch.cuda.Event())
            self._events[-1].record()

    def close(self) -> None:
        """Release the graphs and their memory now, not when their reference cycles are collected."""
        del self._whole, self._micro, self._update

    @property
    def captured(self) -> bool:
        """Whether all parts of the step are replayed; False once a capture has failed."""
        return not any(part.disabled for part in (self._whole, self._micro, self._update))

    def _run_whole(self, hr: Tensor, draws: list[Any]) -> None:
        self._begin()
        self._run_update(self._run_micro(hr, draws, 1))

    @torch.no_grad()
    def _begin(self) -> None:
        for gradients in self._gradients.values():
            gradients.zero_()
        put_back(self._saved_buffers, self._buffers)

    def _run_micro(self, hr: Tensor, draws: list[Any], micro_batches: int) -> Tensor:
        """Add the gradients of a micro batch; return its values."""
        self._timer.runs_per_step = micro_batches
        with self._every_gradient():
            values = self._step.micro_gradients(hr, draws, micro_batches)
        self._names = tuple(values)
        return torch.stack([value.detach().float() for value in values.values()])

    @torch.no_grad()
    def _run_update(self, mean: Tensor) -> None:
        """Apply the gradients, unless this step or one before has failed."""
        self._timer.runs_per_step = 1
        values = dict(zip(self._names, mean, strict=True))
        finite = torch.stack([values[name] for name in FINITE if name in values]).isfinite().all()
        overflows = {name: ~gradients.isfinite().all() for name, gradients in self._gradients.items()}
        if not self._scaler.is_enabled():
            for name, overflow in overflows.items():
                values[f"{name}_gradient"] = torch.where(overflow, torch.nan, 0.0)
                finite = finite & ~overflow
        self.latch.set_if(~finite, values)
        failed = self.latch.flag > 0
        if self._radii is not None:
            self._radii.update(values["lr_psnr"], skip=failed)
        with self._step.span("optimizer"):
            for name, optimizer in self._optimizers.items():
                self._optimizer_step(optimizer, torch.maximum(self.latch.flag, overflows[name].float()))
            if self._scaler.is_enabled():
                self._update_scale(torch.stack(list(overflows.values())).any(), failed)
        with self._step.span("ema"):
            before = self._flat_ema.clone()
            self._ema.update(self._step.generator)
            self._flat_ema.copy_(torch.where(failed, before, self._flat_ema))
        for buffer, saved in zip(self._buffers, self._saved_buffers, strict=True):
            buffer.copy_(torch.where(failed, saved, buffer))

    def _optimizer_step(self, optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
        """A step of fused Adam on scaled gradients, skipped if the fp32 scalar ``skip`` is 1."""
        # GradScaler's protocol with fused optimizers; GradScaler.step has no argument that skips a step.
        optimizer.found_inf = skip  # type: ignore[attr-defined]
        optimizer.grad_scale = self._scale if self._scaler.is_enabled() else None  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]

    @property
    def _scale(self) -> Tensor:
        return self._scaler._get_scale_async()  # type: ignore[return-value]

    def _update_scale(self, overflow: Tensor, failed: Tensor) -> None:
        """GradScaler.update, except that a failed step leaves the scale unchanged."""
        scaler, tracker = self._scaler, self._scaler._growth_tracker
        assert tracker is not None
        before = self._scale.clone(), tracker.clone()
        torch._amp_update_scale_(
            self._scale,
            tracker,
            overflow.float(),
            scaler.get_growth_factor(),
            scaler.get_backoff_factor(),
            scaler.get_growth_interval(),
        )
        for tensor, old in zip((self._scale, tracker), before, strict=True):
            tensor.copy_(torch.where(failed, old, tensor))

    def _initialize_optimizers(self) -> None:
        """Create the optimizers' states before capture, which records their addresses, by taking a skipped step."""
        for optimizer in self._optimizers.values():
            if not optimizer.state:
                self._optimizer_step(optimizer, torch.ones((), device=self._group.device))

    @contextmanager
    def _every_gradient(self) -> Iterator[None]:
        """In the first run, check that backward reaches every weight; in zeroed buffers a missing gradient is a 0."""
        if self._verified:
            yield
            return
        reached: set[Tensor] = set()
        hooks = [
            weight.register_post_accumulate_grad_hook(reached.add)
            for network in self._networks.values()
            for weight in network.parameters()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for name, network in self._networks.items():
            missing = [key for key, weight in network.named_parameters() if weight not in reached]
            if missing:
                raise RuntimeError(f"{len(missing)} parameters of the {name} received no gradient, {missing[0]} first")
        self._verified = True

    def _wait(self) -> None:
        if len(self._events) >= STEPS_AHEAD:
            self._events.pop(0).synchronize()

    def _state(self) -> dict[str, list[Tensor]]:
        """All tensors that a step changes, by kind."""
        weights: list[Tensor] = [parameter for network in self._networks.values() for parameter in network.parameters()]
        states = [list(state.values()) for optimizer in self._optimizers.values() for state in optimizer.state.values()]
        state: dict[str, list[Tensor]] = {
            "gradients": list(self._gradients.values()),
            "weights": weights,
            "optimizers": [tensor for tensors in states for tensor in tensors],
            "EMA": [self._flat_ema, *self._ema.module.buffers()],
            "buffers": [*self._buffers, *self._saved_buffers],
            "latch": [self.latch.flag],
        }
        if self._radii is not None:
            state["radii"] = self._radii.tensors()
        if self._scaler.is_enabled():
            assert self._scaler._growth_tracker is not None
            state["scaler"] = [self._scale, self._scaler._growth_tracker]
        return state
