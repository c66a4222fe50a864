"""Cases of the self-test: a few calls of every op on small inputs of awkward shapes, each with its definition.

A new op needs a function here that yields its cases, and an entry in :data:`CASES`.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.functional.ascent_parts import KernelParts, ZeroMean
from andfast.functional.ascent_step import ascent_step, ascent_step_reference
from andfast.functional.blur_pool import binomial_taps, blur_pool, blur_pool_reference
from andfast.functional.degradation_block import degradation_block
from andfast.functional.degradation_block_reference import degradation_block_reference
from andfast.functional.identity_gradients import identity_gradients
from andfast.functional.mean_distance import Kind, mean_distance
from andfast.functional.residual_dense_block import residual_dense_block
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference
from andfast.functional.upsampled_convolution import upsampled_convolution
from andfast.functional.upsampled_convolution_reference import upsampled_convolution_reference

_LAST: Final = torch.channels_last
_PLAIN: Final = torch.contiguous_format
_SIGN: Final = 2.0  # magnitude of the term that decides an activation's sign; the rest is at most a sixth of it

FORMATS: Final = {_LAST: "channels_last", _PLAIN: "contiguous"}
"""Names of memory formats."""


class Case(NamedTuple):
    """One call of an op.

    Attributes:
        name: description of the case.
        inputs: float64 tensors on the CPU by name; "x" has shape (N, C, H, W).
        run: calls the op with an implementation, on inputs of any dtype and device.
        definition: the same function, differentiable, in float64.
        memory_format: of x, and of the result.
        frozen: names of inputs that do not require gradients.
        wide: names of inputs that stay in float32 if x is of a half type.
    """

    name: str
    inputs: Mapping[str, Tensor]
    run: Callable[[Mapping[str, Tensor], str], Tensor]
    definition: Callable[[Mapping[str, Tensor]], Tensor]
    memory_format: torch.memory_format
    frozen: Collection[str] = ()
    wide: Collection[str] = ()


class Draw:
    """Random float64 tensors from a seeded generator, and inputs whose pre-activations stay away from zero.

    The gradient of an activation jumps at zero, so near zero rounding alone makes two correct results differ. Hence the
    first channel of x holds a random sign per pixel, which every output channel reads with a random sign of its own.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def signs(self, *shape: int) -> Tensor:
        return torch.where(self.normal(*shape) > 0, 1.0, -1.0).double()

    def images(self, n: int, channels: int, height: int, width: int) -> Tensor:
        x = self.normal(n, channels, height, width)
        x[:, 0] = _SIGN * self.signs(n, height, width)
        return x

    def kernels(self, *shape: int) -> Tensor:
        """(..., Cout, Cin, 3, 3): small, except for the center tap of the first channel."""
        weight = self.normal(*shape, 3, 3) / (18 * shape[-1] ** 0.5)
        weight[..., 0, 1, 1] = self.signs(*shape[:-1])
        return weight


def _degradation_blocks(draw: Draw) -> Iterator[Case]:
    """First, middle and last layers of F: shared and per-image weights, both formats, all forms of slope and noise."""
    n, height, width = 2, 9, 19

    def case(
        kind: str,
        weight: Tensor,
        slope: Tensor,
        noise: Tensor | None,
        form: torch.memory_format,
        padding: str,
        smallest_slope: float = 0.0,
    ) -> Case:
        c_out, c_in = weight.shape[-4:-2]
        inputs = {"x": draw.images(n, c_in, height, width), "weight": weight, "slope": slope}
        return Case(
            f"{c_in}->{c_out} channels, {kind}, {padding} padding",
            inputs if noise is None else {**inputs, "noise": noise},
            lambda t, impl: degradation_block(
                t["x"],
                t["weight"],
                t["slope"],
                t.get("noise"),
                padding=padding,
                smallest_slope=smallest_slope,
                impl=impl,
            ),
            lambda t: degradation_block_reference(t["x"], t["weight"], t["slope"], t.get("noise"), padding),
            form,
            wide=("slope", "noise"),  # as in the adversary
        )

    # The channels_last cases compile the kernels that a channels_last training run uses.
    each_channel, one_map = 1 + 0.4 * draw.normal(n, 64), draw.normal(n, 1, height, width)
    yield case("shared weights", draw.kernels(64, 3), each_channel, one_map, _PLAIN, "zeros")
    each_image, maps = torch.tensor([1.4, -0.3]).double(), draw.normal(n, 64, height, width)
    yield case("one slope per image", draw.kernels(n, 64, 64), each_image, maps, _LAST, "replicate")
    yield case("one slope", draw.kernels(n, 3, 64), torch.tensor(0.6).double(), None, _LAST, "replicate")
    known, maps = torch.tensor([1.4, 0.6]).double(), draw.normal(n, 64, height, width)
    yield case("slopes bounded below", draw.kernels(n, 64, 64), known, maps, _LAST, "replicate", 0.5)


