"""degradation_block's gradient to the slope recovered from the result, without a saved z, against the definition."""

import itertools
import math
from typing import Any

import pytest
import torch
from degradation_block_cases import BACKWARD, FORMATS, FORWARD, NOISES, SLOPES, leaves, make, reference, relative_error
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from andfast.adversary import PRESETS, ascend, sample_identity
from andfast.functional import degradation_block
from andfast.functional.degradation_block import PADDINGS
from andfast.nn import DegradationNetwork

TENSOR_SLOPES = [slope for slope in SLOPES if slope != "float"]


def away_from_zero(*, negative: bool = False, dtype: torch.dtype = torch.float64, **options: Any) -> dict[str, Any]:
    """Arguments by name with slopes in [0.5, 1.5], some of them negated if ``negative``."""
    arguments = make(dtype=dtype, **options)
    generator = torch.Generator().manual_seed(3)
    slope = 0.5 + torch.rand(arguments["slope"].shape, generator=generator, dtype=torch.float64)
    if negative:
        slope = slope * torch.where(torch.rand(slope.shape, generator=generator) > 0.5, 1.0, -1.0)
    arguments["slope"] = slope.to(dtype).requires_grad_()
    return arguments


def gradients(arguments: dict[str, Any], padding: str = "replicate", *, exact: bool = False) -> list[Tensor]:
    """Result and gradients; ``exact``: of the definition in float64 on the same values."""
    dtype = arguments["x"].dtype
    if exact:
        arguments = {
            name: None if tensor is None else tensor.detach().double().requires_grad_()
            for name, tensor in arguments.items()
        }
        out = reference(arguments, padding)
    else:
        out = degradation_block(**arguments, padding=padding, smallest_slope=0.5)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    return [out, *torch.autograd.grad(out, leaves(arguments), grad.to(out.dtype))]


def saved_bytes(smallest_slope: float, arguments: dict[str, Any]) -> dict[int, int]:
    """Bytes by address of the tensors that a call saves for backward, without its arguments."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        degradation_block(**arguments, smallest_slope=smallest_slope)
    for leaf in leaves(arguments):
        saved.pop(leaf.data_ptr(), None)
    return saved


@pytest.mark.parametrize(
    ("slope", "noise", "padding", "shared", "form"),
    list(itertools.product(TENSOR_SLOPES, NOISES, PADDINGS, [False, True], FORMATS)),
)
def test_all_argument_shapes(slope: str, noise: str | None, padding: str, shared: bool, form: str) -> None:
    arguments = away_from_zero(n=3, c_in=5, c_out=7, height=5, width=3, slope=slope, noise=noise, shared=shared)
    arguments["x"] = arguments["x"].detach().to(memory_format=FORMATS[form]).requires_grad_()
    actual, exact = gradients(arguments, padding), gradients(arguments, padding, exact=True)
    assert max(map(relative_error, actual, exact)) < 1e-12


@pytest.mark.parametrize("slope", TENSOR_SLOPES)
def test_slopes_of_either_sign(slope: str) -> None:
    """The bound is on the absolute value: slopes of the paper's ball reach 0.6, those of others are negative."""
    arguments = away_from_zero(n=3, slope=slope, negative=True)
    assert max(map(relative_error, gradients(arguments), gradients(arguments, exact=True))) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("slope", ["image", "channel"])
@pytest.mark.parametrize("noise", NOISES)
def test_precision(dtype: torch.dtype, tolerance: float, slope: str, noise: str | None) -> None:
    arguments = away_from_zero(n=3, c_in=16, c_out=17, height=12, width=11, slope=slope, noise=noise, dtype=dtype)
    for actual, expected in zip(gradients(arguments), gradients(arguments, exact=True), strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, expected) <= tolerance


def test_half_images_with_fp32_slopes_and_noise() -> None:
    arguments = away_from_zero(n=2, c_in=8, c_out=8, height=12, width=12, dtype=torch.float32)
    exact = gradients(arguments, exact=True)
    mixed = arguments | {name: arguments[name].detach().bfloat16().requires_grad_() for name in ("x", "weight")}
    results = gradients(mixed)
    assert [result.dtype for result in results] == [torch.bfloat16] * 3 + [torch.float32] * 2
    for result, expected in zip(results, exact, strict=True):
        assert relative_error(result, expected) < 2e-2


def test_noise_of_1000_times_z_costs_three_digits() -> None:
    arguments = away_from_zero(n=2, c_in=8, c_out=8, height=32, width=32, dtype=torch.float32)
    with torch.no_grad():
        arguments["noise"] *= 1000 * 8**0.5 * 3
    error = relative_error(gradients(arguments)[3], gradients(arguments, exact=True)[3])
    assert 1e-7 < error < 1e-3


