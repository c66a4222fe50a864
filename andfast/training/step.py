"""One training step: the four sub-steps of the paper's figure 2, top to bottom.

The gradients of a step are a pure function of the weights, the HR batches and (seed, stage, step): identity networks
come from a generator seeded by these, and every process draws its own part of one global batch. So a step can be run
again from a checkpoint, and splitting a batch over processes or over accumulation does not change what is learned.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from andfast.adversary import Ascent, ascend, sample_identity
from andfast.adversary.objective import Objective, Targets
from andfast.functional import blur_pool
from andfast.nn import DegradationNetwork, RRDBNet, Theta, frozen
from andfast.nn.fp8_body import Fp8Body
from andfast.nn.frozen import copies
from andfast.training.cuda_graph import CUDAGraphCallable
from andfast.training.profiling import StepTimer
from andfast.training.step_settings import AttackSettings, RankInfo, ReuseOptions

FP16_ASCENT_SCALE = 2.0**16
"""Factor on the ascent's loss where its gradients are fp16; they are normalised, so nothing has to be undone."""


class WorstCase(NamedTuple):
    """What the adversary made of a micro batch.

    Attributes:
        lr: (N, 3, H / scale, W / scale) in [0, 1], what G learns from.
        clean: the same of the identity networks.
        targets: what G's loss needs of HR.
        losses: (K,), the mean objective before each ascent pass.
    """

    lr: Tensor
    clean: Tensor
    targets: Targets
    losses: Tensor


