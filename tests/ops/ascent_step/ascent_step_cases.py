"""Random steps of the ascent, and comparisons, that the tests of ascent_step on the CPU and on a GPU share."""

import random
from typing import Any, NamedTuple

import layouts
import torch
from torch import Tensor

from andfast.functional.ascent_step import ascent_step_reference

Groups = list[list[Tensor]]


class Step(NamedTuple):
    """Arguments of ascent_step; ``poison`` names what is not finite in the first image, if anything."""

    values: Groups
    gradients: Groups
    centers: Groups
    options: dict[str, Any]
    poison: str

    def clone(self) -> "Step":
        groups = ([[one.clone() for one in group] for group in some] for some in self[:3])
        return Step(*groups, self.options, self.poison)


def exact(step: Step) -> Groups:
    """The definition in float64."""
    wide = ([[one.double() for one in group] for group in some] for some in step[:3])
    return ascent_step_reference(*wide, **step.options)


def flat(groups: Groups) -> list[Tensor]:
    return [one for group in groups for one in group]


def assert_right(found: Groups, step: Step, tolerance: float = 2e-6) -> None:
    """Each value within its dtype's rounding, and ``tolerance`` times the largest distance from a center.

    float32 rounds twice, where a value moves and where it is projected; float16 once; bfloat16 too, but the
    interpreter truncates where hardware rounds. What is not finite is so in both.
    """
    for four in zip(flat(found), flat(exact(step)), flat(step.values), flat(step.centers), strict=True):
        one, _, value, _ = four
        assert (one.shape, one.dtype, one.device) == (value.shape, value.dtype, value.device)
        if four[0].numel() == 0:
            continue
        one, right, _, center = (some.detach().cpu() for some in four)
        assert torch.equal(one.isnan(), right.isnan())
        finite = ~right.isnan()
        if not finite.any():
            continue
        distance = (right - center.double())[finite].abs().max().item()
        eps = torch.finfo(one.dtype).eps
        tiny = torch.finfo(one.dtype).smallest_normal * eps
        error = (one.double() - right)[finite].abs()
        units = 0.51 if one.dtype == torch.float16 else 1.1
        allowed = eps * units * right[finite].abs() + tolerance * distance + tiny
        worst = (error - allowed).argmax()
        assert (error <= allowed).all(), (error[worst], right[finite][worst], distance, one.dtype)


def random_step(seed: int, device: str = "cpu") -> Step:
    """Any number of tensors, shapes, layouts, dtypes, radii; every kind of center; some images without a gradient."""
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
        empty = g.random() < 0.1  # the first image has no gradient here
        for some in (values, gradients, centers):
            some.append([])
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
    kinds = (*layouts.KINDS, "channels_last")  # which is what training has
    return layouts.laid_out(g, value, kinds) if value.dim() == 4 else value.contiguous()


def _poison(g: random.Random, poison: str, groups: Groups) -> None:
    group = g.choice(groups)
    place = g.randrange(len(group))
    group[place] = group[place].contiguous().clone()  # it may be expanded
    group[place].view(-1)[0] = float("inf") if poison.endswith("infinite") else float("nan")
