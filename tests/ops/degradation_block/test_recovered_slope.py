"""degradation_block's gradient to the slope where no z is kept: recovered from the result, against the definition."""

import itertools
import math
from typing import Any

import pytest
import torch
from test_degradation_block import BACKWARD, FORMATS, FORWARD, NOISES, SLOPES, leaves, make, reference, relative_error
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from andfast.adversary import PRESETS, ascend, sample_identity
from andfast.functional import degradation_block
from andfast.functional.degradation_block import PADDINGS
from andfast.nn import DegradationNetwork

TENSOR_SLOPES = [one for one in SLOPES if one != "float"]


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
    """Result and gradients; ``exact``: of the definition in float64 on the same numbers."""
    dtype = arguments["x"].dtype
    if exact:
        arguments = {
            name: None if one is None else one.detach().double().requires_grad_() for name, one in arguments.items()
        }
        out = reference(arguments, padding)
    else:
        out = degradation_block(**arguments, padding=padding, smallest_slope=0.5)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    return [out, *torch.autograd.grad(out, leaves(arguments), grad.to(out.dtype))]


def kept(smallest_slope: float, arguments: dict[str, Any]) -> dict[int, int]:
    """Bytes of the tensors that a call keeps for its backward pass and that are none of its arguments."""
    found: dict[int, int] = {}

    def pack(one: Tensor) -> Tensor:
        found[one.data_ptr()] = one.nbytes
        return one

    with saved_tensors_hooks(pack, lambda one: one):
        degradation_block(**arguments, smallest_slope=smallest_slope)
    for one in leaves(arguments):
        found.pop(one.data_ptr(), None)
    return found


@pytest.mark.parametrize(
    ("slope", "noise", "padding", "shared", "form"),
    list(itertools.product(TENSOR_SLOPES, NOISES, PADDINGS, [False, True], FORMATS)),
)
def test_every_form(slope: str, noise: str | None, padding: str, shared: bool, form: str) -> None:
    arguments = away_from_zero(n=3, c_in=5, c_out=7, height=5, width=3, slope=slope, noise=noise, shared=shared)
    arguments["x"] = arguments["x"].detach().to(memory_format=FORMATS[form]).requires_grad_()
    found, exact = gradients(arguments, padding), gradients(arguments, padding, exact=True)
    assert max(map(relative_error, found, exact)) < 1e-12


@pytest.mark.parametrize("slope", TENSOR_SLOPES)
def test_slopes_of_either_sign(slope: str) -> None:
    """The bound is of the absolute value: the paper's ball reaches 0.6, others lie below 0."""
    arguments = away_from_zero(n=3, slope=slope, negative=True)
    assert max(map(relative_error, gradients(arguments), gradients(arguments, exact=True))) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("slope", ["image", "channel"])
@pytest.mark.parametrize("noise", NOISES)
def test_precision(dtype: torch.dtype, tolerance: float, slope: str, noise: str | None) -> None:
    arguments = away_from_zero(n=3, c_in=16, c_out=17, height=12, width=11, slope=slope, noise=noise, dtype=dtype)
    for one, right in zip(gradients(arguments), gradients(arguments, exact=True), strict=True):
        assert one.dtype == dtype
        assert relative_error(one, right) <= tolerance


def test_half_images_with_float_slopes_and_noise() -> None:
    arguments = away_from_zero(n=2, c_in=8, c_out=8, height=12, width=12, dtype=torch.float32)
    exact = gradients(arguments, exact=True)
    mixed = arguments | {name: arguments[name].detach().bfloat16().requires_grad_() for name in ("x", "weight")}
    found = gradients(mixed)
    assert [one.dtype for one in found] == [torch.bfloat16] * 3 + [torch.float32] * 2
    for one, right in zip(found, exact, strict=True):
        assert relative_error(one, right) < 2e-2


def test_noise_a_thousand_times_z_costs_three_digits() -> None:
    arguments = away_from_zero(n=2, c_in=8, c_out=8, height=32, width=32, dtype=torch.float32)
    with torch.no_grad():
        arguments["noise"] *= 1000 * 8**0.5 * 3
    error = relative_error(gradients(arguments)[3], gradients(arguments, exact=True)[3])
    assert 1e-7 < error < 1e-3


