"""The ascent step: its contract, what it refuses, and half types in plain PyTorch; see test_ball for the geometry."""

from typing import Any

import pytest
import torch
from ascent_step_cases import assert_right, flat, random_step
from torch import Tensor

from andfast.adversary import Ball, ascend, sample_identity
from andfast.functional import ascent_step, blur_pool
from andfast.nn import DegradationNetwork, Theta

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("part", range(4))
def test_the_reference_against_float64(part: int) -> None:
    for seed in range(part, 160, 4):
        step = random_step(seed)
        found = ascent_step(*step[:3], **step.options, impl="reference")
        # Norms of moved values have the rounding of those far from zero: more than the fused step, which moves sums.
        assert_right(found, step, tolerance=1e-4)


def arguments(**changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"radii": [1.0, 2.0], "step_size": 0.3}
    for name in ("values", "gradients", "centers"):
        given[name] = [[torch.rand(2, 3), torch.rand(2)], [torch.rand(2, 1, 4, 4)]]
    return given | changed


def run(given: dict[str, Any]) -> Any:
    return ascent_step(given.pop("values"), given.pop("gradients"), given.pop("centers"), **given)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"step_size": -1.0}, ValueError, "step_size must be finite and 0 or more, was -1.0"),
        ({"radii": [1.0]}, ValueError, "radii must have one entry per group of values, 2, had 1"),
        ({"radii": [1.0, float("nan")]}, ValueError, "radii must be finite and 0 or more, one was nan"),
        ({"values": [[torch.rand(2), 3], [torch.rand(2)]]}, TypeError, r"values\[0\]\[1\] must be a torch.Tensor, was"),
        ({"values": [[torch.ones(2).int()], []]}, TypeError, r"values\[0\]\[0\] must be a floating-point tensor, was"),
        ({"values": [[torch.rand(())], []]}, ValueError, r"values\[0\]\[0\] must have shape \(N, ...\), was a scalar"),
        (
            {"values": [[torch.rand(2)], [torch.rand(3)]]},
            ValueError,
            r"values\[1\]\[0\] must have as many images as values\[0\]\[0\], 2, had 3",
        ),
        (
            {"gradients": [[torch.rand(2, 3)], [torch.rand(2, 1, 4, 4)]]},
            ValueError,
            r"gradients must have as many tensors in each group as values, \[2, 1\], had \[1, 1\]",
        ),
        (
            {"centers": [[torch.rand(2, 3), torch.rand(2)], [torch.rand(2, 1, 4, 5)]]},
            ValueError,
            r"centers\[1\]\[0\] must have shape of its value, here \(2, 1, 4, 4\), was \(2, 1, 4, 5\)",
        ),
        (
            {name: [[torch.rand(2)], []] for name in ("values", "gradients", "centers")},
            ValueError,
            r"values\[1\] must have at least one tensor, had none",
        ),
        ({"impl": "cuda"}, RuntimeError, "impl='cuda' is not available: ascent_step has no such implementation"),
        ({"impl": "fast"}, ValueError, "impl must be one of auto, .*, was 'fast'"),
    ],
)
def test_what_it_refuses(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(arguments(**changed))


def test_no_groups_no_result() -> None:
    assert ascent_step([], [], [], radii=[], step_size=0.3) == []


def test_nothing_is_recorded_for_autograd() -> None:
    given = arguments(values=[[torch.rand(2, 3, requires_grad=True), torch.rand(2)], [torch.rand(2, 1, 4, 4)]])
    assert not any(one.requires_grad for one in flat(run(given)))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("noise", ["full", "single"])
def test_an_ascent_keeps_noises_in_their_dtype(dtype: torch.dtype, noise: str) -> None:
    """theta and gradients of noise are in the half type, all else in float32; and the loss rises as in float32."""
    hr = torch.rand(2, 3, 16, 16)
    network, ball = DegradationNetwork(), Ball(0.001, 0.3, 0.02)
    target = blur_pool(hr, 4) + 0.1 * torch.randn(2, 3, 4, 4)
    seen: set[torch.dtype] = set()

    def objective(theta: Theta) -> Tensor:
        for one in theta.noises:
            one.register_hook(lambda gradient: seen.add(gradient.dtype))
        return (network(hr, theta) - target).square().sum((1, 2, 3))

    risen = []
    for noise_dtype in (torch.float32, dtype):
        seen.clear()
        generator = torch.Generator().manual_seed(3)
        start = sample_identity(2, hr_size=16, channels=8, noise=noise, generator=generator, noise_dtype=noise_dtype)
        found = ascend(objective, start, ball=ball, steps=4)
        assert {one.dtype for one in found.theta.noises} == {noise_dtype} == seen
        assert {one.dtype for one in (*found.theta.weights, *found.theta.slopes)} == {torch.float32}
        assert ball.overshoot(found.theta, start).max() <= 1 + 2e-3
        risen.append(found.losses[-1] - found.losses[0])
    assert risen[0] > 0
    torch.testing.assert_close(risen[1], risen[0], rtol=1e-2, atol=0)


def test_noises_of_any_dtype_cost_no_memory_at_first() -> None:
    theta = sample_identity(2, hr_size=8, channels=3, noise_dtype=torch.bfloat16)
    for one in theta.noises:
        assert one.dtype == torch.bfloat16
        assert not any(one.stride())
        assert one.untyped_storage().nbytes() == 2
