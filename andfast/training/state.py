"""One stage of a run: its networks with their optimizers, and what is saved of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from andfast.config.schema import Stage, TrainConfig
from andfast.training.build import build_step, captures_step
from andfast.training.captured_step import CapturedStep
from andfast.training.checkpoint import Checkpoint
from andfast.training.cuda_graph import Backend, CUDAGraphBackend
from andfast.training.distributed import ProcessGroup
from andfast.training.ema import EMA
from andfast.training.latch import Latch
from andfast.training.profiling import StepTimer
from andfast.training.rng import restore_rng_state, rng_state
from andfast.training.step import TrainingStep


class StageState:
    """Everything of a stage that a checkpoint has to hold.

    Args:
        config: of the run.
        stage: "net" or "gan".
        generator: G as it enters the stage.
        group: this process among the others.
        shard: see :func:`andfast.training.build.build_step`.
        backend: captures the steps; by default CUDA graphs, where the configuration has them.

    Attributes:
        step: the networks and how a step is taken with them.
        average: of G's weights; with a decay of 0 it is G's weights themselves.
        timer: times the phases of the steps.
        best: the best validation PSNR (RGB) of the stage so far, dB; None before the first.
        validation_due: whether a stop has come before the validation of the last step.
        done: optimizer steps done.
        seconds, waited: wall-clock time of these steps, and how much of it they waited for data.
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
    ) -> None:
        settings = config.net if stage == "net" else config.gan
        self.name = stage
        self.done = 0
        self.best: float | None = None
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
        self.step: TrainingStep = build_step(
            config,
            stage,
            generator,
            group,
            scale_loss=self.scaler.scale,
            timer=self.timer,
            shard=shard,
            parallel=backend is None,
        )
        self.ema = EMA(self.step.generator, config.ema_decay)
        self._adam = {"fused": cuda or backend is not None, "capturable": cuda and backend is not None}
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=settings.lr, betas=settings.betas, **self._adam)
            for name, network in self.trained().items()
        }
        self._captured: CapturedStep | None = None

    @property
    def captures(self) -> bool:
        """Whether steps are to be taken by :meth:`advance`, not by :meth:`gradients` and :meth:`update`."""
        return self._backend is not None

    def advance(self, batches: Sequence[Tensor]) -> None:
        """Take the next step as a captured one; see :class:`CapturedStep`."""
        if self._captured is None:  # not before a checkpoint is loaded, which moves the optimizers' states
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
                required=self._required,
            )
        self._captured.take(batches, self.done)
        self.done += 1

    def close(self) -> None:
        """Release the captured steps and their memory."""
        if self._captured is not None:
            self._captured.close()
            self._captured = None

    @property
    def latch(self) -> Latch | None:
        """The values of the last captured step, and whether it or one before has failed; None before the first."""
        return None if self._captured is None else self._captured.latch

    def trained(self) -> dict[str, nn.Module]:
        """The networks that have an optimizer."""
        networks = {"generator": self.step.generator, "discriminator": self.step.discriminator}
        return {name: network for name, network in networks.items() if network is not None}

    def gradients(self, batches: Sequence[Tensor]) -> dict[str, Tensor]:
        """The gradients of the next step; see :meth:`TrainingStep.gradients`."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        found = self.step.gradients(batches, self.done)
        for name, network in self.trained().items():
            # Whatever stands between weights and loss (compiled graphs, wrappers), none may stay behind unnoticed.
            missing = [key for key, one in network.named_parameters() if one.grad is None]
            if missing:
                raise RuntimeError(f"no gradient has reached {len(missing)} weights of the {name}, {missing[0]} first")
        return found

    def update(self) -> None:
        """Apply the gradients."""
        with self.timer.span("optimizer"):
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer)
            self.scaler.update()
        with self.timer.span("ema"):
            self.ema.update(self.step.generator)
        self.done += 1

    def since_last_log(self) -> tuple[int, float]:
        """Steps and seconds since the last call, in this process; at least one step."""
        steps, seconds = self._logged
        self._logged = (self.done, self.seconds)
        return max(self.done - steps, 1), max(self.seconds - seconds, 1e-9)

    def buffers(self) -> list[Tensor]:
        """Copies of the buffers that a step moves before it is known to be finite."""
        return [one.clone() for network in self.trained().values() for one in network.buffers()]

    @torch.no_grad()
    def restore_buffers(self, before: Sequence[Tensor]) -> None:
        """Put back what :meth:`buffers` copied."""
        now = [one for network in self.trained().values() for one in network.buffers()]
        for one, old in zip(now, before, strict=True):
            one.copy_(old)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "rng": rng_state(),
            "best_psnr_rgb": self.best,
            "validation_due": self.validation_due,
            "seconds": self.seconds,
            "waited": self.waited,
        }

    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """The weights that a checkpoint holds."""
        networks = {**self.trained(), "generator_ema": self.ema.module}
        return {name: network.state_dict() for name, network in networks.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of this stage."""
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
        restore_rng_state(checkpoint.state["rng"])
        self.best = checkpoint.state.get("best_psnr_rgb")
        self.validation_due = checkpoint.state.get("validation_due", False)
        self.seconds = checkpoint.state["seconds"]
        self.waited = checkpoint.state["waited"]
        self.done = checkpoint.step
        self._logged = (self.done, self.seconds)
