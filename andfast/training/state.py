"""One stage of a run: its networks, their optimizers and EMA, and their state in checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from andfast.adversary.strategies import Strategy
from andfast.config.schema import Stage, TrainConfig
from andfast.training.build import build_step, captures_step
from andfast.training.captured_step import CapturedStep
from andfast.training.checkpoint import Checkpoint
from andfast.training.cuda_graph import Backend, CUDAGraphBackend
from andfast.training.distributed import ProcessGroup
from andfast.training.ema import EMA
from andfast.training.latch import Latch
from andfast.training.profiling import StepTimer
from andfast.training.radius_controller import RadiusController
from andfast.training.rng import restore_rng_state, rng_state
from andfast.training.schedule import is_constant, learning_rate
from andfast.training.selection import PSNR
from andfast.training.step import TrainingStep


class StageState:
    """Networks, optimizers and progress of a stage.

    Args:
        config: of the run.
        stage: "net" or "gan".
        generator: G at the start of the stage.
        group: the processes that train together.
        shard: see :func:`andfast.training.build.build_step`.
        backend: captures the steps; None for CUDA graphs, if the configuration enables them.
        strategy: how LR is made, in place of the configured one.

    Attributes:
        step: the training step, with the networks.
        ema: exponential moving average of G's weights; equal to them with a decay of 0.
        timer: times the phases of the steps.
        radii: adjusts the factor on the attack's radii; None without ``adversary.target_psnr``.
        best: best validation score of the stage so far; None before the first validation.
        best_by: name of that score.
        validation_due: whether a stop came before the validation of the last step.
        done: number of optimizer steps taken.
        seconds, waited: wall-clock time of these steps, and the part of it spent waiting for data.
    """

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        generator: nn.Module,
        group: ProcessGroup,
        *,
        shard: tuple[int, int] | None = None,
        backend: Backend | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        settings = config.stage(stage)
        self.name, self._settings = stage, settings
        self.done = 0
        self.best: float | None = None
        self.best_by = PSNR
        self.validation_due = False
        self.seconds = 0.0
        self.waited = 0.0
        self._logged = (0, 0.0)
        self.timer = StepTimer(group.device)
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=config.precision == "fp16")
        cuda = group.device.type == "cuda"
        if backend is None and captures_step(config, group.device.type):
            backend = CUDAGraphBackend()
        self._group, self._backend, self._required = group, backend, config.cuda_graph is True
        target = config.adversary.target_psnr
        self.radii = None if target is None else RadiusController(target, group.device)
        self.step: TrainingStep = build_step(
            config,
            stage,
            generator,
            group,
            scale_loss=self.scaler.scale,
            timer=self.timer,
            shard=shard,
            parallel=backend is None,
            radius_factor=None if self.radii is None else self.radii.factor,
            strategy=strategy,
        )
        self.ema = EMA(self.step.generator, config.ema_decay)
        self._adam = {"fused": cuda or backend is not None, "capturable": cuda and backend is not None}
        self.optimizers = {}
        for name, network in self.trained().items():
            lr: float | Tensor = settings.lr
            if backend is not None and not is_constant(settings):
                lr = torch.tensor(lr, device=group.device)  # a captured step reads it again at each replay
            self.optimizers[name] = torch.optim.Adam(network.parameters(), lr=lr, betas=settings.betas, **self._adam)
        self._captured: CapturedStep | None = None

    @property
    def captures(self) -> bool:
        """Whether steps are taken by :meth:`advance` instead of :meth:`gradients` and :meth:`update`."""
        return self._backend is not None

    def advance(self, batches: Sequence[Tensor]) -> None:
        """Take the next step as a captured one; see :class:`CapturedStep`."""
        if self._captured is None:  # created late: loading a checkpoint replaces the optimizers' states
            assert self._backend is not None
            self._captured = CapturedStep(
                self.step,
                self.trained(),
                self.optimizers,
                self.scaler,
                self.ema,
                self._group,
                self.timer,
                self._backend,
                name=f"stage {self.name}: CUDA graph of the step",
                radii=self.radii,
                required=self._required,
            )
        self._set_learning_rate()
        self._captured.take(batches, self.done)
        self.done += 1

    def close(self) -> None:
        """Release the captured steps and their memory."""
        if self._captured is not None:
            self._captured.close()
            self._captured = None

    @property
    def latch(self) -> Latch | None:
        """Latch of the captured steps; None before the first."""
        return None if self._captured is None else self._captured.latch

    def trained(self) -> dict[str, nn.Module]:
        """The networks that have an optimizer."""
        networks = {"generator": self.step.generator, "discriminator": self.step.discriminator}
        return {name: network for name, network in networks.items() if network is not None}

    def gradients(self, batches: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compute the gradients of the next step; see :meth:`TrainingStep.gradients`."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        values = self.step.gradients(batches, self.done)
        for name, network in self.trained().items():
            # A compiled graph or a wrapper that loses gradients must not go unnoticed.
            missing = [key for key, parameter in network.named_parameters() if parameter.grad is None]
            if missing:
                raise RuntimeError(f"{len(missing)} parameters of the {name} received no gradient, {missing[0]} first")
        return values

    def update(self) -> None:
        """Apply the gradients."""
        self._set_learning_rate()
        with self.timer.span("optimizer"):
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer)
            self.scaler.update()
        with self.timer.span("ema"):
            self.ema.update(self.step.generator)
        self.done += 1

    @property
    def last_learning_rate(self) -> float:
        """The learning rate of the last step, or of the first one before it."""
        return learning_rate(self.name, self._settings, max(self.done - 1, 0))

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.name, self._settings, self.done)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def since_last_log(self) -> tuple[int, float]:
        """Steps and seconds since the last call, in this process; at least one step."""
        steps, seconds = self._logged
        self._logged = (self.done, self.seconds)
        return max(self.done - steps, 1), max(self.seconds - seconds, 1e-9)

    def buffers(self) -> list[Tensor]:
        """Copies of the networks' buffers, which a step updates before it is known to be finite."""
        return [buffer.clone() for network in self.trained().values() for buffer in network.buffers()]

    @torch.no_grad()
    def restore_buffers(self, copies: Sequence[Tensor]) -> None:
        """Restore the buffers from the result of :meth:`buffers`."""
        buffers = [buffer for network in self.trained().values() for buffer in network.buffers()]
        for buffer, copy in zip(buffers, copies, strict=True):
            buffer.copy_(copy)

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint stores besides the weights."""
        return {
            "optimizers": {name: _optimizer_state(optimizer) for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "radii": None if self.radii is None else self.radii.state(),
            "rng": rng_state(),
            "best_score": self.best,
            "best_by": self.best_by,
            "validation_due": self.validation_due,
            "seconds": self.seconds,
            "waited": self.waited,
        }

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """The weights that a checkpoint stores, by network."""
        networks = {**self.trained(), "generator_ema": self.ema.module}
        return {name: network.state_dict() for name, network in networks.items()}

    def nonfinite(self) -> str | None:
        """The first part of the state with an infinite or NaN value, such as "weights of the generator"; or None."""
        parts = {f"weights of the {name}": list(weights.values()) for name, weights in self.weights().items()}
        for name, optimizer in self.optimizers.items():
            parts[f"optimizer states of the {name}"] = [
                value for state in optimizer.state.values() for value in state.values()
            ]
        for part, tensors in parts.items():
            values = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
            if values and not all(norm.isfinite() for norm in torch._foreach_norm(values, float("inf"))):
                return part
        return None

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this stage."""
        for name, network in {**self.trained(), "generator_ema": self.ema.module}.items():
            network.load_state_dict(checkpoint.weights[name])
        for name, optimizer in self.optimizers.items():
            rates = [group["lr"] for group in optimizer.param_groups]  # may have changed since the checkpoint
            saved = checkpoint.state["optimizers"][name]
            groups = [{**group, **self._adam} for group in saved["param_groups"]]  # the checkpoint's device may differ
            optimizer.load_state_dict({**saved, "param_groups": groups})
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self.scaler.load_state_dict(checkpoint.state["scaler"])
        if self.radii is not None:
            self.radii.load(checkpoint.state["radii"])
        restore_rng_state(checkpoint.state["rng"])
        self.best = checkpoint.state.get("best_score", checkpoint.state.get("best_psnr_rgb"))
        self.best_by = checkpoint.state.get("best_by", PSNR)
        self.validation_due = checkpoint.state.get("validation_due", False)
        self.seconds = checkpoint.state["seconds"]
        self.waited = checkpoint.state["waited"]
        self.done = checkpoint.step
        self._logged = (self.done, self.seconds)


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of an optimizer with its learning rates as numbers."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]}