def test_non_finite_values_propagate_as_with_z() -> None:
    for value in (math.nan, math.inf, -math.inf):
        arguments = away_from_zero(n=2, c_in=3, c_out=4, height=5, width=6)
        with torch.no_grad():
            arguments["x"][1, 0, 2, 2] = value
        out = degradation_block(**arguments)
        expected = torch.autograd.grad(out, leaves(arguments), torch.ones_like(out))
        recovered = degradation_block(**arguments, smallest_slope=0.5)
        actual = torch.autograd.grad(recovered, leaves(arguments), torch.ones_like(out))
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize(
    ("slope", "noise", "padding", "shared"),
    [("image", "full", "replicate", False), ("channel", "single", "zeros", False), ("scalar", None, "zeros", True)],
)
def test_gradcheck(slope: str, noise: str | None, padding: str, shared: bool) -> None:
    arguments = away_from_zero(n=2, c_in=2, c_out=2, height=2, width=3, slope=slope, noise=noise, shared=shared)

    def call(*tensors: Tensor) -> Tensor:
        return degradation_block(*tensors, padding=padding, smallest_slope=0.5)

    assert torch.autograd.gradcheck(call, leaves(arguments), atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_opcheck(noise: str | None) -> None:
    arguments = away_from_zero(noise=noise)
    forward = (*arguments.values(), "replicate", True, "reference", False)
    torch.library.opcheck(FORWARD, forward)
    with torch.no_grad():
        out, signs = FORWARD(*forward)
        shape = [0] if noise is None else list(arguments["noise"].shape)
        needs_grad = [True, True, True, noise is not None]
        x, weight, slope, noises = (None if tensor is None else tensor.detach() for tensor in arguments.values())
        backward = (out, x, weight, slope, signs, shape, torch.float64, "zeros", needs_grad, "reference", out, noises)
        torch.library.opcheck(BACKWARD, backward)


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    arguments = away_from_zero(n=2, c_in=3, c_out=4, height=6, width=5)
    torch._dynamo.reset()
    compiled = torch.compile(degradation_block, fullgraph=True, backend="aot_eager")(**arguments, smallest_slope=0.5)
    grad = torch.randn_like(compiled)
    actual = torch.autograd.grad(compiled, leaves(arguments), grad)
    expected = torch.autograd.grad(degradation_block(**arguments), leaves(arguments), grad)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


def test_z_is_not_saved() -> None:
    """Besides the arguments, saves z in float64, or one byte per value and the result, which the caller also holds."""
    arguments = away_from_zero(n=2, c_in=3, c_out=5, height=4, width=7)
    values = 2 * 5 * 4 * 7
    assert list(saved_bytes(0.499, arguments).values()) == [8 * values]
    assert sorted(saved_bytes(0.5, arguments).values()) == [values, 8 * values]
    out = degradation_block(**arguments, smallest_slope=0.5)
    assert out.grad_fn is not None
    owned = {tensor.data_ptr() for tensor in (*leaves(arguments), out)}
    saved = [tensor for tensor in out.grad_fn.saved_tensors if tensor is not None and tensor.data_ptr() not in owned]
    assert [tensor.dtype for tensor in saved] == [torch.bool]
    # Without a gradient to the slope, neither is saved.
    arguments["slope"] = arguments["slope"].detach()
    assert list(saved_bytes(0.5, arguments).values()) == list(saved_bytes(0.0, arguments).values()) == [values]


@pytest.mark.parametrize("preset", ["calibrated", "paper"])
@pytest.mark.parametrize("slope", ["layer", "channel"])
def test_ascent_takes_the_same_path(preset: str, slope: str) -> None:
    """Five steps in float64 differ by rounding only, in separate balls and in a joint one."""
    size = 32
    generator = torch.Generator().manual_seed(7)
    hr = torch.rand(2, 3, size, size, generator=generator, dtype=torch.float64)
    identity = sample_identity(2, hr_size=size, channels=8, slope=slope, generator=generator, dtype=torch.float64)
    ball = PRESETS[preset].ball_for(size, size)
    assert ball.smallest_slope >= 0.5

    def worst(smallest_slope: float) -> tuple[Tensor, ...]:
        network = DegradationNetwork(smallest_slope=smallest_slope)
        target = network(hr, identity)

        def objective(theta: Any) -> Tensor:
            return (network(hr, theta) - target - 0.01).square().mean((1, 2, 3))

        return tuple(ascend(objective, identity, ball=ball, step_size=PRESETS[preset].step_size).theta.tensors())

    for actual, expected, start in zip(worst(ball.smallest_slope), worst(0), identity.tensors(), strict=True):
        assert not torch.equal(expected, start)
        assert relative_error(actual - start, expected - start) < 1e-9


def test_in_place_change_of_the_result_raises() -> None:
    out = degradation_block(**away_from_zero(), smallest_slope=1)
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_rejects_slope_gradient_from_signs() -> None:
    x, weight, slope, _ = (tensor.detach() for tensor in away_from_zero().values())
    out, signs = FORWARD(x, weight, slope, None, "zeros", True, "reference", False)
    with pytest.raises(ValueError, match="needs z or the result, and only signs were saved"):
        BACKWARD(out, x, weight, slope, signs, [0], out.dtype, "zeros", [False, False, True, False], "reference")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, TypeError, "smallest_slope must be a number, was NoneType"),
        (torch.tensor(0.5), TypeError, "smallest_slope must be a number, was Tensor"),
        (-0.5, ValueError, r"smallest_slope must be finite and 0 or more, was -0\.5"),
        (math.nan, ValueError, "smallest_slope must be finite and 0 or more, was nan"),
        (math.inf, ValueError, "smallest_slope must be finite and 0 or more, was inf"),
    ],
)
def test_rejects_invalid_smallest_slope(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        degradation_block(**away_from_zero(), smallest_slope=value)
