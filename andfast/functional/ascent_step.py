"""One step of the adversary: up the normalised gradient, then back into the ball (paper, sections 3.4 and 4.3).

Parameters come in groups, each a list of tensors (N, ...) with a radius r of its own. For image n and a group, with d
the distance of its values from their centers and g their gradient, all tensors of the group taken as one vector::

    s      = step_size * r / |g|                    0 where the gradient is zero
    d'     = d + s g
    f      = 1 / max(1, |d'| / r)                   0 where r is 0
    values = centers + f d'

A joint ball has one length for all groups: s = step_size * r^2 / sqrt(sum of (r |g|)^2), f = 1 / max(1, sqrt(sum of
(|d'| / r)^2)), sums over the groups. The reference takes these steps one after another, nine passes over the data. As
|d'|^2 = <d, d> + 2 s <d, g> + s^2 <g, g>, the Triton implementation takes two: one that sums, one that writes.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from andfast import checks
from andfast.functional import dispatch
from andfast.kernels.ascent_step import launch as _ascent_step_triton

OP = "ascent_step"

Groups = Sequence[Sequence[Tensor]]
"""Tensors (N, ...), group after group; N is the same for all."""

dispatch.register(OP, {"triton": _ascent_step_triton.why_not, "reference": dispatch.everywhere})


@torch.no_grad()
def ascent_step(
    values: Groups,
    gradients: Groups,
    centers: Groups,
    *,
    radii: Sequence[float],
    step_size: float,
    joint: bool = False,
    impl: str = "auto",
) -> list[list[Tensor]]:
    """Go ``step_size`` radii up the gradient, an image and a group at a time, and project on the ball.

    Not differentiable. Sums are taken in float32 at least and a half type is rounded once, at the end. The host never
    waits for the device, so that a CUDA graph can capture it. A NaN or an infinity in an image's gradient makes its
    group NaN (in a joint ball: all groups of that image).

    Args:
        values: where the parameters are, floating point, any dtype for each tensor.
        gradients: of the objective that is raised, of the same shapes; their dtypes may differ from the values'.
        centers: of the ball, of the same shapes; an expanded scalar costs no memory traffic.
        radii: one a group, in the L2 norm, 0 or more; 0 puts a group back to its center.
        step_size: length of the step as a fraction of the radius, 0 or more.
        joint: one ball for all groups, not one each.
        impl: "auto", "reference" or "triton"; "triton" takes float32, bfloat16 and float16.

    Returns:
        New tensors of the values' shapes and dtypes; no argument is changed.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
        RuntimeError: ``impl`` asks for an implementation that is not available here.
    """
    _check_arguments(values, gradients, centers, radii, step_size)
    every = [one for groups in (values, gradients, centers) for group in groups for one in group]
    if not every:
        return [[] for _ in values]
    other = next((one.dtype for one in every if one.dtype not in _ascent_step_triton.DTYPES), None)
    if impl == "auto" and other is not None:
        impl = "reference"
    impl = dispatch.resolve(OP, impl, every[0].device.type)
    if impl == "triton":
        if other is not None:
            raise TypeError(f"tensors must be float32, bfloat16 or float16 with impl='triton', one was {other}")
        return _ascent_step_triton.ascent_step(values, gradients, centers, radii, step_size, joint)
    return ascent_step_reference(values, gradients, centers, radii, step_size, joint)


def ascent_step_reference(
    values: Groups,
    gradients: Groups,
    centers: Groups,
    radii: Sequence[float],
    step_size: float,
    joint: bool = False,
) -> list[list[Tensor]]:
    """The definition in plain PyTorch: :func:`move`, then :func:`project`."""
    moved = move(values, gradients, radii, step_size, joint)
    inside = project(moved, centers, radii, joint)
    return [
        [new.to(old.dtype) for new, old in zip(after, before, strict=True)]
        for after, before in zip(inside, values, strict=True)
    ]


def relative_norms(values: Groups, centers: Groups, radii: Sequence[float]) -> Tensor:
    """|d| / r, (groups, N): 1 at the border of a group's own ball.

    A group of radius 0 counts its distance as infinite unless it is exactly at the center.
    """
    rows = []
    for group, start, radius in zip(values, centers, radii, strict=True):
        length = _norm([one - zero for one, zero in zip(group, start, strict=True)])
        rows.append(length / radius if radius else torch.where(length == 0, length, length * math.inf))
    return torch.stack(rows)


def move(
    values: Groups, gradients: Groups, radii: Sequence[float], step_size: float, joint: bool = False
) -> list[list[Tensor]]:
    """values + s g, in float32 at least. A gradient of zero moves nothing."""
    lengths = torch.stack([_norm(group) * radius for group, radius in zip(gradients, radii, strict=True)])
    if joint:
        lengths = lengths.square().sum(0, keepdim=True).sqrt().expand_as(lengths)
    moved = []
    for group, slope, length, radius in zip(values, gradients, lengths, radii, strict=True):
        scaled = torch.where(length > 0, step_size * radius * radius / length, 0.0)
        pairs = [_wide(one, up) for one, up in zip(group, slope, strict=True)]
        moved.append([torch.addcmul(one, up, _like(scaled, one)) for one, up in pairs])
    return moved


def project(values: Groups, centers: Groups, radii: Sequence[float], joint: bool = False) -> list[list[Tensor]]:
    """centers + f d: shrinks what is outside of the ball, leaves what is inside bit by bit as it is.

    A group of radius 0 goes back to its center, and in a joint ball the other groups do not pay for it.
    """
    norms = relative_norms(values, centers, radii)
    zero = torch.zeros_like(norms[0])
    used = torch.stack([row if radius else zero for row, radius in zip(norms, radii, strict=True)])
    if joint:
        used = used.square().sum(0, keepdim=True).sqrt().expand_as(used)
    inside = used.clamp_min(1).reciprocal()
    factors = [row if radius else zero for row, radius in zip(inside, radii, strict=True)]
    projected = []
    for group, start, factor in zip(values, centers, factors, strict=True):
        pairs = [_wide(one, center) for one, center in zip(group, start, strict=True)]
        shrunk = [torch.lerp(center, one, _like(factor, one)) for one, center in pairs]
        projected.append([new.to(old.dtype) for new, old in zip(shrunk, group, strict=True)])
    return projected


# ---------------------------------------------------------------------------------------------- pieces of the reference


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _wide(value: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the value's dtype, or in float32 where that is a half type; one expanded number stays one in memory."""
    dtype = _wide_dtype(value)
    value, other = (
        one[(0,) * one.dim()].to(dtype).expand_as(one) if one.numel() and not any(one.stride()) else one.to(dtype)
        for one in (value, other)
    )
    return value, other