@dataclass
class TrainingStep:
    """The networks of a stage and how a step is taken with them.

    Attributes:
        degradation: F.
        generator: G, trained.
        discriminator: D, trained (None in stage net).
        objective: G's loss, over the same D.
        adversary: the search of the worst case.
        patch_size: side of the HR crops for which the adversary's ball is meant.
        place: seeds, process and accumulation.
        autocast: dtype of the mixed-precision regions; None for fp32.
        degradation_autocast: whether F follows ``autocast``; else it runs in fp32.
        round_lr: round the training pass's LR to 8 bits.
        sharing: what is computed once and used again.
        generator_parallel, discriminator_parallel: the same networks as their gradients are averaged (DDP).
        scale_loss: of a gradient scaler, or the identity.
        stopwatch: takes the time of the sub-steps.
        capture: :meth:`find` as CUDA graphs.
    """

    degradation: DegradationNetwork
    generator: nn.Module
    objective: Objective
    adversary: AttackSettings
    patch_size: int
    place: RankInfo
    discriminator: nn.Module | None = None
    autocast: torch.dtype | None = None
    degradation_autocast: bool = False
    round_lr: bool = False
    sharing: ReuseOptions = field(default_factory=ReuseOptions)
    generator_parallel: nn.Module | None = None
    discriminator_parallel: nn.Module | None = None
    scale_loss: Callable[[Tensor], Tensor] = field(default=lambda loss: loss)
    stopwatch: StepTimer | None = None
    capture: CUDAGraphCallable | None = None

    def gradients(self, batches: Sequence[Tensor], step: int) -> dict[str, Tensor]:
        """Accumulate the gradients of G (and D) over micro batches of HR; the host never waits for the device.

        Args:
            batches: as many as ``place.accumulate``, each (N, 3, H, W) in [0, 1].
            step: number of optimizer steps done in this stage.

        Returns:
            Scalars on the device, means over the micro batches: "loss" (G's weighted sum on the adversarial case), its
            terms, "loss_clean" (the same on the identity networks), "loss_gain" (their difference), "lr_psnr" (dB,
            adversarial against clean LR), and in stage gan "discriminator", "real_logit" and "fake_logit".
        """
        found: list[dict[str, Tensor]] = []
        for micro, hr in enumerate(batches):
            last = micro == len(batches) - 1
            case = self.worst_case(hr, step, micro)
            values = self._train(hr, case.lr, case.targets, len(batches), last)
            if len(case.losses):
                values["loss_clean"] = case.losses[0].float()
                values["loss_gain"] = values["loss"] - values["loss_clean"]
            values["lr_psnr"] = psnr(case.lr, case.clean)
            found.append(values)
        return {name: torch.stack([values[name] for values in found]).mean() for name in found[0]}

    def set_part(self, rank: int, world_size: int) -> None:
        """Work on the part of the global batch that is another process's, to run its step again."""
        self.place = replace(self.place, rank=rank, world_size=world_size)

    def worst_case(self, hr: Tensor, step: int, micro: int = 0) -> WorstCase:
        """Sub-steps 1 and 2 and the LR that they end in, a group of images at a time: theta is the largest thing here.

        Every image has an ascent of its own, so groups change no more than rounding where the loss is a mean over
        images. They do where D sees batches, whose statistics and relativistic losses are then those of a group.
        """
        groups = self.adversary.groups(hr.shape[0])
        lr, clean, losses = [], [], []
        for images in groups:
            part = hr[images.start : images.stop]
            with self._part("identity"):
                identity = self.draw_identity(hr, step, micro, images)
            with self._part("ascent"), frozen(self.generator, self.discriminator):
                targets, ascent = (self.capture or self.find)(part, identity)
            with self._part("restoration"):
                degraded = self.degrade(part, ascent.theta)
            lr.append(degraded[0])
            clean.append(degraded[1])
            losses.append(
                ascent.losses * (len(images) / max(hr.shape[0], 1))
            )  # copied: a replay overwrites its results
            del identity, ascent
        if len(groups) > 1:
            del targets
            with self._part("ascent"), frozen(self.discriminator), self.mixed(hr):
                targets = self.objective.targets(hr)
        return WorstCase(torch.cat(lr), torch.cat(clean), targets, torch.stack(losses).sum(0))

    def draw_identity(self, hr: Tensor, step: int, micro: int = 0, images: range | None = None) -> Theta:
        """Sub-step 1: fresh identity networks for this process's part of the global batch, or some of its images."""
        per_network = self.adversary.images_per_network or hr.shape[0]
        images = range(hr.shape[0]) if images is None else images
        n = hr.shape[0] // per_network
        part = micro * self.place.world_size + self.place.rank
        first = images.start // per_network
        return sample_identity(
            images.stop // per_network - first,
            hr_size=(hr.shape[2], hr.shape[3]),
            scale=self.degradation.scale,
            channels=self.adversary.channels,
            noise=self.adversary.noise,
            noise_dtype=self.adversary.noise_dtype,
            slope=self.adversary.slope,
            generator=seeded_generator(hr.device, self.place.seed, self.place.stage, step),
            device=hr.device,
            dtype=hr.dtype,
            batch=(part * n + first, self.place.accumulate * self.place.world_size * n),
        )

    def find(self, hr: Tensor, identity: Theta) -> tuple[Targets, Ascent]:
        """Sub-step 2 for frozen networks, and what it needs of HR; not random, never waiting, so it can be captured."""
        with self.mixed(hr, cache=self.capture is None):  # a cast kept from before would be an old one in a replay
            targets = self.objective.targets(hr)
            return targets, self.search(hr, targets, identity)

    def frozen_tensors(self) -> Iterator[Tensor]:
        """The weights and buffers that :meth:`find` reads."""
        for module in (self.generator, self.discriminator, self.objective.vgg):
            if module is not None:
                yield from module.parameters()
                yield from module.buffers()

    def search(self, hr: Tensor, targets: Targets, identity: Theta) -> Ascent:
        """Sub-step 2: push the identity networks to where G, frozen, restores worst."""

        restore = self._frozen_generator()
        half = torch.float16 in (self.autocast, self.adversary.noise_dtype)

        def objective(theta: Theta, degrade: Callable[[Tensor, Theta], Tensor] = self._run_degradation) -> Tensor:
            sr = restore(degrade(hr, theta))
            known = targets if self.sharing.hr_features else self.objective.targets(hr)
            return self.objective.total(self.objective.terms(sr, known))

        return ascend(
            objective,
            identity,
            ball=self.adversary.ball,
            steps=self.adversary.steps,
            step_size=self.adversary.step_size,
            loss_scale=FP16_ASCENT_SCALE if half else 1.0,
            first=partial(objective, degrade=self.degradation.closed_form_first_step)
            if self.sharing.closed_form_first_step
            else None,
            impl=self.degradation.impl,
        )

    def _frozen_generator(self) -> Callable[[Tensor], Tensor]:
        """G for the passes of an ascent, which do not change its weights: they are cast once, not in every pass."""
        options = {}
        if self.adversary.precision == "fp8":  # quantised once as well
            assert isinstance(self.generator, RRDBNet)
            options["body"] = Fp8Body(self.generator, self.degradation.impl)
        if self.autocast is None or not self.sharing.cast_weights:
            return partial(self.generator, **options)
        names, weights = [], []
        for prefix, module in self.generator.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):  # those that autocast casts
                for name, one in module.named_parameters(prefix, recurse=False):
                    names.append(name)
                    weights.append(one)
        cast = dict(zip(names, copies(weights, self.autocast), strict=True))
        return lambda lr: functional_call(self.generator, cast, (lr,), options)

    @torch.no_grad()
    def degrade(self, hr: Tensor, theta: Theta) -> tuple[Tensor, Tensor]:
        """The training pass's LR, clamped to [0, 1] and rounded if asked for, and the clean LR beside it."""
        with self.mixed(hr):
            lr = self._run_degradation(hr, theta).to(hr.dtype).clamp(0, 1)
        if self.round_lr:
            lr = lr.mul(255).round().div(255)
        return lr, blur_pool(hr, self.degradation.scale, impl=self.degradation.impl)

    def _train(self, hr: Tensor, lr: Tensor, targets: Targets, micro_batches: int, last: bool) -> dict[str, Tensor]:
        """Sub-steps 3 and 4."""
        if self.discriminator is not None and self.sharing.discriminator_pass:
            return self._train_together(hr, lr, targets, micro_batches, last)
        with self._part("restoration"):
            sr, values = self._train_generator(lr, targets, micro_batches, last)
        if self.discriminator is not None:
            with self._part("discrimination"):
                values |= self._train_discriminator(hr, sr.detach(), micro_batches, last)
        return values

    def _train_generator(
        self, lr: Tensor, targets: Targets, micro_batches: int, last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sub-step 3: G's gradients on the worst case, through D as it is."""
        model = self.generator_parallel or self.generator
        with _synchronised(model, last), frozen(self.discriminator):
            with self.mixed(lr):
                sr = model(lr)
                terms = self.objective.terms(sr, targets)
                loss = self.objective.total(terms)
            self.scale_loss(loss / micro_batches).backward()
        return sr, _detached(loss, terms)

    def _train_discriminator(self, hr: Tensor, sr: Tensor, micro_batches: int, last: bool) -> dict[str, Tensor]:
        """Sub-step 4: D's gradients, on HR as real and SR as fake."""
        model = self.discriminator_parallel or self.discriminator
        assert model is not None
        with _synchronised(model, last):
            with self.mixed(hr):
                real, fake = model(hr), model(sr)
            loss, values = self._judge(real, fake)
            self.scale_loss(loss / micro_batches).backward()
        return values

    def _train_together(
        self, hr: Tensor, lr: Tensor, targets: Targets, micro_batches: int, last: bool
    ) -> dict[str, Tensor]:
        """Sub-steps 3 and 4 over one pass of D: its gradients to SR are G's, those to its weights are its own.

        D sees HR before SR, as in sub-step 4, so that its running statistics move in the same order.
        """
        generator = self.generator_parallel or self.generator
        discriminator = self.discriminator_parallel or self.discriminator
        assert discriminator is not None
        with _synchronised(generator, last), _synchronised(discriminator, last):
            with self._part("discrimination"), self.mixed(hr):
                real = discriminator(hr)
            with self._part("restoration"):
                with self.mixed(lr):
                    sr = generator(lr)
                    cut = sr.detach().requires_grad_()  # so that G's part of the graph goes as its backward does
                    seen = cut.view_as(cut)  # a view, because of torch's flop counter, see ascend
                    fake = discriminator(seen)
                    terms = self.objective.terms(seen, targets, fake)
                    loss = self.objective.total(terms)
                to_sr = torch.autograd.grad(self.scale_loss(loss / micro_batches), cut, retain_graph=True)
                sr.backward(to_sr[0])
                values = _detached(loss, terms)
                del loss, terms, sr, seen
            with self._part("discrimination"):
                loss, judged = self._judge(real, fake)
                own = [one for one in discriminator.parameters() if one.requires_grad]
                self.scale_loss(loss / micro_batches).backward(inputs=own)
        return values | judged

    def _judge(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """D's loss from its logits, and what is told of it."""
        assert self.objective.gan_loss is not None
        loss = self.objective.gan_loss.discriminator(real, fake)
        return loss, {
            "discriminator": loss.detach(),
            "real_logit": real.detach().float().mean(),
            "fake_logit": fake.detach().float().mean(),
        }

    def _run_degradation(self, hr: Tensor, theta: Theta) -> Tensor:
        if self.autocast is None or self.degradation_autocast:
            return self.degradation(hr, theta)
        with torch.autocast(hr.device.type, enabled=False):
            return self.degradation(hr, theta)

    def mixed(self, x: Tensor, *, cache: bool = True) -> AbstractContextManager[object]:
        """The autocast region of the run's precision, for the device of x."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(x.device.type, dtype=self.autocast, cache_enabled=cache)

    def _part(self, name: str) -> AbstractContextManager[None]:
        return self.stopwatch.part(name) if self.stopwatch is not None else nullcontext()


def _detached(loss: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """The mean over images of the PSNR in dB, over all channels, of values in [0, 1]."""
    error = (a.float() - b.float()).square().mean((1, 2, 3))
    return -10 * error.clamp_min(1e-20).log10().mean()


def seeded_generator(device: torch.device, *numbers: int) -> torch.Generator | None:
    """A generator on the device whose draws depend on nothing but the numbers (None on the meta device)."""
    if device.type == "meta":
        return None
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device).manual_seed(seed)


def first_nonfinite(values: Mapping[str, float]) -> str | None:
    """The name of the first value that is infinite or NaN."""
    return next((name for name, value in values.items() if not np.isfinite(value)), None)


@contextmanager
def _synchronised(model: nn.Module, last: bool) -> Iterator[None]:
    """DDP averages gradients once, in the last micro batch."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield
