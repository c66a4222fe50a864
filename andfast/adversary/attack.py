"""The attack on G: draw identity networks, ascend from them, degrade HR with what the ascent found (paper, figure 2).

Training, validation, the gallery and the strength benchmark all attack through this one object.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from andfast import checks
from andfast.adversary.ball import Ball
from andfast.adversary.identity import sample_identity
from andfast.adversary.objective import Objective, Targets
from andfast.adversary.pgd import Ascent, ascend
from andfast.adversary.presets import resized
from andfast.functional import blur_pool
from andfast.nn import DegradationNetwork, RRDBNet, Theta, frozen
from andfast.nn.frozen import copies

FP16_LOSS_SCALE = 2.0**16
"""Loss scale of the ascent where its gradients are fp16. They are normalised, so nothing has to be unscaled."""


@dataclass(frozen=True)
class AttackSettings:
    """Hyperparameters of the attack.

    Attributes:
        ball, steps, step_size: see :func:`andfast.adversary.ascend`.
        patch_size: side of the HR patches, in pixels, for which the ball's radii are given.
        channels, noise, noise_dtype, slope: of F's parameters, see :func:`andfast.adversary.sample_identity`.
        images_per_network: number of images that share one F; 0 for one F per batch.
        chunk_size: number of images attacked per chunk, which bounds peak memory; 0 for the whole batch.
        image_radius: "fixed", or "uniform" for a factor per network on all radii, drawn uniformly from [0, 1).
    """

    ball: Ball
    steps: int = 5
    step_size: float = 0.3
    patch_size: int = 256
    channels: int = 64
    noise: str = "full"
    noise_dtype: torch.dtype = torch.float32
    slope: str = "layer"
    images_per_network: int = 1
    chunk_size: int = 0
    image_radius: str = "fixed"

    def __post_init__(self) -> None:
        checks.one_of("image_radius", self.image_radius, ("fixed", "uniform"))

    def chunks(self, images: int) -> list[range]:
        """Split a batch into consecutive chunks, as equal as whole networks allow."""
        chunk_size = self.chunk_size if self.images_per_network else images
        if not 0 < chunk_size < images or images % self.images_per_network:
            return [range(images)]
        networks = images // self.images_per_network
        count = min(-(-images // chunk_size), networks)
        ends = [networks * number // count * self.images_per_network for number in range(count + 1)]
        return [range(*pair) for pair in pairwise(ends)]

    def for_size(self, height: int, width: int) -> "AttackSettings":
        """Settings of equal strength for HR of another size; a joint ball is kept to the letter."""
        if self.ball.joint:
            return self
        return replace(self, ball=resized(self.ball, (self.patch_size, self.patch_size), (height, width)))


@dataclass(frozen=True)
class ReuseOptions:
    """Results that are computed once and reused; see :class:`andfast.config.schema.ReuseConfig`.

    Attributes:
        closed_form_first_step: take F and its gradients at the identity in closed form in the first ascent step.
        hr_features: compute HR's features and logits once for all passes.
        cast_weights: cast G's weights to the autocast dtype once for all ascent steps.
        discriminator_pass: in the training step, one pass of D over SR serves both G's loss and D's.
    """

    closed_form_first_step: bool = True
    hr_features: bool = True
    cast_weights: bool = True
    discriminator_pass: bool = False


class Start(NamedTuple):
    """All that is random about an attack.

    Attributes:
        identity: networks, the center of the ball.
        factors: (networks,), float32, of their radii; None for 1.
    """

    identity: Theta
    factors: Tensor | None = None


class AdversarialBatch(NamedTuple):
    """LR that the attack degraded against G.

    Attributes:
        lr: (N, 3, H / scale, W / scale) in [0, 1].
        clean: LR of the identity networks, in the same shape.
        targets: the parts of G's loss that depend on HR alone.
        losses: (K,), the mean objective before each ascent step.
    """

    lr: Tensor
    clean: Tensor
    targets: Targets
    losses: Tensor


@dataclass(frozen=True)
class Attack:
    """Searches for the identity network's neighbour whose degradation G restores worst.

    Nothing is random but :meth:`start`, and the host never waits for the device, so :meth:`search` can be captured in
    a CUDA graph.

    Attributes:
        degradation: F.
        generator: G, frozen during the search.
        objective: the loss to raise; its discriminator is frozen during the search, too.
        settings: hyperparameters.
        reuse: results that are computed once and reused.
        autocast: autocast dtype of G, D and VGG; None for fp32.
        degradation_autocast: run F under autocast as well, not in fp32.
        round_lr: round the degraded LR to 8 bits.
        radius_factor: float32 scalar on the device, above 0: a factor on all radii, read by each :meth:`start`, so that
            it may change in place; None for 1.
    """

    degradation: DegradationNetwork
    generator: nn.Module
    objective: Objective
    settings: AttackSettings
    reuse: ReuseOptions = field(default_factory=ReuseOptions)
    autocast: torch.dtype | None = None
    degradation_autocast: bool = False
    round_lr: bool = False
    radius_factor: Tensor | None = None

    def sample(
        self,
        hr: Tensor,
        generator: torch.Generator | None,
        *,
        chunk: range | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Theta:
        """Draw fresh identity networks for HR.

        Args:
            hr: (N, 3, H, W); its values are not read.
            generator: source of the draw, on HR's device, seeded equally for every chunk and shard of a batch.
            chunk: the images of ``hr`` to draw for; all of them if None.
            shard: (index, count), where ``hr`` is one of ``count`` equal parts of a global batch. Shards draw disjoint
                parts of what one process would draw for the whole batch.
        """
        settings = self.settings
        networks, batch = self._networks(hr, chunk, shard)
        return sample_identity(
            networks,
            hr_size=(hr.shape[2], hr.shape[3]),
            scale=self.degradation.scale,
            channels=settings.channels,
            noise=settings.noise,
            noise_dtype=settings.noise_dtype,
            slope=settings.slope,
            generator=generator,
            device=hr.device,
            dtype=hr.dtype,
            batch=batch,
        )

    def start(
        self,
        hr: Tensor,
        generator: torch.Generator | None,
        *,
        chunk: range | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Start:
        """Draw fresh identity networks for HR, and the factors of their radii after them.

        Args:
            hr, generator, chunk, shard: see :meth:`sample`.
        """
        identity = self.sample(hr, generator, chunk=chunk, shard=shard)
        networks, (first, total) = self._networks(hr, chunk, shard)
        factors = None
        if self.settings.image_radius == "uniform":
            factors = torch.rand(total, generator=generator, device=hr.device)[first : first + networks]
        if self.radius_factor is not None:
            factors = self.radius_factor.repeat(networks) if factors is None else factors * self.radius_factor
        return Start(identity, factors)

    def _networks(self, hr: Tensor, chunk: range | None, shard: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        """The number of networks of a chunk, and (offset, total) of its networks among those of the global batch."""
        per_network = self.settings.images_per_network or hr.shape[0]
        chunk = range(hr.shape[0]) if chunk is None else chunk
        networks = hr.shape[0] // per_network
        first = chunk.start // per_network
        index, count = shard
        return chunk.stop // per_network - first, (index * networks + first, count * networks)

    def search(
        self, hr: Tensor, start: Start | Theta, callback: Callable[[Theta], None] | None = None
    ) -> tuple[Targets, Ascent]:
        """Ascend from identity networks to where frozen G restores worst, within the ball.

        Args:
            hr: (N, 3, H, W) in [0, 1].
            start: from :meth:`start`; or the identity networks alone, with factors of 1.
            callback: called with theta after each ascent step.

        Returns:
            The objective's targets for ``hr``, which the training pass needs as well, and the ascent.
        """
        with self.frozen_loss(hr) as (targets, loss):
            settings = self.settings

            def objective(theta: Theta) -> Tensor:
                return loss(self.run_degradation(hr, theta))

            def first(theta: Theta) -> Tensor:
                return loss(self.degradation.closed_form_first_step(hr, theta))

            identity, factors = (start, None) if isinstance(start, Theta) else start
            return targets, ascend(
                objective,
                identity,
                ball=settings.ball,
                steps=settings.steps,
                step_size=settings.step_size,
                loss_scale=self.loss_scale,
                factors=factors,
                first=first if self.reuse.closed_form_first_step else None,
                callback=callback,
                impl=self.degradation.impl,
            )

    @contextmanager
    def frozen_loss(self, hr: Tensor) -> Iterator[tuple[Targets, Callable[[Tensor], Tensor]]]:
        """Within this context G and D are frozen; yields the targets for HR, and the objective as a function of LR."""
        with self.frozen_losses(hr) as loss_of:
            targets = self.objective.targets(hr)
            yield targets, loss_of(hr, targets)

    @contextmanager
    def frozen_losses(self, x: Tensor) -> Iterator[Callable[[Tensor, Targets], Callable[[Tensor], Tensor]]]:
        """As :meth:`frozen_loss`, for any images on the device of x.

        Yields a function of HR and its targets; its result is the objective as a function of LR.
        """
        # A captured graph replays its own casts, so none may come from, or stay in, the autocast cache.
        with self._frozen(), self.autocast_context(x, cache_enabled=False):
            yield partial(self._loss, self._frozen_generator())

    @property
    def loss_scale(self) -> float:
        """Factor on the objective of an ascent against underflow of fp16 gradients."""
        return FP16_LOSS_SCALE if torch.float16 in (self.autocast, self.settings.noise_dtype) else 1.0

    @torch.no_grad()
    def degrade(self, hr: Tensor, theta: Theta) -> tuple[Tensor, Tensor]:
        """LR for G to restore, see :meth:`as_input`, and the clean LR, each (N, 3, H / scale, W / scale)."""
        with self.autocast_context(hr):
            lr = self.run_degradation(hr, theta).to(hr.dtype)
        return self.as_input(lr), self.clean(hr)

    def as_input(self, lr: Tensor) -> Tensor:
        """LR as G is trained on it: clamped to [0, 1], and rounded to 8 bits if so set."""
        lr = lr.clamp(0, 1)
        return lr.mul(255).round().div(255) if self.round_lr else lr

    @torch.no_grad()
    def clean(self, hr: Tensor) -> Tensor:
        """The clean LR, to which every identity network degrades HR."""
        return blur_pool(hr, self.degradation.scale, impl=self.degradation.impl)

    def targets(self, hr: Tensor) -> Targets:
        """The objective's targets for HR, as :meth:`search` returns them."""
        with frozen(self.objective.discriminator), self.autocast_context(hr):
            return self.objective.targets(hr)

    def static_tensors(self) -> Iterator[Tensor]:
        """Weights and buffers that :meth:`search` reads: a captured graph holds on to their addresses."""
        for module in (self.generator, self.objective.discriminator, self.objective.vgg):
            if module is not None:
                yield from module.parameters()
                yield from module.buffers()

    def autocast_context(self, x: Tensor, *, cache_enabled: bool = True) -> AbstractContextManager[object]:
        """Autocast in ``autocast`` on the device of x; a null context in fp32."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(x.device.type, dtype=self.autocast, cache_enabled=cache_enabled)

    def _frozen(self) -> AbstractContextManager[None]:
        return frozen(self.generator, self.objective.discriminator)

    def _loss(self, restore: Callable[[Tensor], Tensor], hr: Tensor, targets: Targets) -> Callable[[Tensor], Tensor]:
        """The objective of frozen networks as a function of LR, with G as ``restore``."""

        def loss(lr: Tensor) -> Tensor:
            sr = restore(lr)
            known = targets if self.reuse.hr_features else self.objective.targets(hr)
            return self.objective.total(self.objective.terms(sr, known))

        return loss

    def _frozen_generator(self) -> Callable[[Tensor], Tensor]:
        """G for the ascent steps, which do not change its weights: cast and packed once for all of them."""
        options: dict[str, Callable[[Tensor], Tensor]] = {}
        packed = False
        if isinstance(self.generator, RRDBNet) and self.reuse.cast_weights:
            weight = self.generator.conv_first.weight
            body = self.generator.frozen_body(weight.device, self.autocast or weight.dtype)
            packed = body is not None
            if body is not None:
                options["body"] = body
        if self.autocast is None or not self.reuse.cast_weights:
            return partial(self.generator, **options)
        names, weights = [], []
        for prefix, module in self.generator.named_modules():
            if packed and prefix.startswith("body."):
                continue  # packed already
            if isinstance(module, nn.Conv2d | nn.Linear):  # the layers whose weights autocast casts
                for name, parameter in module.named_parameters(prefix, recurse=False):
                    names.append(name)
                    weights.append(parameter)
        cast = dict(zip(names, copies(weights, self.autocast), strict=True))
        return lambda lr: functional_call(self.generator, cast, (lr,), options)

    def run_degradation(self, hr: Tensor, theta: Theta) -> Tensor:
        """F in its own precision: LR (N, 3, H / scale, W / scale), not clamped."""
        if self.autocast is None or self.degradation_autocast:
            return self.degradation(hr, theta)
        with torch.autocast(hr.device.type, enabled=False):
            return self.degradation(hr, theta)
