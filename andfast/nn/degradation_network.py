"""The degradation network F and its parameters theta (paper, section 3.1).

F holds no parameters: a fresh theta comes in at every call, every image with one of its own, because the expectation of
equation 1 stands outside of its maximum.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from andfast.functional import blur_pool, degradation_block
from andfast.nn.closed_form import ClosedFormIdentity, merged

BLOCKS_EACH_SIDE = 5
"""Basic blocks before, and after, the pooling."""


class Theta(NamedTuple):
    """The parameters of N degradation networks, in the order of the layers.

    Attributes:
        weights: 11 tensors (N, Cout, Cin, 3, 3): ten blocks' and the last plain convolution's.
        noises: 10 tensors (N, C, H, W), or (N, 1, H, W); five of HR's height and width, five of LR's.
        slopes: 10 tensors (N,), or (N, C) with one slope a channel.
    """

    weights: tuple[Tensor, ...]
    noises: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]

    def tensors(self) -> Iterator[Tensor]:
        """All tensors, group after group."""
        for group in self:
            yield from group

    def rebuild(self, tensors: Iterator[Tensor]) -> Self:
        """The same structure over other tensors, given in the order of :meth:`tensors`."""
        return type(self)(*(tuple(next(tensors) for _ in group) for group in self))

    def each_image(self, images: int) -> Self:
        """One network an image: with N networks for a multiple of N images, each serves as many consecutive ones.

        Raises:
            ValueError: ``images`` is no multiple of the number of networks.
        """
        networks = self.weights[0].shape[0]
        if networks == images:
            return self
        if networks == 0 or images % networks:
            raise ValueError(f"theta must have as many networks as images, {images}, or a divisor, had {networks}")
        repeats = images // networks
        return self.rebuild(one.repeat_interleave(repeats, 0) for one in self.tensors())

    def detach(self) -> Self:
        """The same values, cut off from the graph that computed them."""
        return self.rebuild(one.detach() for one in self.tensors())


class DegradationNetwork(nn.Module):
    """F: five basic blocks, one anti-aliased pooling by ``scale``, five more blocks, one plain 3x3 convolution.

    Args:
        scale: pooling factor, HR's size over LR's: 2, 3 or 4.
        padding: of the convolutions, "replicate" or "zeros". Zeros leave coloured frames that an adversary exploits.
        smallest_slope: a lower bound of the slopes' absolute values that the caller vouches for, such as
            :attr:`andfast.adversary.Ball.smallest_slope`; from 0.5 on the slopes' gradients take less memory, see
            :func:`andfast.functional.degradation_block`.
        impl: implementation of the ops, "auto" or a name, see :mod:`andfast.functional`.
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

        Theta may have fewer networks than there are images: each then serves N / networks consecutive images.

        Raises:
            ValueError: theta has another number of layers than F, or a tensor's shape does not fit.
        """
        layers = 2 * BLOCKS_EACH_SIDE
        found = tuple(len(group) for group in theta)
        if found != (layers + 1, layers, layers):
            raise ValueError(
                f"theta must have {layers + 1} weights, {layers} noises and {layers} slopes, had "
                f"{found[0]}, {found[1]} and {found[2]}"
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
        # A slope of one makes the activation the identity: the last convolution is a block without it and its noise.
        one = torch.ones((), device=x.device)
        return degradation_block(x, theta.weights[layers], one, padding=self.padding, impl=self.impl)

    def closed_form_first_step(self, hr: Tensor, theta: Theta) -> Tensor:
        """The same as :meth:`forward` where theta is a fresh identity, without a convolution, forward or backward.

        LR is ``blur_pool(hr)``, and the gradients come in closed form, see :mod:`andfast.nn.closed_form`. That theta
        is one that :func:`andfast.adversary.sample_identity` drew is not checked: the host would wait for the device.

        Args:
            hr: as of :meth:`forward`, in the dtype that LR will have.
            theta: identity networks.
        """
        theta = theta.each_image(hr.shape[0])
        before, after = merged(theta.weights, torch.promote_types(hr.dtype, torch.float32))
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
        named = f"scale={self.scale}, padding={self.padding!r}, smallest_slope={self.smallest_slope}"
        return f"{named}, impl={self.impl!r}"
