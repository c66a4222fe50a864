"""Parts of a group: orthogonal projections, and the ascent step within them against a direct float64 implementation."""

import math
from typing import Any

import pytest
import torch
from ascent_step_cases import Step, exact, random_parts
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from andfast.functional import ascent_step
from andfast.functional.ascent_parts import KernelParts, ZeroMean

KERNELS = [KernelParts(symmetric=True), KernelParts(symmetric=False)]
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("parts", KERNELS)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_kernel_parts_are_orthogonal_projections(parts: KernelParts, shape: tuple[int, int, int], seed: int) -> None:
    d, reference, center = (drawn((*shape, 3, 3), 3 * seed + number) for number in range(3))
    split, split_other = parts.split(d, center), parts.split(reference, center)
    assert len(split) == 3
    for index, part in enumerate(split):
        again = parts.split(part, center)
        for second in range(3):
            close(again[second], part if second == index else torch.zeros_like(part))  # idempotent, orthogonal
        close(dot(part, reference), dot(d, split_other[index]))  # self-adjoint
    close(sum(split), (d + d.flip(-2, -1)) / 2 if parts.symmetric else d)


@pytest.mark.parametrize("parts", KERNELS)
def test_kernel_parts_are_what_their_names_say(parts: KernelParts) -> None:
    d, center = drawn((2, 4, 3, 3, 3), 0), drawn((2, 4, 3, 3, 3), 1)
    color, kernel, rest = parts.split(d, center)
    close(color, d.mean((3, 4), keepdim=True).expand_as(d))
    for part in (kernel, rest):
        close(part.sum((3, 4)), torch.zeros(2, 4, 3, dtype=torch.float64))
        if parts.symmetric:
            close(part, part.flip(3, 4))
    # The kernel part is W0 times one kernel per image, by least squares over all kernels of sum zero.
    w0 = center[..., 1, 1]
    whole = (d + d.flip(3, 4)) / 2 if parts.symmetric else d
    for image in range(2):
        columns = []
        for tap in range(8):
            k = torch.zeros(9, dtype=torch.float64)
            k[tap], k[8] = 1, -1  # a basis of kernels of sum zero
            columns.append((w0[image, :, :, None] * k).flatten())
        solution = torch.linalg.lstsq(torch.stack(columns, 1), whole[image].flatten()).solution
        close(torch.stack(columns, 1) @ solution, kernel[image].flatten())


def test_a_blur_of_all_channels_is_all_kernel() -> None:
    center = drawn((1, 5, 4, 3, 3), 2)
    blur = torch.tensor([[1.0, 2, 1], [2, -12, 2], [1, 2, 1]], dtype=torch.float64) / 16
    d = center[..., 1:2, 1:2] * blur
    color, kernel, rest = KernelParts().split(d, center)
    close(kernel, d)
    close(color, torch.zeros_like(d))
    close(rest, torch.zeros_like(d))
    assert all(not part.isnan().any() for part in KernelParts().split(d, torch.zeros_like(center)))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_zero_mean_is_an_orthogonal_projection(n: int, c: int, height: int, width: int, seed: int) -> None:
    d, reference = drawn((n, c, height, width), seed), drawn((n, c, height, width), seed + 100)
    (part,), (part_other,) = ZeroMean().split(d, d), ZeroMean().split(reference, d)
    close(part.sum((2, 3)), torch.zeros(n, c, dtype=torch.float64))
    close(ZeroMean().split(part, d)[0], part)
    close(dot(part, reference), dot(d, part_other))
    close(part + d.mean((2, 3), keepdim=True), d)


