"""One step of projected gradient ascent with a normalized gradient (paper, sections 3.4 and 4.3).

Parameters come in groups, each a list of tensors (N, ...) with its own radius r. Per image and group, with d the
difference of values and centers and g the gradient, all tensors of the group taken as one vector::

    s      = step_size * r / |g|                    0 where the gradient is zero
    d'     = d + s g
    f      = 1 / max(1, |d'| / r)                   0 where r is 0
    values = centers + f d'

A joint ball shares one length between groups: s = step_size * r^2 / sqrt(sum of (r |g|)^2), f = 1 / max(1, sqrt(sum
of (|d'| / r)^2)), sums over groups. The reference takes nine passes over the data. As |d'|^2 = <d, d> + 2 s <d, g> +
s^2 <g, g>, the Triton implementation takes two: a reduction and an update.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from andfast import checks
from andfast.functional import dispatch, triton_support

OP = "ascent_step"

Groups = Sequence[Sequence[Tensor]]
"""Tensors (N, ...) by group; N is the same for all."""

dispatch.register(OP, {"triton": triton_support.why_not, "reference": dispatch.everywhere})


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
    """Take a step of ``step_size`` radii up the gradient, per image and group, and project onto the ball.

    Not differentiable. Sums are taken in at least float32, and half types are rounded once, at the end. Free of host
    synchronization, so it can be captured in a CUDA graph. A NaN or infinity in an image's gradient makes its group
    NaN (in a joint ball, all groups of that image).

    Args:
        values: current parameters, floating point; dtypes may differ between tensors.
        gradients: of the objective to maximize, with the shapes of ``values``; dtypes may differ.
        centers: of the balls, with the shapes of ``values``; an expanded scalar costs no memory traffic.
        radii: L2 radius per group, 0 or more; 0 resets a group to its center.
        step_size: step length as a fraction of the radius, 0 or more.
        joint: one ball for all groups instead of one per group.
        impl: "auto", "reference" or "triton"; "triton" takes float32, bfloat16 and float16.

    Returns:
        New tensors with the shapes and dtypes of ``values``; arguments are not modified.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
        RuntimeError: ``impl`` asks for an implementation that is not available here.
    """
    _check_arguments(values, gradients, centers, radii, step_size)
    tensors = [tensor for groups in (values, gradients, centers) for group in groups for tensor in group]
    if not tensors:
        return [[] for _ in values]
    unsupported = next((tensor.dtype for tensor in tensors if tensor.dtype not in triton_support.DTYPES), None)
    if impl == "auto" and unsupported is not None:
        impl = "reference"
    impl = dispatch.resolve(OP, impl, tensors[0].device.type)
    if impl == "triton":
        if unsupported is not None:
            raise TypeError(f"tensors must be float32, bfloat16 or float16 with impl='triton', one was {unsupported}")
        from andfast.kernels.ascent_step import kernels  # noqa: PLC0415  (imports Triton)

        return kernels.ascent_step(values, gradients, centers, radii, step_size, joint)
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
    """|d| / r, (groups, N): 1 on the boundary of a group's ball.

    For radius 0 it is infinite, unless the group is exactly at its center.
    """
    rows = []
    for group, start, radius in zip(values, centers, radii, strict=True):
        length = _norm([value - center for value, center in zip(group, start, strict=True)])
        rows.append(length / radius if radius else torch.where(length == 0, length, length * math.inf))
    return torch.stack(rows)


def move(
    values: Groups, gradients: Groups, radii: Sequence[float], step_size: float, joint: bool = False
) -> list[list[Tensor]]:
    """values + s g in at least float32; values where the gradient is zero."""
    lengths = torch.stack([_norm(group) * radius for group, radius in zip(gradients, radii, strict=True)])
    if joint:
        lengths = lengths.square().sum(0, keepdim=True).sqrt().expand_as(lengths)
    moved = []
    for group, slope, length, radius in zip(values, gradients, lengths, radii, strict=True):
        scaled = torch.where(length > 0, step_size * radius * radius / length, 0.0)
        pairs = [_wide(value, gradient) for value, gradient in zip(group, slope, strict=True)]
        moved.append([torch.addcmul(value, gradient, _like(scaled, value)) for value, gradient in pairs])
    return moved


def project(values: Groups, centers: Groups, radii: Sequence[float], joint: bool = False) -> list[list[Tensor]]:
    """centers + f d: projects onto the ball, leaving values inside it bitwise unchanged.

    A group of radius 0 is reset to its center, and does not count towards the norm of a joint ball.
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
        pairs = [_wide(value, center) for value, center in zip(group, start, strict=True)]
        shrunk = [torch.lerp(center, value, _like(factor, value)) for value, center in pairs]
        projected.append([new.to(old.dtype) for new, old in zip(shrunk, group, strict=True)])
    return projected


