"""Attacks on one photograph: every step of the ascent, each group only, other radii."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from andfast.adversary import Attack, Ball, ConvolutionRadii, project, seeded_generator
from andfast.adversary.calibration import AttackedImage, Calibration, calibrate, scaled
from andfast.inference.padding import restore_padded
from andfast.losses import l1_loss
from andfast.metrics.psnr import mean_psnr
from andfast.nn import Theta
from andfast.training.scoring import values

_SEED = 2**30
"""A step that no training reaches, so that the gallery's draws are its own."""
_RANDOM = 1


class Case(NamedTuple):
    """One way of degrading the photograph.

    Attributes:
        section, name: where it stands in the gallery.
        radii: of the ball, by name, at the photograph's size.
        lr: (3, H / scale, W / scale) in [0, 1].
        sr: G's output for LR padded by replication, (3, H, W), not clamped.
        lr_psnr: dB over all channels against the clean LR.
        loss: L1 of SR.
        loss_gain: over the loss on the identity network's LR.
        sr_psnr_y: dB on Y of SR, as 8 bits, against HR.
    """

    section: str
    name: str
    radii: dict[str, float]
    lr: Tensor
    sr: Tensor
    lr_psnr: float
    loss: float
    loss_gain: float
    sr_psnr_y: float

    def numbers(self) -> dict[str, Any]:
        """All but the pictures, for JSON."""
        values = self._asdict()
        return {name: value for name, value in values.items() if name not in ("lr", "sr")}


@dataclass(frozen=True)
class Degrader:
    """An attack on one photograph.

    Attributes:
        attack: of any batch size; its generator is in eval mode.
        hr: (1, 3, H, W) in [0, 1], on the generator's device; H and W multiples of the scale.
        seed: of the identity networks and of the random perturbation.
        networks: identity networks over which calibrations average.
    """

    attack: Attack
    hr: Tensor
    seed: int = 0
    networks: int = 4

    def __post_init__(self) -> None:
        if self.hr.dim() != 4 or self.hr.shape[:2] != (1, 3):
            raise ValueError(f"hr must have shape (1, 3, H, W), was {tuple(self.hr.shape)}")
        if self.networks < 1:
            raise ValueError(f"networks must be at least 1, was {self.networks}")

    @property
    def ball(self) -> Ball:
        """The attack's ball at the photograph's size."""
        return self.attack.settings.for_size(self.hr.shape[2], self.hr.shape[3]).ball

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the ball's radii that are above 0."""
        return tuple(name for name, radius in zip(self.ball.names, self.ball.radii, strict=True) if radius > 0)

    def cases(self, factors: Sequence[float] = (0.25, 0.5, 2.0, 4.0)) -> Iterator[Case]:
        """All cases, one after the other: the identity network first, always of the same identity network.

        Args:
            factors: on all radii, of the section "other radii".
        """
        identity = self._identity(1)
        nothing = scaled(self.ball, 0.0)
        first = self._case("ascent", "identity", nothing, identity, None)
        yield first
        yield self._case("ascent", "random", self.ball, self.random(identity), first.loss)
        for number, theta in enumerate(self.path(identity), start=1):
            yield self._case("ascent", f"step {number}", self.ball, theta, first.loss)
        for group in self.groups:
            ball = scaled(self.ball, 1.0, [group])
            theta = self.search(identity, ball)
            yield self._case("one group alone", f"{group} only", ball, theta, first.loss)
        for factor in factors:
            ball = scaled(self.ball, factor)
            yield self._case("other radii", f"radii x {factor:g}", ball, self.search(identity, ball), first.loss)

    def random(self, identity: Theta) -> Theta:
        """A random perturbation: every group goes its radius in a direction of its own; a joint ball's all together."""
        generator = seeded_generator(self.hr.device, self.seed, _SEED, _RANDOM)
        direction = identity.rebuild(
            torch.randn(tensor.shape, generator=generator, device=tensor.device, dtype=tensor.dtype)
            for tensor in identity.tensors()
        )
        return project(self.ball.move(identity, direction, 1.0, identity=identity), identity, self.ball)

    def path(self, identity: Theta) -> list[Theta]:
        """Theta after each step of one ascent."""
        thetas: list[Theta] = []
        self.search(identity, self.ball, thetas.append)
        return thetas

    def search(self, identity: Theta, ball: Ball, callback: Callable[[Theta], None] | None = None) -> Theta:
        """The network that the attack finds in a ball; ``callback`` is called with theta after each step."""
        attack = replace(self.attack, settings=replace(self.attack.settings, ball=ball))
        return attack.search(self.hr, identity, callback)[1].theta

    def calibrate(
        self,
        target: float,
        groups: Collection[str] | None = None,
        *,
        tolerance: float = 0.1,
        report: Callable[[float, float], None] = lambda factor, lr_psnr: None,
    ) -> tuple[Ball, Calibration]:
        """Radii at ``patch_size`` under which the adversary takes LR to a PSNR, on average over identity networks.

        Args:
            target: dB against the clean LR.
            groups: names of the radii that count (None: all); the others are 0.
            tolerance: dB.
            report: called with every factor and its PSNR.

        Returns:
            The adversary's ball with these groups' radii times the resulting factor, and that factor.

        Raises:
            ValueError: no factor gives this PSNR.
        """
        drawn = self._identity(self.networks)
        identities = [drawn.rebuild(tensor[n : n + 1] for tensor in drawn.tensors()) for n in range(self.networks)]
        images = [AttackedImage(self.hr, identity) for identity in identities]
        return calibrate(self.attack, images, target, groups, tolerance=tolerance, report=report)

    def _identity(self, networks: int) -> Theta:
        generator = seeded_generator(self.hr.device, self.seed, 0, _SEED)
        return self.attack.sample(self.hr.expand(networks, -1, -1, -1), generator)

    @torch.no_grad()
    def _case(self, section: str, name: str, ball: Ball, theta: Theta, clean_loss: float | None) -> Case:
        lr, clean = self.attack.degrade(self.hr, theta)
        with self.attack.autocast_context(lr):
            multiple = getattr(self.attack.generator, "unshuffle", 1)
            sr = restore_padded(self.attack.generator, lr, multiple=multiple).float()
        loss = float(l1_loss(sr, self.hr))
        scale = self.attack.degradation.scale
        border = scale if min(self.hr.shape[2:]) > 2 * scale + 11 else 0
        quality = values(sr[0], self.hr[0], crop_border=border)["psnr_y"]
        return Case(
            section,
            name,
            dict(zip(ball.names, ball.radii, strict=True)),
            lr[0].cpu(),
            sr[0].cpu(),
            float(mean_psnr(lr, clean)),
            loss,
            0.0 if clean_loss is None else loss - clean_loss,
            quality,
        )


def configuration_lines(ball: Ball, patch_size: int) -> str:
    """The radii as the lines of a configuration; those of noise are for ``data.patch_size`` as it stands there."""
    if ball.joint:
        return f"adversary:\n  preset: paper\n  radius_joint: {ball.convolution:.4g}"
    split = isinstance(ball.convolution, ConvolutionRadii)
    preset = [f"  preset: {'symmetric' if split else 'calibrated'}"]
    if isinstance(ball.convolution, ConvolutionRadii) and not ball.convolution.symmetric:
        preset.append("  symmetric_kernels: false")
    if ball.zero_mean_noise != split:
        preset.append(f"  zero_mean_noise: {str(ball.zero_mean_noise).lower()}")
    rows = [f"  radius_{name}: {radius:.4g}" for name, radius in zip(ball.names, ball.radii, strict=True)]
    return "\n".join(["adversary:", *preset, *rows, "data:", f"  patch_size: {patch_size}"])


def cut(hr: Tensor, size: int, multiple: int, at: tuple[int, int] | None = None) -> Tensor:
    """A part of a picture (..., H, W): at most ``size`` pixels wide and high, or all of it if 0, in multiples.

    Args:
        at: (x, y) of its middle, as near to it as the border allows; None: the picture's middle.

    Raises:
        ValueError: the picture is smaller than one multiple, or ``at`` is outside of it.
    """
    sides = hr.shape[-2:]
    height, width = ((min(side, size) if size else side) // multiple * multiple for side in sides)
    if not height or not width:
        raise ValueError(f"the picture must be at least {multiple} pixels wide and high, was {sides[1]}x{sides[0]}")
    x, y = (sides[1] // 2, sides[0] // 2) if at is None else at
    if not (0 <= x < sides[1] and 0 <= y < sides[0]):
        raise ValueError(f"at must be inside of the picture, {sides[1]}x{sides[0]}, was {x}, {y}")
    top = min(max(y - height // 2, 0), sides[0] - height)
    left = min(max(x - width // 2, 0), sides[1] - width)
    return hr[..., top : top + height, left : left + width]
