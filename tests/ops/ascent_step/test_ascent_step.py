"""ascent_step: contract, errors and half types of the reference; test_ball tests the geometry."""

from typing import Any

import pytest
import torch
from ascent_step_cases import assert_correct, flat, random_step
from torch import Tensor

from andfast.adversary import Ball, ascend, sample_identity
from andfast.functional import ascent_step, blur_pool
from andfast.nn import DegradationNetwork, Theta

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("part", range(4))
def test_reference_matches_float64(part: int) -> None:
    for seed in range(part, 160, 4):
        step = random_step(seed)
        actual = ascent_step(*step[:3], **step.options, impl="reference")
        # The norm is that of rounded values; the kernels compute it from exact sums.
        assert_correct(actual, step, tolerance=1e-4)


def arguments(**changed: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"radii": [1.0, 2.0], "step_size": 0.3}
    for name in ("values", "gradients", "centers"):
        defaults[name] = [[torch.rand(2, 3), torch.rand(2)], [torch.rand(2, 1, 4, 4)]]
    return defaults | changed


def run(options: dict[str, Any]) -> Any:
    return ascent_step(options.pop("values"), options.pop("gradients"), options.pop("centers"), **options)


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
def test_rejects_invalid_arguments(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(arguments(**changed))


def test_no_groups() -> None:
    assert ascent_step([], [], [], radii=[], step_size=0.3) == []


def test_results_require_no_gradient() -> None:
    options = arguments(values=[[torch.rand(2, 3, requires_grad=True), torch.rand(2)], [torch.rand(2, 1, 4, 4)]])
    assert not any(result.requires_grad for result in flat(run(options)))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("noise", ["full", "single"])
def test_ascent_preserves_noise_dtype(dtype: torch.dtype, noise: str) -> None:
    """Noise and its gradient are in the half type, weights and slopes in float32; the loss rises as in float32."""
    hr = torch.rand(2, 3, 16, 16)
    network, ball = DegradationNetwork(), Ball(0.001, 0.3, 0.02)
    target = blur_pool(hr, 4) + 0.1 * torch.randn(2, 3, 4, 4)
    seen: set[torch.dtype] = set()

    def objective(theta: Theta) -> Tensor:
        for noise_tensor in theta.noises:
            noise_tensor.register_hook(lambda gradient: seen.add(gradient.dtype))
        return (network(hr, theta) - target).square().sum((1, 2, 3))

    gains = []
    for noise_dtype in (torch.float32, dtype):
        seen.clear()
        generator = torch.Generator().manual_seed(3)
        start = sample_identity(2, hr_size=16, channels=8, noise=noise, generator=generator, noise_dtype=noise_dtype)
        result = ascend(objective, start, ball=ball, steps=4)
        assert {tensor.dtype for tensor in result.theta.noises} == {noise_dtype} == seen
        assert {tensor.dtype for tensor in (*result.theta.weights, *result.theta.slopes)} == {torch.float32}
        assert ball.overshoot(result.theta, start).max() <= 1 + 2e-3
        gains.append(result.losses[-1] - result.losses[0])
    assert gains[0] > 0
    torch.testing.assert_close(gains[1], gains[0], rtol=1e-2, atol=0)


def test_identity_noise_takes_no_memory() -> None:
    theta = sample_identity(2, hr_size=8, channels=3, noise_dtype=torch.bfloat16)
    for noise in theta.noises:
        assert noise.dtype == torch.bfloat16
        assert not any(noise.stride())
        assert noise.untyped_storage().nbytes() == 2