# ---------------------------------------------------------------------------------------------- pieces of the reference


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _wide(value: Tensor, operand: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of the value's dtype and float32; expanded scalars stay expanded."""
    dtype = _wide_dtype(value)
    return _cast(value, dtype), _cast(operand, dtype)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.numel() and not any(tensor.stride()):
        return tensor[(0,) * tensor.dim()].to(dtype).expand_as(tensor)
    return tensor.to(dtype)


def _norm(group: Sequence[Tensor]) -> Tensor:
    """L2 norm over all tensors of a group per image, (N,), in at least float32."""
    wide = _wide_dtype(group[0])
    flat = [tensor.unsqueeze(1) if tensor.dim() == 1 else tensor.flatten(1) for tensor in group]
    lengths = [torch.linalg.vector_norm(vectors, dim=1, dtype=wide) for vectors in flat]
    return torch.linalg.vector_norm(torch.stack(lengths), dim=0)


def _like(factor: Tensor, tensor: Tensor) -> Tensor:
    """A factor per image, (N,), shaped to broadcast over a tensor (N, ...)."""
    return factor.to(tensor.dtype).reshape((-1,) + (1,) * (tensor.dim() - 1))


# ------------------------------------------------------------------------------------------------------------ checks


def _check_arguments(
    values: Groups, gradients: Groups, centers: Groups, radii: Sequence[float], step_size: float
) -> None:
    if not (math.isfinite(step_size) and step_size >= 0):
        raise ValueError(f"step_size must be finite and 0 or more, was {step_size}")
    if len(radii) != len(values):
        raise ValueError(f"radii must have one entry per group of values, {len(values)}, had {len(radii)}")
    for radius in radii:
        if not (math.isfinite(radius) and radius >= 0):
            raise ValueError(f"radii must be finite and 0 or more, one was {radius}")
    first: Tensor | None = None
    for name, value in _named("values", values):
        checks.tensor(name, value)
        checks.floating(name, value)
        if value.dim() == 0:
            raise ValueError(f"{name} must have shape (N, ...), was a scalar")
        first = value if first is None else first
        checks.like(name, value, "values[0][0]", first, dtype=False)
        if value.shape[0] != first.shape[0]:
            raise ValueError(f"{name} must have as many images as values[0][0], {first.shape[0]}, had {value.shape[0]}")
    lengths = [len(group) for group in values]
    for name, groups in (("gradients", gradients), ("centers", centers)):
        if (actual := [len(group) for group in groups]) != lengths:
            raise ValueError(f"{name} must have as many tensors in each group as values, {lengths}, had {actual}")
        for (label, tensor), (_, value) in zip(_named(name, groups), _named("values", values), strict=True):
            checks.tensor(label, tensor)
            checks.floating(label, tensor)
            checks.like(label, tensor, "values[0][0]", value, dtype=False)
            checks.has_shape(label, tensor, value.shape, meaning="of its value")
    for index, group in enumerate(values):
        if not group:
            raise ValueError(f"values[{index}] must have at least one tensor, had none")


def _named(name: str, groups: Groups) -> Iterator[tuple[str, Tensor]]:
    for index, group in enumerate(groups):
        for position, tensor in enumerate(group):
            yield f"{name}[{index}][{position}]", tensor
