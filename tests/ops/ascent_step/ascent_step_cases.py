"""Random ascent steps and comparisons, shared by the tests of ascent_step on the CPU and on a GPU."""

import random
from typing import Any, NamedTuple

import layouts
import torch
from torch import Tensor

from andfast.functional.ascent_parts import KernelParts, Parts, ZeroMean, count
from andfast.functional.ascent_step import ascent_step_reference

Groups = list[list[Tensor]]


class Step(NamedTuple):
    """Arguments of ascent_step; ``poison`` names the non-finite value of the first image, or is empty."""

    values: Groups
    gradients: Groups
    centers: Groups
    options: dict[str, Any]
    poison: str

    def clone(self) -> "Step":
        groups = ([[tensor.clone() for tensor in group] for group in groups] for groups in self[:3])
        return Step(*groups, self.options, self.poison)


def exact(step: Step) -> Groups:
    """The definition in float64."""
    wide = ([[tensor.double() for tensor in group] for group in groups] for groups in step[:3])
    return ascent_step_reference(*wide, **step.options)


def flat(groups: Groups) -> list[Tensor]:
    return [tensor for group in groups for tensor in group]


def assert_correct(actual: Groups, step: Step, tolerance: float = 2e-6) -> None:
    """Each error is at most the dtype's rounding plus ``tolerance`` times the largest distance from a center.

    float32 rounds twice, at the move and at the projection; float16 once; bfloat16 too, but the interpreter
    truncates where hardware rounds. The same values are NaN.
    """
    for result, expected, value, center in zip(
        flat(actual), flat(exact(step)), flat(step.values), flat(step.centers), strict=True
    ):
        assert (result.shape, result.dtype, result.device) == (value.shape, value.dtype, value.device)
        nan = expected.isnan()
        assert torch.equal(result.isnan(), nan)
        if nan.all():  # or empty
            continue
        distance = (expected - center.double())[~nan].abs().max().item()
        eps = torch.finfo(result.dtype).eps
        tiny = torch.finfo(result.dtype).smallest_normal * eps
        error = (result.detach().double() - expected)[~nan].abs()
        units = 0.51 if result.dtype == torch.float16 else 1.1
        allowed = eps * units * expected[~nan].abs() + tolerance * distance + tiny
        worst = (error - allowed).argmax()
        assert (error <= allowed).all(), (error[worst], expected[~nan][worst], distance, result.dtype)


def random_step(seed: int, device: str = "cpu") -> Step:
    """Random tensors, shapes, layouts, dtypes, radii and kinds of center; for some images all gradients are 0."""
    g = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    n = 0 if seed % 17 == 5 else g.choice([1, 1, 2, 3])
    poison = g.choice(["gradient NaN", "gradient infinite", "value NaN"]) if seed % 4 == 3 and n else ""
    first = g.random() < 0.25 and not poison.startswith("value")
    values: Groups = []
    gradients: Groups = []
    centers: Groups = []
    radii = [g.choice([0.0, 1e-3, 0.05, 1.0, 40.0]) for _ in range(g.choice([1, 2, 3, 3]))]
    for radius in radii:
        empty = g.random() < 0.1  # zero gradients for the first image
        for groups in (values, gradients, centers):
            groups.append([])
        for _ in range(g.randint(1, 5)):
            shape = (n, *_inner_shape(g))
            dtype = g.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
            scale = g.choice([0.1, 1.0, 3.0]) * radius / max(1, torch.Size(shape[1:]).numel()) ** 0.5
            kind = g.choice(["expanded", "expanded", "full", "full", "other dtype"])
            if kind == "expanded":
                center = torch.full((), g.choice([0.0, 0.0, 0.5]), dtype=dtype, device=device).expand(shape)
            else:
                center = torch.randn(shape, generator=generator)
                center = _laid_out(g, center.to(device=device, dtype=torch.float32 if kind == "other dtype" else dtype))
            value = center
            if not first or kind == "other dtype":
                away = scale * torch.randn(shape, generator=generator)
                value = _laid_out(g, (center.float() + away.to(device)).to(dtype))
            gradient = torch.randn(shape, generator=generator) * 10 ** g.uniform(-6, 2)
            if empty and n:
                gradient[0] = 0
            gradient = gradient.to(device=device, dtype=g.choice([dtype, torch.float32]))
            gradient = gradient[..., :1].expand_as(gradient) if g.random() < 0.1 else _laid_out(g, gradient)
            values[-1].append(value)
            gradients[-1].append(gradient)
            centers[-1].append(center)
    if poison:
        _poison(g, poison, values if poison.startswith("value") else gradients)
    options = {"radii": radii, "step_size": g.choice([0.0, 0.3, 0.3, 2.0]), "joint": g.random() < 0.4}
    return Step(values, gradients, centers, options, poison)