def _norm(group: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all tensors of a group, an image at a time: (N,), in float32 at least."""
    wide = _wide_dtype(group[0])
    flat = [one.unsqueeze(1) if one.dim() == 1 else one.flatten(1) for one in group]
    lengths = [torch.linalg.vector_norm(one, dim=1, dtype=wide) for one in flat]
    return torch.linalg.vector_norm(torch.stack(lengths), dim=0)


def _like(factor: Tensor, tensor: Tensor) -> Tensor:
    """A factor an image, (N,), shaped to multiply a tensor (N, ...)."""
    return factor.to(tensor.dtype).reshape((-1,) + (1,) * (tensor.dim() - 1))


# ------------------------------------------------------------------------------------------------------------ checks


def _check_arguments(
    values: Groups, gradients: Groups, centers: Groups, radii: Sequence[float], step_size: float
) -> None:
    if not (math.isfinite(step_size) and step_size >= 0):
        raise ValueError(f"step_size must be finite and 0 or more, was {step_size}")
    if len(radii) != len(values):
        raise ValueError(f"radii must be as many as groups of values, {len(values)}, were {len(radii)}")
    for radius in radii:
        if not (math.isfinite(radius) and radius >= 0):
            raise ValueError(f"radii must be finite and 0 or more, one was {radius}")
    first: Tensor | None = None
    for name, one in _named("values", values):
        checks.tensor(name, one)
        checks.floating(name, one)
        if one.dim() == 0:
            raise ValueError(f"{name} must have shape (N, ...), was a scalar")
        first = one if first is None else first
        checks.like(name, one, "values[0][0]", first, dtype=False)
        if one.shape[0] != first.shape[0]:
            raise ValueError(f"{name} must have as many images as values[0][0], {first.shape[0]}, had {one.shape[0]}")
    wanted = [len(group) for group in values]
    for name, groups in (("gradients", gradients), ("centers", centers)):
        if (found := [len(group) for group in groups]) != wanted:
            raise ValueError(f"{name} must have as many tensors in each group as values, {wanted}, had {found}")
        for (label, one), (_, like) in zip(_named(name, groups), _named("values", values), strict=True):
            checks.tensor(label, one)
            checks.floating(label, one)
            checks.like(label, one, "values[0][0]", like, dtype=False)
            checks.has_shape(label, one, like.shape, meaning="of its value")
    for number, group in enumerate(values):
        if not group:
            raise ValueError(f"values[{number}] must have one tensor or more, had none")


def _named(name: str, groups: Groups) -> Iterator[tuple[str, Tensor]]:
    for number, group in enumerate(groups):
        for place, one in enumerate(group):
            yield f"{name}[{number}][{place}]", one
