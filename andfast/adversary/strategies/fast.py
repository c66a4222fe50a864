"""A cheaper attack: a pass over each quarter of the picture, in place of five over all of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

import torch
from torch import Tensor

from andfast.adversary.attack import Attack, Start
from andfast.adversary.ball import Ball, ConvolutionRadii
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

    Kernels and slopes are global, so a quarter tells their gradient. Before each pass they are one step of a whole
    radius from the identity, along the sum of the gradients so far (dual averaging, Xiao 2010). Noise maps are local:
    each quarter's pass gives their gradient there, and all of them move once, at the end. The passes together cost as
    much of G as one over the picture.

    At the identity the loss may rise towards both blur and sharpening, and its gradient often leads to the lower
    maximum. So where the ball has a kernel part, the first pass is at :func:`sharpened` kernels.

    The attack's steps and step size do not apply. Its discriminator, which sees whole pictures, is left out of the
    ascent: in stage gan it maximizes the content loss.
    """

    starts_clean = False

    def search(self, attack: Attack, hr: Tensor, draw: Start) -> tuple[Targets, Ascent]:
        """Ascend from the drawn networks. The only loss is the mean over quarters before each one's pass."""
        identity, factors = draw
        ball, scale = attack.settings.ball, attack.degradation.scale
        step = partial(ball.step, step_size=1.0, factors=factors, impl=attack.degradation.impl)
        content = replace(attack, objective=replace(attack.objective, discriminator=None, gan_loss=None))
        form = layout.memory_format(hr)
        targets = attack.targets(hr)
        total = Theta(
            tuple(torch.zeros_like(weight) for weight in identity.weights),
            tuple(torch.zeros_like(noise, memory_format=form) for noise in identity.noises),
            tuple(torch.zeros_like(slope) for slope in identity.slopes),
        )
        theta = sharpened(identity, ball, factors)
        losses: list[Tensor] = []
        windows = quarters(hr.shape[2] // scale, hr.shape[3] // scale)
        area = sum(window.area for window in windows)
        with content.frozen_losses(hr) as loss_of:
            for number, window in enumerate(windows):
                share = window.area / area
                part, center = window.of(hr, scale).contiguous(memory_format=form), _crop(identity, window, scale)
                loss = loss_of(part, content.objective.targets(part))
                at_identity = theta is identity and attack.reuse.closed_form_first_step
                degrade = attack.degradation.closed_form_first_step if at_identity else attack.run_degradation
                own = center._replace(weights=theta.weights, slopes=theta.slopes)
                value, gradient = loss_and_gradient(_composed(loss, degrade, part), own, attack.loss_scale * share)
                losses.append(value * share)
                for whole, seen in zip(_crop(total, window, scale).tensors(), gradient.tensors(), strict=True):
                    whole.add_(seen)
                if number < len(windows) - 1:
                    theta = step(center, total._replace(noises=gradient.noises), center)
                del own, gradient
        return targets, Ascent(step(identity, total, identity), torch.stack(losses).sum()[None])


def sharpened(identity: Theta, ball: Ball, factors: Tensor | None = None) -> Theta:
    """Identity networks whose convolutions all sharpen: each weight w (O, I, 3, 3) gains a multiple of w - mean tap.

    The change's length is the square of the kernel part's radius, at most the radius. So networks with a small radius
    stay near the identity, whose gradient is right for them.

    Args:
        identity: N networks.
        ball: its kernel part's radius is used; if it has none, the result is ``identity``.
        factors: (N,): a factor per network on all radii; None for 1.
    """
    if not isinstance(ball.convolution, ConvolutionRadii) or not ball.convolution.kernel:
        return identity
    changes = [weight - weight.mean((-2, -1), keepdim=True) for weight in identity.weights]
    length = torch.stack([torch.linalg.vector_norm(change, dim=(1, 2, 3, 4)) for change in changes]).norm(dim=0)  # (N,)
    radius = ball.convolution.kernel * (torch.ones_like(length) if factors is None else factors)
    amount = (radius * radius.clamp(max=1) / length).to(length.dtype).view(-1, 1, 1, 1, 1)
    pairs = zip(identity.weights, changes, strict=True)
    return identity._replace(weights=tuple(weight + amount * change for weight, change in pairs))


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
    return theta._replace(
        noises=tuple(window.of(n, scale if k < BLOCKS_EACH_SIDE else 1) for k, n in enumerate(theta.noises))
    )