def _inner_shape(g: random.Random) -> tuple[int, ...]:
    size = g.choice([1, 2, 3, 5, 7, 8, 13, 16])
    return g.choice(
        [
            (),
            (size,),
            (size, g.choice([1, 3, 8]), 3, 3),
            (size, g.randint(1, 9), g.randint(1, 9)),
            (16, g.choice([1, 4]), 4),
            (1, size, size),
        ]
    )


def _laid_out(g: random.Random, value: Tensor) -> Tensor:
    kinds = (*layouts.KINDS, "channels_last")  # more often, as in training
    return layouts.laid_out(g, value, kinds) if value.dim() == 4 else value.contiguous()


def _poison(g: random.Random, poison: str, groups: Groups) -> None:
    group = g.choice(groups)
    place = g.randrange(len(group))
    group[place] = group[place].contiguous().clone()  # it may be expanded
    group[place].view(-1)[0] = float("inf") if poison.endswith("infinite") else float("nan")


def random_parts(seed: int, device: str = "cpu") -> Step:
    """A step of groups with parts, in F's shapes: convolutions, noise maps and a plain group, in any order."""
    g = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    n = 0 if seed % 19 == 6 else g.choice([1, 2, 3])
    kinds = g.choice([["kernels", "noise", "plain"], ["noise"], ["kernels"], ["plain", "kernels"], ["noise", "noise"]])
    first = g.random() < 0.25
    groups: tuple[Groups, Groups, Groups] = ([], [], [])
    parts: list[Parts] = []
    radii: list[float] = []
    for kind in kinds:
        part = {"kernels": KernelParts(g.random() < 0.6), "noise": ZeroMean(), "plain": None}[kind]
        own = [g.choice([0.0, 1e-2, 0.3, 2.0, 40.0]) for _ in range(count(part))]
        parts.append(part)
        radii += own
        rows: tuple[list[Tensor], ...] = ([], [], [])
        channels = g.choice([1, 3, 4, 8, 13])
        size = 10 ** g.uniform(-4, 2)  # of gradients: rounding of the largest is noise in parts of the others
        dtype = g.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
        for _ in range(g.randint(1, 4)):
            if kind == "kernels":
                shape = (n, g.choice([3, channels]), g.choice([3, channels]), 3, 3)
                center = torch.zeros(shape)
                center[..., 1, 1] = torch.randn(shape[:3], generator=generator)
            elif kind == "noise":
                shape = (n, channels, g.randint(1, 11), g.randint(1, 13))
                center = torch.zeros((), dtype=dtype).expand(shape)
                if g.random() < 0.2:
                    center = torch.randn(shape, generator=generator).to(dtype)
            else:
                shape = (n, *_inner_shape(g))
                center = torch.randn(shape, generator=generator)
            center = center.to(device)
            scale = g.choice([0.3, 1.0, 3.0]) * max(own) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
            value = center
            if not first:
                away = scale * torch.randn(shape, generator=generator).to(device)
                value = _laid_out(g, (center.float() + away).to(center.dtype))
            gradient = torch.randn(shape, generator=generator) + g.choice([0.0, 0.0, 3.0])
            gradient = _laid_out(g, (gradient * size).to(device=device, dtype=center.dtype))
            for row, tensor in zip(rows, (value, gradient, center), strict=True):
                row.append(tensor)
        for group, row in zip(groups, rows, strict=True):
            group.append(row)
    factors = torch.rand(n, generator=generator).to(device) if g.random() < 0.6 else None
    options = {"radii": radii, "step_size": g.choice([0.3, 0.3, 1.0]), "joint": g.random() < 0.3}
    return Step(*groups, options | {"parts": parts, "factors": factors}, "")
