"""The ascent step's Triton kernels on a GPU, against the definition in float64."""

import pytest
import torch
from ascent_step_cases import Groups, Step, assert_correct, flat, random_parts, random_step
from torch import Tensor

from andfast.adversary import PRESETS, ascend, sample_identity
from andfast.functional import ascent_step
from andfast.nn import DegradationNetwork, Theta

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("part", range(4))
def test_random_cases(part: int) -> None:
    for seed in range(part, 200, 4):
        step = random_step(seed, "cuda")
        assert_correct(ascent_step(*step[:3], **step.options, impl="triton"), step)


def at_the_size_of_training(dtype: torch.dtype, images: int, first: bool) -> Step:
    """Theta of F for 256x256: the identity, or as after a few steps."""
    identity = sample_identity(images, hr_size=256, device="cuda", noise_dtype=dtype)
    ball = PRESETS["calibrated"].ball

    def random(like: Tensor, size: float) -> Tensor:
        memory_format = torch.channels_last if like.dim() == 4 else torch.contiguous_format
        return torch.empty(like.shape, dtype=like.dtype, device="cuda", memory_format=memory_format).normal_(0, size)

    centers: Groups = [list(group) for group in identity]
    values: Groups = []
    for group, radius in zip(centers, ball.radii, strict=True):
        size = 0.9 * radius / sum(center[0].numel() for center in group) ** 0.5
        values.append(group if first else [center + random(center, size) for center in group])
    gradients = [[random(center, 1e-3) for center in group] for group in centers]
    return Step(values, gradients, centers, {"radii": ball.radii, "step_size": 0.3, "joint": False}, "")


def image(step: Step, number: int) -> Step:
    parts = ([[tensor[number : number + 1] for tensor in group] for group in groups] for groups in step[:3])
    return Step(*parts, step.options, "")


@pytest.mark.parametrize(
    ("dtype", "first"),
    [(torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, False)],
)
def test_at_the_size_of_training(dtype: torch.dtype, first: bool) -> None:
    """48 images of 22 M noise values each; three are compared with float64, and two calls bit for bit."""
    step = at_the_size_of_training(dtype, 48, first)
    result = ascent_step(*step[:3], **step.options)
    again = ascent_step(*step[:3], **step.options)
    assert all(torch.equal(a, b) for a, b in zip(flat(result), flat(again), strict=True))
    del again
    for number in (0, 23, 47):
        assert_correct(
            [[tensor[number : number + 1] for tensor in group] for group in result], image(step, number), 1e-5
        )


@pytest.mark.parametrize("joint", [False, True])
def test_graph_capture(joint: bool) -> None:
    """Replays read the current gradients, and nothing synchronizes with the host."""
    step = at_the_size_of_training(torch.bfloat16, 2, False)
    options = step.options | {"joint": joint, "impl": "triton"}
    ascent_step(*step[:3], **options)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        ascent_step(*step[:3], **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ascent_step(*step[:3], **options)
    for _ in range(2):
        for gradient in flat(step.gradients):
            gradient.normal_(0, 1e-3)
        graph.replay()
        expected = ascent_step(*step[:3], **options)
        assert all(torch.equal(a, b) for a, b in zip(flat(captured), flat(expected), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ascent_matches_reference(dtype: torch.dtype) -> None:
    hr = torch.rand(2, 3, 64, 64, device="cuda")
    target = torch.rand(2, 3, 16, 16, device="cuda")
    network = DegradationNetwork(impl="reference")

    def objective(theta: Theta) -> Tensor:
        return (network(hr, theta) - target).square().mean((1, 2, 3))

    start = sample_identity(2, hr_size=64, device="cuda", noise_dtype=dtype)
    ball = PRESETS["calibrated"].ball_for(64, 64)
    actual, expected = (ascend(objective, start, ball=ball, impl=impl) for impl in ("triton", "reference"))
    torch.testing.assert_close(actual.losses, expected.losses, rtol=1e-3, atol=0)


@pytest.mark.parametrize("part", range(2))
def test_random_cases_with_parts(part: int) -> None:
    for seed in range(part, 100, 2):
        step = random_parts(seed, "cuda")
        assert_correct(ascent_step(*step[:3], **step.options, impl="triton"), step, 1e-5)


def test_replays_follow_radii_and_factors() -> None:
    """Radii and factors in tensors may change between replays of a captured step in preset symmetric's ball."""
    identity = sample_identity(2, hr_size=64, device="cuda")
    ball = PRESETS["symmetric"].ball_for(64, 64)
    radii, factors = torch.tensor(ball.radii, device="cuda"), torch.ones(2, device="cuda")
    gradients = [[torch.randn_like(tensor) for tensor in group] for group in identity]
    options = {"radii": radii, "factors": factors, "parts": ball.parts, "step_size": 0.3, "impl": "triton"}
    values = ascent_step(identity, gradients, identity, **options)
    ascent_step(values, gradients, identity, **options)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = ascent_step(values, gradients, identity, **options)
    for _ in range(2):
        radii.mul_(0.5)
        factors.uniform_()
        graph.replay()
        expected = ascent_step(values, gradients, identity, **options)
        assert all(torch.equal(a, b) for a, b in zip(flat(result), flat(expected), strict=True))