def directly(step: Step) -> list[list[Tensor]]:
    """The definition, image by image, over vectors that are written out."""
    values, gradients, centers = ([[t.double() for t in group] for group in groups] for groups in step[:3])
    options = step.options
    images = values[0][0].shape[0]
    factors = options["factors"]
    out = [[center.clone() for center in group] for group in centers]
    for n in range(images):
        vectors = []  # (group, d by tensor, g by tensor, radius)
        radii = [float(radius) * (1 if factors is None else factors[n].item()) for radius in options["radii"]]
        for group, parts in enumerate(options["parts"]):
            ds = [v[n : n + 1] - c[n : n + 1] for v, c in zip(values[group], centers[group], strict=True)]
            gs = [g[n : n + 1] for g in gradients[group]]
            starts = [c[n : n + 1] for c in centers[group]]
            splits = [
                ((d,), (g,)) if parts is None else (parts.split(d, c), parts.split(g, c))
                for d, g, c in zip(ds, gs, starts, strict=True)
            ]
            for index in range(1 if parts is None else len(parts.names)):
                vectors.append((group, [s[0][index] for s in splits], [s[1][index] for s in splits], radii.pop(0)))
        lengths = [math.sqrt(sum(float(g.square().sum()) for g in gs)) * radius for _, _, gs, radius in vectors]
        if options["joint"]:
            lengths = [math.sqrt(sum(length**2 for length in lengths))] * len(vectors)
        moved, used = [], []
        for (_, ds, gs, radius), length in zip(vectors, lengths, strict=True):
            s = options["step_size"] * radius**2 / length if length > 0 else 0.0
            moved.append([d + s * g for d, g in zip(ds, gs, strict=True)])
            distance = math.sqrt(sum(float(d.square().sum()) for d in moved[-1]))
            used.append(distance / radius if radius else 0.0)
        if options["joint"]:
            used = [math.sqrt(sum(u**2 for u in used))] * len(vectors)
        for (group, _, _, radius), ds, u in zip(vectors, moved, used, strict=True):
            for position, d in enumerate(ds):
                out[group][position][n] += (d[0] / max(1, u)) if radius else 0
    return out


@pytest.mark.parametrize("seed", range(40))
def test_the_step_against_a_direct_implementation(seed: int) -> None:
    step = random_parts(seed)
    for ours, expected, starts in zip(exact(step), directly(step), step.centers, strict=True):
        for tensor, reference, center in zip(ours, expected, starts, strict=True):
            farthest = (reference - center.double()).abs().max().item() if reference.numel() else 0.0
            torch.testing.assert_close(tensor, reference, rtol=1e-9, atol=1e-6 * farthest)  # factors are float32


def test_the_result_stays_in_its_parts_and_balls() -> None:
    step = random_parts(3)
    values, gradients, centers = step[:3]
    for _ in range(4):
        values = ascent_step(values, gradients, centers, **step.options)
    for group, start, parts in zip(values, centers, step.options["parts"], strict=True):
        for value, center in zip(group, start, strict=True):
            d = value.double() - center.double()
            if parts is not None:
                torch.testing.assert_close(sum(parts.split(d, center.double())), d, rtol=1e-2, atol=1e-2)


def test_radii_in_a_tensor_are_the_same_as_numbers() -> None:
    step = random_parts(7)
    options = step.options | {"radii": torch.tensor(step.options["radii"])}
    ours, expected = (ascent_step(*step[:3], **choice) for choice in (options, step.options))
    for group, references in zip(ours, expected, strict=True):
        for tensor, reference in zip(group, references, strict=True):
            torch.testing.assert_close(tensor, reference, rtol=1e-5, atol=1e-7)


def arguments(**changed: Any) -> dict[str, Any]:
    tensors = [[torch.rand(2, 3, 4, 3, 3)], [torch.rand(2, 3, 4, 4)]]
    options: dict[str, Any] = {"values": tensors, "gradients": tensors, "centers": tensors, "step_size": 0.3}
    return options | {"radii": [1.0] * 4, "parts": [KernelParts(), ZeroMean()]} | changed


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"parts": [None]}, ValueError, "parts must have one entry per group of values, 2, had 1"),
        ({"parts": [None, "zero"]}, TypeError, r"parts\[1\] must be KernelParts, ZeroMean or None, was str"),
        ({"radii": [1.0, 1.0]}, ValueError, "radii must have one entry per part of a group of values, 4, had 2"),
        (
            {"parts": [None, KernelParts()]},
            ValueError,
            r"values\[1\]\[0\] must have shape \(N, O, I, 3, 3\) with KernelParts, was \(2, 3, 4, 4\)",
        ),
        (
            {name: [[torch.rand(2, 3)]] for name in ("values", "gradients", "centers")} | {"parts": [ZeroMean()]},
            ValueError,
            r"values\[0\]\[0\] must have shape \(N, C, ...\) with ZeroMean, was \(2, 3\)",
        ),
        ({"factors": torch.rand(3)}, ValueError, r"factors must have shape \(N,\), here \(2,\), was \(3,\)"),
        ({"factors": torch.rand(2).double()}, TypeError, "factors must be float32, was torch.float64"),
        ({"radii": torch.rand(4).half()}, TypeError, "radii must be float32, was torch.float16"),
    ],
)
def test_errors(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    options = arguments(**changed)
    with pytest.raises(error, match=message):
        ascent_step(options.pop("values"), options.pop("gradients"), options.pop("centers"), **options)
