"""One training step: the four sub-steps of the paper's figure 2, top to bottom.

The gradients of a step are a pure function of the weights, the HR batches and (seed, stage, step): identity networks
are drawn from a generator seeded by these, and every rank draws its own part of one global batch. So a step can be
rerun from a checkpoint, and splitting a batch over ranks or over accumulation steps does not change what is learned.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from andfast.adversary import AdversarialBatch, Attack, Objective, Targets
from andfast.adversary.strategies import PGD, StepSeed, Strategy
from andfast.metrics.psnr import mean_psnr
from andfast.nn import frozen
from andfast.training.profiling import Spans, span


@dataclass(frozen=True)
class RankInfo:
    """Seed of a stage, and the part of the global batch that this rank works on.

    Attributes:
        seed, stage: of the run, and the stage's number; both seed the draws.
        rank, world_size: this process and the number of processes.
        accumulate: micro batches per step and process.
    """

    seed: int
    stage: int
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def step_seed(self, step: int) -> StepSeed:
        """The source of a step's random numbers, the same on every rank."""
        return StepSeed((self.seed, self.stage, step))

    def generator(self, device: torch.device, step: int) -> torch.Generator | None:
        """The generator of a step's identity networks, the same on every rank."""
        return self.step_seed(step).generator(device)

    def shard(self, micro: int) -> tuple[int, int]:
        """(index, count) of a micro batch of this rank among all of the global batch."""
        return micro * self.world_size + self.rank, self.accumulate * self.world_size


FINITE: Final = ("loss", "l1", "perceptual", "gan", "loss_clean", "loss_start", "discriminator")
"""Values of a step that must be finite."""


def unscaled(loss: Tensor) -> Tensor:
    """Return the loss unchanged; in place of a gradient scaler's ``scale``."""
    return loss


