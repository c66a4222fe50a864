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

A group may be split into orthogonal parts (:mod:`andfast.functional.ascent_parts`), each with its own r, s and f. With
P a part's projection, d and g above are P d and P g, and values = centers + the sum of f d' over the group's parts.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from andfast import checks
from andfast.functional import dispatch, triton_support
from andfast.functional.ascent_parts import Parts, check_parts, count

OP = "ascent_step"

Groups = Sequence[Sequence[Tensor]]
"""Tensors (N, ...) by group; N is the same for all."""

Radii = Sequence[float] | Tensor
"""Radius of each part, in the order of groups: numbers, or a tensor (parts,) on the device of the values."""

dispatch.register(OP, {"triton": triton_support.why_not, "reference": dispatch.everywhere})


@torch.no_grad()
def ascent_step(
    values: Groups,
    gradients: Groups,
    centers: Groups,
    *,
    radii: Radii,
    step_size: float,
    joint: bool = False,
    parts: Sequence[Parts] | None = None,
    factors: Tensor | None = None,
    impl: str = "auto",
) -> list[list[Tensor]]:
    """Take a step of ``step_size`` radii up the gradient, per image and part, and project onto the ball.

    Not differentiable. Sums are taken in at least float32, and half types are rounded once, at the end. Free of host
    synchronization, so it can be captured in a CUDA graph. A NaN or infinity in an image's gradient makes its group
    NaN (in a joint ball, all groups of that image).

    Args:
        values: current parameters, floating point; dtypes may differ between tensors.
        gradients: of the objective to maximize, with the shapes of ``values``; dtypes may differ.
        centers: of the balls, with the shapes of ``values``; an expanded scalar costs no memory traffic.
        radii: L2 radius per part, 0 or more; 0 resets a part to its center. The values of a tensor are not checked, so
            that it may change between replays of a CUDA graph.
        step_size: step length as a fraction of the radius, 0 or more.
        joint: one ball for all parts instead of one per part.
        parts: of each group; None for groups of one part. What lies in no part is removed from the difference.
        factors: (N,), float32, 0 or more, not checked: a factor per image on all radii.
        impl: "auto", "reference" or "triton"; "triton" takes float32, bfloat16 and float16.

    Returns:
        New tensors with the shapes and dtypes of ``values``; arguments are not modified.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
        RuntimeError: ``impl`` asks for an implementation that is not available here.
    """
    parts = [None] * len(values) if parts is None else parts
    _check_arguments(values, gradients, centers, radii, step_size, parts, factors)
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

        return kernels.ascent_step(values, gradients, centers, radii, step_size, joint, parts, factors)
    return ascent_step_reference(values, gradients, centers, radii, step_size, joint, parts, factors)


def ascent_step_reference(
    values: Groups,
    gradients: Groups,
    centers: Groups,
    radii: Radii,
    step_size: float,
    joint: bool = False,
    parts: Sequence[Parts] | None = None,
    factors: Tensor | None = None,
) -> list[list[Tensor]]:
    """The definition in plain PyTorch: :func:`move`, then :func:`project`, of each part."""
    parts = [None] * len(values) if parts is None else parts
    lengths = part_radii(radii, factors)
    moved = move(split(values, centers, parts), split_gradients(gradients, centers, parts), lengths, step_size, joint)
    inside = merge(project(moved, split_centers(centers, parts), lengths, joint), centers, parts)
    return [
        [new.to(old.dtype) for new, old in zip(after, before, strict=True)]
        for after, before in zip(inside, values, strict=True)
    ]


def part_radii(radii: Radii, factors: Tensor | None) -> list[float | Tensor]:
    """The radius of each part: a number, or a tensor () or (N,)."""
    return [radius if factors is None else radius * factors for radius in radii]


def relative_norms(values: Groups, centers: Groups, radii: Sequence[float | Tensor]) -> Tensor:
    """|d| / r, (groups, N): 1 on the boundary of a group's ball.

    For radius 0 it is infinite, unless the group is exactly at its center.
    """
    rows = []
    for group, start, radius in zip(values, centers, radii, strict=True):
        length = _norm([value - center for value, center in zip(group, start, strict=True)])
        rows.append(_if_positive(radius, _ratio(length, radius), torch.where(length == 0, length, length * math.inf)))
    return torch.stack(rows)