def test_what_is_not_finite_propagates_as_with_a_kept_z() -> None:
    for value in (math.nan, math.inf, -math.inf):
        arguments = away_from_zero(n=2, c_in=3, c_out=4, height=5, width=6)
        with torch.no_grad():
            arguments["x"][1, 0, 2, 2] = value
        out = degradation_block(**arguments)
        expected = torch.autograd.grad(out, leaves(arguments), torch.ones_like(out))
        again = degradation_block(**arguments, smallest_slope=0.5)
        for one, right in zip(
            torch.autograd.grad(again, leaves(arguments), torch.ones_like(out)), expected, strict=True
        ):
            torch.testing.assert_close(one, right, equal_nan=True)


@pytest.mark.parametrize(
    ("slope", "noise", "padding", "shared"),
    [("image", "full", "replicate", False), ("channel", "single", "zeros", False), ("scalar", None, "zeros", True)],
)
def test_gradcheck(slope: str, noise: str | None, padding: str, shared: bool) -> None:
    arguments = away_from_zero(n=2, c_in=2, c_out=2, height=2, width=3, slope=slope, noise=noise, shared=shared)
    given = leaves(arguments)

    def call(*tensors: Tensor) -> Tensor:
        return degradation_block(*tensors, padding=padding, smallest_slope=0.5)

    assert torch.autograd.gradcheck(call, given, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
def test_opcheck(noise: str | None) -> None:
    arguments = away_from_zero(noise=noise)
    forward = (*arguments.values(), "replicate", True, "reference", False)
    torch.library.opcheck(FORWARD, forward)
    with torch.no_grad():
        out, signs = FORWARD(*forward)
        shape = [0] if noise is None else list(arguments["noise"].shape)
        wanted = [True, True, True, noise is not None]
        x, weight, slope, noises = (None if one is None else one.detach() for one in arguments.values())
        backward = (out, x, weight, slope, signs, shape, torch.float64, "zeros", wanted, "reference", out, noises)
        torch.library.opcheck(BACKWARD, backward)


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    arguments = away_from_zero(n=2, c_in=3, c_out=4, height=6, width=5)
    torch._dynamo.reset()
    compiled = torch.compile(degradation_block, fullgraph=True, backend="aot_eager")(**arguments, smallest_slope=0.5)
    grad = torch.randn_like(compiled)
    found = torch.autograd.grad(compiled, leaves(arguments), grad)
    out = degradation_block(**arguments)
    for one, right in zip(found, torch.autograd.grad(out, leaves(arguments), grad), strict=True):
        torch.testing.assert_close(one, right)
    torch._dynamo.reset()


def test_z_is_not_kept() -> None:
    """What is kept beside the arguments: z in float64, or a byte a value and the result, which the caller has."""
    arguments = away_from_zero(n=2, c_in=3, c_out=5, height=4, width=7)
    values = 2 * 5 * 4 * 7
    assert list(kept(0.499, arguments).values()) == [8 * values]
    assert sorted(kept(0.5, arguments).values()) == [values, 8 * values]
    out = degradation_block(**arguments, smallest_slope=0.5)
    assert out.grad_fn is not None
    mine = {one.data_ptr() for one in (*leaves(arguments), out)}
    others = [one for one in out.grad_fn.saved_tensors if one is not None and one.data_ptr() not in mine]
    assert [one.dtype for one in others] == [torch.bool]
    # Where nobody asks for the slope's gradient, neither is kept.
    arguments["slope"] = arguments["slope"].detach()
    assert list(kept(0.5, arguments).values()) == list(kept(0.0, arguments).values()) == [values]


@pytest.mark.parametrize("preset", ["calibrated", "paper"])
@pytest.mark.parametrize("slope", ["layer", "channel"])
def test_the_ascent_goes_the_same_way(preset: str, slope: str) -> None:
    """Five steps in float64, where only rounding tells the two apart: in separate balls, and in a joint one."""
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

    for found, expected, start in zip(worst(ball.smallest_slope), worst(0), identity.tensors(), strict=True):
        assert not torch.equal(expected, start)
        assert relative_error(found - start, expected - start) < 1e-9


def test_a_result_that_was_changed_is_refused() -> None:
    out = degradation_block(**away_from_zero(), smallest_slope=1)
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_signs_alone_refuse_the_gradient_of_the_slope() -> None:
    x, weight, slope, _ = (one.detach() for one in away_from_zero().values())
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
def test_errors(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        degradation_block(**away_from_zero(), smallest_slope=value)
