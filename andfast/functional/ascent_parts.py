"""Orthogonal parts of a group of the ascent step: linear subspaces, each with a radius of its own.

A group without parts is one vector per image. :class:`KernelParts` splits the change of convolutions by what it does
to a picture, :class:`ZeroMean` keeps the part of noise maps that moves no mean. Both are orthogonal projections: a
part's projection of the gradient is the gradient with respect to that part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelParts:
    """Three parts of a change d of 3x3 convolutions around their centers, tensors (N, O, I, 3, 3).

    With W0 (O, I) the center taps of ``centers`` in one image and layer, and t a tap::

        color   m[o, i]              the mean of d[o, i, :] over its taps: sums of kernels
        kernel  W0[o, i] k[t]        sum of k zero, k by least squares: one kernel for all channels of a layer
        rest    d - color - kernel   a kernel of sum zero per pair of channels

    They are orthogonal, and their sum is d. Where W0 is zero the kernel part is zero.

    Attributes:
        symmetric: keep the point-symmetric half (d + flipped d) / 2 of kernel and rest alone. The antisymmetric half,
            which shifts a picture by parts of a pixel, is then in no part. The color part has no such half.
    """

    symmetric: bool = True
    names: ClassVar[tuple[str, ...]] = ("color", "kernel", "rest")

    def check(self, name: str, tensor: Tensor) -> None:
        """Check the shape of a tensor of the group; the error names it."""
        if tensor.dim() != 5 or tensor.shape[3:] != (3, 3):
            raise ValueError(f"{name} must have shape (N, O, I, 3, 3) with KernelParts, was {tuple(tensor.shape)}")

    def split(self, d: Tensor, center: Tensor) -> tuple[Tensor, ...]:
        """The parts of d (N, O, I, 3, 3), each in its shape."""
        if self.symmetric:
            d = (d + d.flip(-2, -1)) / 2
        color = d.mean((-2, -1), keepdim=True).expand_as(d)  # (N, O, I, 3, 3)
        w0 = center[..., 1:2, 1:2].to(d.dtype)  # (N, O, I, 1, 1)
        power = w0.square().sum((1, 2), keepdim=True)  # (N, 1, 1, 1, 1)
        k = (w0 * d).sum((1, 2), keepdim=True) / torch.where(power == 0, 1, power)  # (N, 1, 1, 3, 3)
        kernel = w0 * (k - k.mean((-2, -1), keepdim=True))
        return color, kernel, d - color - kernel


@dataclass(frozen=True)
class ZeroMean:
    """The part of maps (N, C, ...) whose mean per image and channel is zero."""

    names: ClassVar[tuple[str, ...]] = ("zero mean",)

    def check(self, name: str, tensor: Tensor) -> None:
        """Check the shape of a tensor of the group; the error names it."""
        if tensor.dim() < 3:
            raise ValueError(f"{name} must have shape (N, C, ...) with ZeroMean, was {tuple(tensor.shape)}")

    def split(self, d: Tensor, center: Tensor) -> tuple[Tensor, ...]:
        """The part of d (N, C, ...); ``center`` is not read."""
        return (d - d.mean(tuple(range(2, d.dim())), keepdim=True),)


Parts = KernelParts | ZeroMean | None
"""Parts of one group; None: the group is one part."""


def count(parts: Parts) -> int:
    """Number of parts, and so of radii, of a group."""
    return 1 if parts is None else len(parts.names)


def check_parts(parts: Sequence[Parts], groups: Sequence[Sequence[Tensor]]) -> None:
    """Check that there are parts for each group, and that its tensors fit them.

    Raises:
        ValueError, TypeError: otherwise.
    """
    if len(parts) != len(groups):
        raise ValueError(f"parts must have one entry per group of values, {len(groups)}, had {len(parts)}")
    for index, (description, group) in enumerate(zip(parts, groups, strict=True)):
        if not isinstance(description, KernelParts | ZeroMean | None):
            raise TypeError(f"parts[{index}] must be KernelParts, ZeroMean or None, was {type(description).__name__}")
        for position, tensor in enumerate(group):
            if description is not None:
                description.check(f"values[{index}][{position}]", tensor)