def _blur_pools(draw: Draw) -> Iterator[Case]:
    """Factors 2, 3 and 4 in both formats, with 3, 5 and 64 channels."""

    def case(factor: int, shape: tuple[int, int, int, int], form: torch.memory_format) -> Case:
        return Case(
            f"x{factor}, {shape[1]} channels, {FORMATS[form]}",
            {"x": draw.normal(*shape)},
            lambda t, impl: blur_pool(t["x"], factor, impl=impl),
            lambda t: blur_pool_reference(t["x"], binomial_taps(factor), factor),
            form,
        )

    yield case(2, (2, 3, 10, 34), _PLAIN)
    yield case(3, (2, 5, 21, 15), _LAST)
    yield case(4, (2, 64, 20, 12), _LAST)
    yield case(4, (3, 3, 12, 36), _PLAIN)


def _residual_dense_blocks(draw: Draw) -> Iterator[Case]:
    """Trained and frozen weights, which save different tensors for backward, in both formats."""

    def case(kind: str, features: int, growth: int, form: torch.memory_format) -> Case:
        shapes = [(growth, features + k * growth) for k in range(4)] + [(features, features + 4 * growth)]
        weights = {f"weight{k}": draw.kernels(*shape) for k, shape in enumerate(shapes)}
        biases = {f"bias{k}": 0.1 * draw.normal(shape[0]) for k, shape in enumerate(shapes)}

        def split(t: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            return [t[name] for name in weights], [t[name] for name in biases]

        return Case(
            f"{kind}, {features} features, {growth} of growth, {FORMATS[form]}",
            {"x": draw.images(2, features, 7, 13), **weights, **biases},
            lambda t, impl: residual_dense_block(t["x"], *split(t), impl=impl),
            lambda t: residual_dense_block_reference(t["x"], *split(t)),
            form,
            frozen=() if kind == "trained" else (*weights, *biases),
        )

    yield case("trained", 64, 32, _LAST)
    yield case("frozen", 64, 32, _LAST)
    yield case("frozen", 24, 8, _PLAIN)


def _upsampled_convolutions(draw: Draw) -> Iterator[Case]:
    """Layers of G's tail, trained and frozen, with and without upsampling and activation, in both formats."""

    def case(kind: str, c_in: int, c_out: int, factor: int, slope: float, form: torch.memory_format) -> Case:
        inputs = {
            "x": draw.images(2, c_in, 7, 11),
            "weight": draw.kernels(c_out, c_in),
            "bias": 0.1 * draw.normal(c_out),
        }
        return Case(
            f"{kind}, x{factor}, {c_in}->{c_out} channels, {FORMATS[form]}",
            inputs,
            lambda t, impl: upsampled_convolution(
                t["x"], t["weight"], t["bias"], factor=factor, slope=slope, impl=impl
            ),
            lambda t: upsampled_convolution_reference(t["x"], t["weight"], t["bias"], factor=factor, slope=slope),
            form,
            frozen=() if kind == "trained" else ("weight", "bias"),
        )

    yield case("trained", 64, 64, 2, 0.2, _LAST)
    yield case("frozen", 64, 64, 2, 0.2, _LAST)
    yield case("frozen", 64, 64, 1, 0.2, _PLAIN)
    yield case("frozen", 64, 3, 1, 1.0, _LAST)


def _mean_distances(draw: Draw) -> Iterator[Case]:
    """Both kinds, with some equal values; target in the memory format of x and in another one."""

    def case(kind: Kind, form: torch.memory_format, target_form: torch.memory_format) -> Case:
        x = draw.normal(2, 24, 17, 43)
        difference = draw.normal(*x.shape) * (draw.normal(*x.shape) > -1)
        norm = 1 if kind == "l1" else 2

        def definition(t: Mapping[str, Tensor]) -> Tensor:
            length = torch.linalg.vector_norm(t["x"] - t["target"], norm)
            return (length**norm / x.numel()).reshape(1, 1, 1, 1)

        return Case(
            f"{kind}, {FORMATS[form]}, {FORMATS[target_form]} target",
            {"x": x, "target": x + difference},
            # 4-dimensional, to have a memory format; in the dtype of x, as other ops return.
            lambda t, impl: (
                mean_distance(t["x"], t["target"].contiguous(memory_format=target_form), kind=kind, impl=impl)
                .to(t["x"].dtype)
                .reshape(1, 1, 1, 1)
            ),
            definition,
            form,
            frozen=("target",),
        )

    yield case("l1", _LAST, _LAST)
    yield case("l2", _PLAIN, _PLAIN)
    yield case("l1", _PLAIN, _LAST)


def _ascent_steps(draw: Draw) -> Iterator[Case]:
    """A step from the centers, where noises are an expanded zero, and steps out of separate and joint balls."""
    radii, step_size = (9.0, 2.0), 0.3

    def case(kind: str, form: torch.memory_format, joint: bool, result: int) -> Case:
        shapes = {"x": (2, 5, 9, 19), "maps": (2, 16, 8, 8), "weight": (2, 5, 3, 3, 3), "slope": (2,)}
        names = list(shapes)
        inputs = {name: draw.normal(*shape) for name, shape in shapes.items()}
        inputs |= {f"gradient of {name}": draw.normal(*shape) for name, shape in shapes.items()}

        def split(t: Mapping[str, Tensor]) -> tuple[list[list[Tensor]], ...]:
            x = t["x"]
            zero = x.new_zeros(()).expand_as
            values = [zero(x), zero(t["maps"])] if kind == "first step" else [x, t["maps"]]
            starts = [values, [t["weight"], t["slope"]]]
            centers = starts if kind == "first step" else [[zero(x), zero(t["maps"])], [t["weight"] / 2, t["slope"]]]
            gradients = [t[f"gradient of {name}"] for name in names]
            return starts, [gradients[:2], gradients[2:]], centers

        def definition(t: Mapping[str, Tensor]) -> Tensor:
            """Each group as one vector per image; the joint ball as one vector of both groups over their radii."""
            n = shapes["x"][0]
            value, gradient, center = (
                [torch.cat([tensor.reshape(n, -1) for tensor in group], 1) for group in groups] for groups in split(t)
            )
            sizes = [group.shape[1] for group in value]
            radius = torch.cat([torch.full((n, size), r).double() for size, r in zip(sizes, radii, strict=True)], 1)
            u = (torch.cat(value, 1) - torch.cat(center, 1)) / radius
            ascent = torch.cat(gradient, 1) * radius
            balls = [u.shape[1]] if joint else sizes
            projected = []
            for point, direction in zip(u.split(balls, 1), ascent.split(balls, 1), strict=True):
                moved = point + step_size * direction / direction.norm(dim=1, keepdim=True)
                projected.append(moved / moved.norm(dim=1, keepdim=True).clamp_min(1))
            all_values = torch.cat(projected, 1) * radius + torch.cat(center, 1)
            lengths = [math.prod(shapes[name][1:]) for name in names]
            return all_values.split(lengths, 1)[result].reshape(shapes[names[result]])

        def run(t: Mapping[str, Tensor], impl: str) -> Tensor:
            groups = ascent_step(*split(t), radii=radii, step_size=step_size, joint=joint, impl=impl)
            return [tensor for group in groups for tensor in group][result]

        return Case(
            f"{kind}, {names[result]}, {FORMATS[form]}",
            inputs,
            run,
            definition,
            form,
            frozen=inputs,
        )

    yield case("first step", _PLAIN, False, 0)
    yield case("three balls", _LAST, False, 0)
    yield case("joint ball", _PLAIN, True, 2)
    yield _ascent_step_in_parts(draw, _LAST, 0)
    yield _ascent_step_in_parts(draw, _PLAIN, 0)
    yield _ascent_step_in_parts(draw, _PLAIN, 1)


def _ascent_step_in_parts(draw: Draw, form: torch.memory_format, result: int) -> Case:
    """A step of maps of mean zero and of convolutions in three parts, with a factor per image."""
    shapes = {"x": (2, 16, 9, 8), "weight": (2, 5, 3, 3, 3)}
    inputs = {name: draw.normal(*shape) for name, shape in shapes.items()}
    inputs |= {f"gradient of {name}": draw.normal(*shape) for name, shape in shapes.items()}
    options: dict[str, Any] = {"radii": (9.0, 2.0, 3.0, 4.0), "step_size": 0.3, "parts": (ZeroMean(), KernelParts())}

    def groups(t: Mapping[str, Tensor]) -> tuple[list[list[Tensor]], list[list[Tensor]], list[list[Tensor]]]:
        zero = t["x"].new_zeros(()).expand_as(t["x"])
        gradients = [[t[f"gradient of {name}"]] for name in shapes]
        return [[t["x"]], [t["weight"]]], gradients, [[zero], [t["weight"] / 2]]

    def factors(t: Mapping[str, Tensor]) -> Tensor:
        return torch.tensor([1.0, 0.25], device=t["x"].device)

    def run(t: Mapping[str, Tensor], impl: str) -> Tensor:
        return ascent_step(*groups(t), **options, factors=factors(t), impl=impl)[result][0]

    def definition(t: Mapping[str, Tensor]) -> Tensor:
        return ascent_step_reference(*groups(t), **options, factors=factors(t))[result][0]

    name = f"parts, {list(shapes)[result]}, {FORMATS[form]}"
    return Case(name, inputs, run, definition, form, frozen=inputs)


def _identity_gradients(draw: Draw) -> Iterator[Case]:
    """Each result by itself: noises (full and one map), slopes, correlation.

    Layers and channels are those of F. In channels_last, images are float32 and noises have the dtype under test, so
    these cases compile the kernels that a training run uses.
    """
    layers, n, channels, height, width = 5, 2, 64, 9, 19

    def case(
        kind: str, form: torch.memory_format, noise: int, slope: bool, padding: str, result: Callable[..., Tensor]
    ) -> Case:
        inputs = {"x": draw.normal(n, 3, height, width), "g": draw.normal(n, 3, height, width)}
        inputs |= {name: draw.normal(layers, n, 3, channels) for name in ("before", "after")}
        names = tuple(inputs)
        inputs["dtype"] = draw.normal(1)  # carries the dtype under test

        def run(t: Mapping[str, Tensor], impl: str) -> Tensor:
            correlation, noises, slopes = identity_gradients(
                *(t[name] for name in names),
                noises=[noise] * layers,
                slopes=[slope] * layers,
                correlation=not slope,
                noise_dtype=t["dtype"].dtype,
                padding=padding,
                impl=impl,
            )
            return result(correlation, noises, slopes).to(t["dtype"].dtype)

        def definition(t: Mapping[str, Tensor]) -> Tensor:
            up = torch.einsum("lnjc,njhw->lnchw", t["after"], t["g"])
            z = torch.einsum("lnic,nihw->lnchw", t["before"], t["x"])
            padded = F.pad(t["x"], (1, 1, 1, 1), mode="replicate" if padding == "replicate" else "constant")
            shifted = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, 3, 3, 3, H, W): the taps are axes 2 and 3
            correlation = torch.einsum("njhw,niyxhw->nyxji", t["g"], shifted).reshape(n, 9, 3, 3)
            noises = up.sum(2, keepdim=True) if noise == 1 else up
            return result(correlation, noises, (z.clamp_max(0) * up).sum((3, 4)))

        wide = names if form == _LAST else names[2:]
        return Case(f"{kind}, {FORMATS[form]}", inputs, run, definition, form, frozen=inputs, wide=wide)

    yield case("noises", _LAST, channels, True, "replicate", lambda _, noises, __: noises[2])
    yield case("slopes", _LAST, channels, True, "replicate", lambda _, __, slopes: slopes.reshape(-1, 1, 1, 1))
    yield case("noises without slopes", _PLAIN, channels, False, "zeros", lambda _, noises, __: noises[1])
    yield case("one map", _PLAIN, 1, True, "zeros", lambda _, noises, __: noises[0])
    yield case("correlation", _LAST, 0, False, "replicate", lambda sums, _, __: sums.reshape(-1, 1, 1, 1))
    yield case("correlation, zero padding", _PLAIN, 0, False, "zeros", lambda sums, _, __: sums.reshape(-1, 1, 1, 1))


CASES: Final[dict[str, Callable[[Draw], Iterator[Case]]]] = {
    "degradation_block": _degradation_blocks,
    "blur_pool": _blur_pools,
    "ascent_step": _ascent_steps,
    "identity_gradients": _identity_gradients,
    "mean_distance": _mean_distances,
    "residual_dense_block": _residual_dense_blocks,
    "upsampled_convolution": _upsampled_convolutions,
}
"""Cases of every op, by the name under which it registers its implementations."""
