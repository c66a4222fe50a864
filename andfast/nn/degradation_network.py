"""The degradation network F and its parameters theta (paper, section 3.1).

F has no parameters of its own: theta is an argument of each call, with one network per image, because the expectation
in equation 1 is outside of the maximum.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from andfast.functional import blur_pool, degradation_block
from andfast.nn.closed_form import ClosedFormIdentity, cumulative_maps

BLOCKS_EACH_SIDE = 5
"""Number of basic blocks before the pooling, and after it."""


class Theta(NamedTuple):
    """Parameters of N degradation networks, in layer order.

    Attributes:
        weights: 11 tensors (N, Cout, Cin, 3, 3), of ten blocks and the last plain convolution.
        noises: 10 tensors (N, C, H, W) or (N, 1, H, W); five at HR's size, five at LR's.
        slopes: 10 tensors (N,), or (N, C) with one slope per channel.
    """

    weights: tuple[Tensor, ...]
    noises: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]

    def tensors(self) -> Iterator[Tensor]:
        """All tensors: weights, noises, slopes."""
        for group in self:
            yield from group

    def rebuild(self, tensors: Iterator[Tensor]) -> Self:
        """Theta of the same structure from tensors in the order of :meth:`tensors`."""
        return type(self)(*(tuple(next(tensors) for _ in group) for group in self))

    def each_image(self, images: int) -> Self:
        """Expand theta to one network per image by repeating each of its N networks for images / N consecutive images.

        Raises:
            ValueError: ``images`` is not a multiple of the number of networks.
        """
        networks = self.weights[0].shape[0]
        if networks == images:
            return self
        if networks == 0 or images % networks:
            raise ValueError(f"theta must have as many networks as images, {images}, or a divisor, had {networks}")
        repeats = images // networks
        return self.rebuild(tensor.repeat_interleave(repeats, 0) for tensor in self.tensors())

    def detach(self) -> Self:
        """Theta with all tensors detached."""
        return self.rebuild(tensor.detach() for tensor in self.tensors())


class DegradationNetwork(nn.Module):
    """F: five basic blocks, anti-aliased pooling by ``scale``, five basic blocks, one plain 3x3 convolution.

    Args:
        scale: pooling factor, HR size over LR size: 2, 3 or 4.
        padding: padding of the convolutions, "replicate" or "zeros". Zeros leave colored frames, which an adversary
            exploits.
        smallest_slope: lower bound on the slopes' absolute values, guaranteed by the caller, such as
            :attr:`andfast.adversary.Ball.smallest_slope`; from 0.5 up, the slopes' gradients need less memory, see
            :func:`andfast.functional.degradation_block`.
        impl: implementation of the ops, see :mod:`andfast.functional`.
    """

    def __init__(
        self, scale: int = 4, *, padding: str = "replicate", smallest_slope: float = 0.0, impl: str = "auto"
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, was {scale!r}")
        self.scale = scale
        self.padding = padding
        self.smallest_slope = smallest_slope
        self.impl = impl

    def forward(self, hr: Tensor, theta: Theta) -> Tensor:
        """Degrade and downsample: HR (N, 3, H, W) in [0, 1] to LR (N, 3, H / scale, W / scale), not clamped.

        Theta may have fewer networks than there are images, see :meth:`Theta.each_image`.

        Raises:
            ValueError: theta has the wrong number of layers, or a tensor the wrong shape.
        """
        layers = 2 * BLOCKS_EACH_SIDE
        counts = tuple(len(group) for group in theta)
        if counts != (layers + 1, layers, layers):
            raise ValueError(
                f"theta must have {layers + 1} weights, {layers} noises and {layers} slopes, had "
                f"{counts[0]}, {counts[1]} and {counts[2]}"
            )
        theta = theta.each_image(hr.shape[0])
        x = hr
        for layer in range(layers):
            if layer == BLOCKS_EACH_SIDE:
                x = blur_pool(x, self.scale, impl=self.impl)
            x = degradation_block(
                x,
                theta.weights[layer],
                theta.slopes[layer],
                theta.noises[layer],
                padding=self.padding,
                smallest_slope=self.smallest_slope,
                impl=self.impl,
            )
        # The last convolution is a block without noise whose slope of 1 makes the activation the identity.
        identity_slope = torch.ones((), device=x.device)
        return degradation_block(x, theta.weights[layers], identity_slope, padding=self.padding, impl=self.impl)

    def closed_form_first_step(self, hr: Tensor, theta: Theta) -> Tensor:
        """Same as :meth:`forward` if theta is a fresh identity, without convolutions in forward and backward.

        LR is ``blur_pool(hr)``; the gradients are computed in closed form, see :mod:`andfast.nn.closed_form`. Theta
        must come from :func:`andfast.adversary.sample_identity`; this is not checked, as it would synchronize.

        Args:
            hr: see :meth:`forward`; LR has its dtype.
            theta: identity networks.
        """
        theta = theta.each_image(hr.shape[0])
        before, after = cumulative_maps(theta.weights, torch.promote_types(hr.dtype, torch.float32))
        x, last = hr, len(theta.noises)
        for part in (slice(0, BLOCKS_EACH_SIDE), slice(BLOCKS_EACH_SIDE, last + 1)):
            if part.start:
                x = blur_pool(x, self.scale, impl=self.impl)
            weights, noises, slopes = (group[part] for group in theta)
            x = ClosedFormIdentity.apply(
                x,
                self.padding,
                self.impl,
                before[part.start : part.stop + 1],
                after[part],
                (len(weights), len(noises)),
                *weights,
                *noises,
                *slopes,
            )
        return x

    def extra_repr(self) -> str:
        options = f"scale={self.scale}, padding={self.padding!r}, smallest_slope={self.smallest_slope}"
        return f"{options}, impl={self.impl!r}"