def move(
    values: Groups, gradients: Groups, radii: Sequence[float | Tensor], step_size: float, joint: bool = False
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


def project(
    values: Groups, centers: Groups, radii: Sequence[float | Tensor], joint: bool = False
) -> list[list[Tensor]]:
    """centers + f d: projects onto the ball, leaving values inside it bitwise unchanged.

    A group of radius 0 is reset to its center, and does not count towards the norm of a joint ball.
    """
    norms = relative_norms(values, centers, radii)
    zero = torch.zeros_like(norms[0])
    used = torch.stack([_if_positive(radius, row, zero) for row, radius in zip(norms, radii, strict=True)])
    if joint:
        used = used.square().sum(0, keepdim=True).sqrt().expand_as(used)
    inside = used.clamp_min(1).reciprocal()
    factors = [_if_positive(radius, row, zero) for row, radius in zip(inside, radii, strict=True)]
    projected = []
    for group, start, factor in zip(values, centers, factors, strict=True):
        pairs = [_wide(value, center) for value, center in zip(group, start, strict=True)]
        shrunk = [torch.lerp(center, value, _like(factor, value)) for value, center in pairs]
        projected.append([new.to(old.dtype) for new, old in zip(shrunk, group, strict=True)])
    return projected


def split(values: Groups, centers: Groups, parts: Sequence[Parts]) -> list[Sequence[Tensor]]:
    """Values by part: of a split group, each part of values - centers, in at least float32."""
    differences = [
        group
        if part is None
        else [wide - like for wide, like in itertools.starmap(_wide, zip(group, start, strict=True))]
        for group, start, part in zip(values, centers, parts, strict=True)
    ]
    return split_gradients(differences, centers, parts)


def split_gradients(gradients: Groups, centers: Groups, parts: Sequence[Parts]) -> list[Sequence[Tensor]]:
    """Gradients by part: of a split group, each part of its gradients, in at least float32."""
    rows: list[Sequence[Tensor]] = []
    for group, start, part in zip(gradients, centers, parts, strict=True):
        if part is None:
            rows.append(group)
        else:
            wide = [gradient.to(_wide_dtype(gradient)) for gradient in group]
            rows += zip(*(part.split(x, center) for x, center in zip(wide, start, strict=True)), strict=True)
    return rows


def split_centers(centers: Groups, parts: Sequence[Parts]) -> list[Sequence[Tensor]]:
    """Centers by part: of a split group, zeros."""
    rows: list[Sequence[Tensor]] = []
    for group, part in zip(centers, parts, strict=True):
        zeros = [center.new_zeros((), dtype=_wide_dtype(center)).expand_as(center) for center in group]
        rows += [group] if part is None else [zeros] * count(part)
    return rows


def merge(rows: Groups, centers: Groups, parts: Sequence[Parts]) -> list[list[Tensor]]:
    """The inverse of :func:`split`: groups from their parts; of a split group, centers plus the sum of its parts."""
    remaining = iter(rows)
    groups = []
    for start, part in zip(centers, parts, strict=True):
        own = [next(remaining) for _ in range(count(part))]
        if part is None:
            groups.append(list(own[0]))
        else:
            groups.append([sum(tensors[1:], tensors[0]) + center for center, *tensors in zip(start, *own, strict=True)])
    return groups


# ---------------------------------------------------------------------------------------------- pieces of the reference


def _if_positive(radius: float | Tensor, positive: Tensor, zero: Tensor) -> Tensor:
    """``positive`` where the radius is above 0, ``zero`` elsewhere; without a synchronization."""
    if isinstance(radius, Tensor):
        return torch.where(radius > 0, positive, zero)
    return positive if radius else zero


def _ratio(length: Tensor, radius: float | Tensor) -> Tensor:
    return length / radius if isinstance(radius, Tensor) or radius else length


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
    values: Groups,
    gradients: Groups,
    centers: Groups,
    radii: Radii,
    step_size: float,
    parts: Sequence[Parts],
    factors: Tensor | None,
) -> None:
    if not (math.isfinite(step_size) and step_size >= 0):
        raise ValueError(f"step_size must be finite and 0 or more, was {step_size}")
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
    check_parts(parts, values)
    _check_radii(radii, factors, [count(part) for part in parts], first)


def _check_radii(radii: Radii, factors: Tensor | None, counts: Sequence[int], first: Tensor | None) -> None:
    if len(radii) != sum(counts):
        what = "group" if len(counts) == sum(counts) else "part of a group"
        raise ValueError(f"radii must have one entry per {what} of values, {sum(counts)}, had {len(radii)}")
    if not isinstance(radii, Tensor):
        for radius in radii:
            if not (math.isfinite(radius) and radius >= 0):
                raise ValueError(f"radii must be finite and 0 or more, one was {radius}")
    if first is None:
        return
    if isinstance(radii, Tensor):
        _check_factors("radii", radii, sum(counts), "(parts,)", first)
    if factors is not None:
        _check_factors("factors", factors, first.shape[0], "(N,)", first)


def _check_factors(name: str, tensor: Tensor, size: int, meaning: str, like: Tensor) -> None:
    checks.tensor(name, tensor)
    checks.like(name, tensor, "values[0][0]", like, dtype=False)
    checks.has_shape(name, tensor, (size,), meaning=meaning)
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, was {tensor.dtype}")


def _named(name: str, groups: Groups) -> Iterator[tuple[str, Tensor]]:
    for index, group in enumerate(groups):
        for position, tensor in enumerate(group):
            yield f"{name}[{index}][{position}]", tensor