@dataclass(frozen=True)
class TrainingStep:
    """The forward and backward passes of a step; its phases are profiler spans (:mod:`andfast.training.profiling`).

    Attributes:
        attack: the attack; it holds the trained networks: G, and in stage gan the objective's D.
        rank_info: seeds, rank and accumulation.
        generator_parallel, discriminator_parallel: G and D wrapped in DistributedDataParallel; None without it.
        scale_loss: a gradient scaler's ``scale``.
        strategy: how LR is made from HR, with the attack's networks and settings.
        search: a wrapper of the strategy's search for this attack, such as one that replays it from CUDA graphs; it may
            overwrite its results at the next call. None for the search itself.
        timer: times the phases.
    """

    attack: Attack
    rank_info: RankInfo
    generator_parallel: nn.Module | None = None
    discriminator_parallel: nn.Module | None = None
    scale_loss: Callable[[Tensor], Tensor] = unscaled
    strategy: Strategy = field(default_factory=PGD)
    search: Callable[[Tensor, Any], tuple[Targets, Any]] | None = None
    timer: Spans | None = None

    @property
    def generator(self) -> nn.Module:
        """G."""
        return self.attack.generator

    @property
    def objective(self) -> Objective:
        """G's loss."""
        return self.attack.objective

    @property
    def discriminator(self) -> nn.Module | None:
        """D; None in stage net."""
        return self.attack.objective.discriminator

    def gradients(self, batches: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        """Accumulate the gradients of G (and D) over micro batches of HR; the host never waits for the device.

        Args:
            batches: ``rank_info.accumulate`` micro batches, each (N, 3, H, W) in [0, 1].
            step: number of optimizer steps done in this stage.

        Returns:
            Scalars on the device, means over the micro batches: "loss" (G's weighted sum on the adversarial LR), its
            terms, "lr_psnr" (dB, LR against clean LR), and in stage gan "discriminator", "real_logit" and "fake_logit".
            With a factor on the radii, also "radius_factor", as it was in this step.
            If the strategy ascends, also "loss_clean" ("loss" on the clean LR; "loss_start" on the ascent's start, if
            that is degraded) and "loss_gain" (their difference).
        """
        metrics = []
        for micro, hr in enumerate(batches):
            draws = self.draws(hr, step, micro)
            metrics.append(self.micro_gradients(hr, draws, len(batches), last=micro == len(batches) - 1))
        return {name: torch.stack([values[name] for values in metrics]).mean() for name in metrics[0]}

    def micro_gradients(
        self, hr: Tensor, draws: Iterable[Any], micro_batches: int = 1, *, last: bool = True
    ) -> dict[str, Tensor]:
        """Accumulate the gradients of one micro batch. Nothing is random, so it can be captured in a CUDA graph.

        Args:
            hr: (N, 3, H, W) in [0, 1].
            draws: from :meth:`draws`.
            micro_batches, last: see :meth:`train`.

        Returns:
            The scalars of :meth:`gradients`.
        """
        batch = self.attack_batch(hr, draws)
        values = self.train(hr, batch.lr, batch.targets, micro_batches, last=last)
        if len(batch.losses):
            start = batch.losses[0].float()
            values["loss_clean" if self.strategy.starts_clean else "loss_start"] = start
            values["loss_gain"] = values["loss"] - start
        values["lr_psnr"] = mean_psnr(batch.lr, batch.clean)
        if self.attack.radius_factor is not None:
            values["radius_factor"] = self.attack.radius_factor
        return values

    def draws(self, hr: Tensor, step: int, micro: int = 0) -> Iterator[Any]:
        """Sub-step 1: draw what is random in a micro batch, such as identity networks, chunk by chunk."""
        for images in self.attack.settings.chunks(hr.shape[0]):
            yield self._draw(hr, step, micro, images)

    def _draw(self, hr: Tensor, step: int, micro: int, images: range) -> Any:
        with self.span("identity"):
            seed, shard = self.rank_info.step_seed(step), self.rank_info.shard(micro)
            return self.strategy.draw(self.attack, hr, seed, chunk=images, shard=shard)

    def adversarial_batch(self, hr: Tensor, step: int, micro: int = 0) -> AdversarialBatch:
        """Sub-steps 1 and 2: draw, such as identity networks, and attack."""
        return self.attack_batch(hr, self.draws(hr, step, micro))

    def attack_batch(self, hr: Tensor, draws: Iterable[Any]) -> AdversarialBatch:
        """Sub-step 2, chunk by chunk: theta is the largest tensor of a step, so chunks bound peak memory.

        Images are attacked independently, so chunking changes only rounding where the loss is a mean over images. It
        does change results with a D that depends on the batch: through batch statistics and relativistic losses.
        """
        search = self.search or partial(self.strategy.search, self.attack)
        chunks = self.attack.settings.chunks(hr.shape[0])
        lr, clean, losses = [], [], []
        for images, draw in zip(chunks, draws, strict=True):
            part = hr[images.start : images.stop]
            with self.span("ascent"):
                targets, result = search(part, draw)
            with self.span("degradation"):
                degraded = self.strategy.degrade(self.attack, part, result)
            lr.append(degraded[0])
            clean.append(degraded[1])
            losses.append(result.losses * (len(images) / max(hr.shape[0], 1)))  # a copy: a replay overwrites its own
            del draw, result  # freed before the next chunk
        if len(chunks) > 1:
            del targets
            with self.span("ascent"):
                targets = self.attack.targets(hr)
        return AdversarialBatch(torch.cat(lr), torch.cat(clean), targets, torch.stack(losses).sum(0))

    def train(
        self, hr: Tensor, lr: Tensor, targets: Targets, micro_batches: int = 1, *, last: bool = True
    ) -> dict[str, Tensor]:
        """Sub-steps 3 and 4: accumulate the gradients of G on LR, and of D on HR and SR.

        Args:
            hr: (N, 3, H, W) in [0, 1].
            lr: (N, 3, H / scale, W / scale).
            targets: the objective's, for ``hr``.
            micro_batches: number of micro batches that the gradients are a mean over.
            last: whether this is the last of them, after which DDP averages gradients.

        Returns:
            Detached scalars: the loss and its terms, and D's.
        """
        if self.discriminator is None:
            return self._train_generator(lr, targets, micro_batches, last)[1]
        if self.attack.reuse.discriminator_pass:
            return self._train_together(hr, lr, targets, micro_batches, last)
        sr, values = self._train_generator(lr, targets, micro_batches, last)
        return values | self._train_discriminator(hr, sr.detach(), micro_batches, last)

    def span(self, name: str) -> AbstractContextManager[None]:
        """A named phase: a profiler span, timed if there is a timer."""
        return span(name) if self.timer is None else self.timer.span(name)

    def _train_generator(
        self, lr: Tensor, targets: Targets, micro_batches: int, last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sub-step 3: compute SR and accumulate G's gradients, through a frozen D."""
        model = self.generator_parallel or self.generator
        with self.span("generator"), _gradient_sync(model, last), frozen(self.discriminator):
            with self.attack.autocast_context(lr):
                sr = model(lr)
                terms = self.objective.terms(sr, targets)
                loss = self.objective.total(terms)
            self.scale_loss(loss / micro_batches).backward()
        return sr, _detached(loss, terms)

    def _train_discriminator(self, hr: Tensor, sr: Tensor, micro_batches: int, last: bool) -> dict[str, Tensor]:
        """Sub-step 4: accumulate D's gradients, on HR as real and SR as fake."""
        model = self.discriminator_parallel or self.discriminator
        assert model is not None
        with self.span("discriminator"), _gradient_sync(model, last):
            with self.attack.autocast_context(hr):
                real, fake = model(hr), model(sr)
            loss, values = self._discriminator_loss(real, fake)
            self.scale_loss(loss / micro_batches).backward()
        return values

    def _train_together(
        self, hr: Tensor, lr: Tensor, targets: Targets, micro_batches: int, last: bool
    ) -> dict[str, Tensor]:
        """Sub-steps 3 and 4 with a shared forward pass of D: its gradient to SR trains G, those to weights train D.

        D sees HR before SR, as in sub-step 4, so that its running statistics are updated in the same order.
        """
        generator = self.generator_parallel or self.generator
        discriminator = self.discriminator_parallel or self.discriminator
        assert discriminator is not None
        with _gradient_sync(generator, last), _gradient_sync(discriminator, last):
            with self.span("discriminator"), self.attack.autocast_context(hr):
                real = discriminator(hr)
            with self.span("generator"):
                with self.attack.autocast_context(lr):
                    sr = generator(lr)
                    cut = sr.detach().requires_grad_()  # so that G's part of the graph is freed by its own backward
                    seen = cut.view_as(cut)  # a view, because of torch's flop counter, see ascend
                    fake = discriminator(seen)
                    terms = self.objective.terms(seen, targets, fake)
                    loss = self.objective.total(terms)
                sr_grad = torch.autograd.grad(self.scale_loss(loss / micro_batches), cut, retain_graph=True)
                sr.backward(sr_grad[0])
                values = _detached(loss, terms)
                del loss, terms, sr, seen
            with self.span("discriminator"):
                loss, discriminator_values = self._discriminator_loss(real, fake)
                weights = [weight for weight in discriminator.parameters() if weight.requires_grad]
                self.scale_loss(loss / micro_batches).backward(inputs=weights)
        return values | discriminator_values

    def _discriminator_loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """D's loss from its logits, and its metrics."""
        assert self.objective.gan_loss is not None
        loss = self.objective.gan_loss.discriminator(real, fake)
        return loss, {
            "discriminator": loss.detach(),
            "real_logit": real.detach().float().mean(),
            "fake_logit": fake.detach().float().mean(),
        }


def _detached(loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}


def first_nonfinite(values: Mapping[str, float]) -> str | None:
    """The name of the first value that is infinite or NaN."""
    return next((name for name, value in values.items() if not np.isfinite(value)), None)


@contextmanager
def _gradient_sync(model: nn.Module, last: bool) -> Iterator[None]:
    """Let DDP average gradients only in the last micro batch."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield
