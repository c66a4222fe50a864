"""A cheaper attack: a pass over each quarter of the picture, in place of five over all of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import torch
from torch import Tensor

from andfast.adversary.attack import Attack, Start
from andfast.adversary.ball import project
from andfast.adversary.objective import Targets
from andfast.adversary.pgd import Ascent, loss_and_gradient
from andfast.adversary.strategies.pgd import PGD
from andfast.functional import layout
from andfast.nn import Theta
from andfast.nn.degradation_network import BLOCKS_EACH_SIDE

SMALLEST_WINDOW: Final = 8
"""Sides that would leave a window fewer LR pixels than this are not divided."""


class Window(NamedTuple):
    """Rows and columns of LR, half-open."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        """Pixels of LR."""
        return (self.bottom - self.top) * (self.right - self.left)

    def of(self, x: Tensor, scale: int = 1) -> Tensor:
        """A view of this part of x (N, C, H, W), whose sides are ``scale`` times LR's."""
        return x[..., self.top * scale : self.bottom * scale, self.left * scale : self.right * scale]


@dataclass(frozen=True)
class FastPGD(PGD):
    """Projected gradient ascent whose passes see one quarter of the picture each; docs/method.md has its strength.

    Kernels and slopes are global, so a part of the picture tells their gradient: they make a step of a whole radius in
    each pass. Noise maps are local: a pass moves those of its quarter, within the quarter's share of their radius. All
    passes together cost as much of G as one pass over the picture.

    The attack's steps and step size do not apply. Its discriminator, which sees whole pictures, is left out of the
    ascent: in stage gan it maximizes the content loss.
    """

    starts_clean = False

    def search(self, attack: Attack, hr: Tensor, draw: Start) -> tuple[Targets, Ascent]:
        """Ascend from the drawn networks. The only loss is the mean over quarters before each one's pass."""
        identity, factors = draw
        ball, scale = attack.settings.ball, attack.degradation.scale
        content = replace(attack, objective=replace(attack.objective, discriminator=None, gan_loss=None))
        form = layout.memory_format(hr)
        theta = identity._replace(noises=tuple(noise.clone(memory_format=form) for noise in identity.noises))
        targets = attack.targets(hr)
        losses: list[Tensor] = []
        windows = quarters(hr.shape[2] // scale, hr.shape[3] // scale)
        picture = hr.shape[2] * hr.shape[3] // scale**2
        with content.frozen_losses(hr) as loss_of:
            for number, window in enumerate(windows):
                part = window.of(hr, scale).contiguous(memory_format=form)
                own = _crop(theta, window, scale)
                own = own._replace(noises=tuple(noise.contiguous(memory_format=form) for noise in own.noises))
                loss = loss_of(part, content.objective.targets(part))
                at_identity = number == 0 and attack.reuse.closed_form_first_step
                degrade = attack.degradation.closed_form_first_step if at_identity else attack.run_degradation
                value, gradient = loss_and_gradient(_composed(loss, degrade, part), own, attack.loss_scale)
                losses.append(value * (window.area / picture / len(windows) * len(set(windows))))
                share = ball.with_radii({"noise": ball.noise * math.sqrt(window.area / picture)})
                center, impl = _crop(identity, window, scale), attack.degradation.impl
                moved = share.step(own, gradient, center, 1.0, factors=factors, impl=impl)
                del own, gradient
                theta = _merge(theta, moved, window, scale)
        if ball.joint:  # each pass kept its own quarter and the global parts inside, not all of them together
            theta = project(theta, identity, ball, factors)
        return targets, Ascent(theta, torch.stack(losses).sum()[None])


def quarters(height: int, width: int) -> list[Window]:
    """The quarters of LR, opposite ones in succession.

    Divided sides have an even first half, as networks for x2 fold pixels in pairs. A side below twice
    :data:`SMALLEST_WINDOW` is not divided: windows then repeat.
    """

    def halves(side: int) -> tuple[tuple[int, int], tuple[int, int]]:
        middle = side // 4 * 2
        return ((0, side), (0, side)) if side < 2 * SMALLEST_WINDOW else ((0, middle), (middle, side))

    rows, columns = halves(height), halves(width)
    return [Window(*rows[row], *columns[column]) for row, column in ((0, 0), (1, 1), (0, 1), (1, 0))]


def _composed(
    loss: Callable[[Tensor], Tensor], degrade: Callable[[Tensor, Theta], Tensor], hr: Tensor
) -> Callable[[Theta], Tensor]:
    """The loss as a function of theta."""
    return lambda theta: loss(degrade(hr, theta))


def _crop(theta: Theta, window: Window, scale: int) -> Theta:
    """Theta for a window of the picture; noise maps are views."""
    return theta._replace(noises=tuple(window.of(n, _factor(k, scale)) for k, n in enumerate(theta.noises)))


def _merge(theta: Theta, part: Theta, window: Window, scale: int) -> Theta:
    """``part`` as the window's part of theta, whose noise maps are overwritten."""
    for k, (noise, own) in enumerate(zip(theta.noises, part.noises, strict=True)):
        window.of(noise, _factor(k, scale)).copy_(own)
    return part._replace(noises=theta.noises)


def _factor(layer: int, scale: int) -> int:
    """Side of a layer's noise map over LR's."""
    return scale if layer < BLOCKS_EACH_SIDE else 1
