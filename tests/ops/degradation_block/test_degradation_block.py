"""degradation_block against its definition: values, gradients, precision and memory formats."""

import itertools
import math
from typing import Any

import pytest
import torch
from degradation_block_cases import (
    NAMES,
    NOISES,
    SLOPES,
    leaves,
    make,
    outputs_and_gradients,
    reference,
    relative_error,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from andfast.functional import degradation_block
from andfast.functional.degradation_block import PADDINGS


@given(
    n=st.sampled_from([0, 1, 2, 3]),
    c_in=st.sampled_from([1, 2, 3, 7]),
    c_out=st.sampled_from([1, 3, 4, 5]),
    height=st.sampled_from([1, 2, 3, 5, 8, 11]),
    width=st.sampled_from([1, 2, 3, 7, 13]),
    shared=st.booleans(),
    slope=st.sampled_from(SLOPES),
    noise=st.sampled_from(NOISES),
    padding=st.sampled_from(PADDINGS),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_shapes(padding: str, channels_last: bool, n: int, **shape: Any) -> None:
    arguments = make(n, **shape)
    if channels_last:
        arguments["x"] = arguments["x"].detach().to(memory_format=torch.channels_last).requires_grad_()
    actual = outputs_and_gradients(arguments, padding, oracle=False)
    if n == 0:  # the definition would concatenate no images
        assert actual[0].shape == (0, shape["c_out"], shape["height"], shape["width"])
        for grad, leaf in zip(actual[1:], leaves(arguments), strict=True):
            assert grad.shape == leaf.shape
            assert not grad.any()
        return
    for result, exact in zip(actual, outputs_and_gradients(arguments, padding, oracle=True), strict=True):
        assert result.dtype == torch.float64
        assert relative_error(result, exact) < 1e-12


@pytest.mark.parametrize(
    ("slope", "noise", "padding", "shared"), list(itertools.product(SLOPES, NOISES, PADDINGS, [False, True]))
)
def test_all_argument_shapes(slope: str, noise: str | None, padding: str, shared: bool) -> None:
    arguments = make(3, 5, 7, 5, 3, slope=slope, noise=noise, shared=shared)
    actual = outputs_and_gradients(arguments, padding, oracle=False)
    exact = outputs_and_gradients(arguments, padding, oracle=True)
    assert max(map(relative_error, actual, exact)) < 1e-12


def test_by_hand() -> None:
    """One pixel, one channel: with replicate padding all nine taps see it, with zeros only the center."""
    x, weight = torch.full((1, 1, 1, 1), 2.0), torch.arange(9.0).view(1, 1, 3, 3) - 5  # sum -9, center -1
    noise = torch.full((1, 1, 1, 1), 10.0)
    assert degradation_block(x, weight, 0.5).item() == -9
    assert degradation_block(x, weight, -0.5, noise).item() == 19
    assert degradation_block(x, weight, 3, padding="zeros").item() == -6
    assert degradation_block(-x, weight, 3, padding="zeros").item() == 2


@pytest.mark.parametrize("value", [-2.0, 0.0, 0.2, 1.0, 3.0])
def test_slope_applies_to_negative_preactivations(value: float) -> None:
    """The gradient follows the sign of the pre-activation, which may differ from the output's."""
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5).requires_grad_()
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1] = 1
    slope = torch.tensor(value, requires_grad=True)
    out = degradation_block(x, weight, slope)
    torch.testing.assert_close(out, torch.where(x > 0, x, x * value))
    out.sum().backward()
    assert x.grad is not None
    assert slope.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([value, value, value, 1, 1])
    assert slope.grad.item() == -3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize(("slope", "shared"), [("image", False), ("channel", True)])
def test_precision(dtype: torch.dtype, tolerance: float, slope: str, shared: bool) -> None:
    """Compare with float64 on the same values; half types are activated in fp32 and rounded once more."""
    arguments = make(3, 16, 17, 12, 11, slope=slope, shared=shared, dtype=dtype)
    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in arguments.items()}
    actual = outputs_and_gradients(arguments, "replicate", oracle=False)
    out = reference(wide)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
    exact = [out, *torch.autograd.grad(out, leaves(wide), grad.double())]
    for name, result, expected in zip(("out", *NAMES), actual, exact, strict=True):
        assert result.dtype == dtype, name
        assert relative_error(result, expected) <= tolerance, name


def test_half_images_with_fp32_slopes_and_noise() -> None:
    """Under mixed precision, slopes, noise and their gradients stay in fp32."""
    arguments = make(2, 8, 8, 6, 6, dtype=torch.float32)
    mixed = arguments | {name: arguments[name].detach().bfloat16().requires_grad_() for name in ("x", "weight")}
    actual = outputs_and_gradients(mixed, "replicate", oracle=False)
    exact = outputs_and_gradients(arguments, "replicate", oracle=True)
    assert [result.dtype for result in actual] == [torch.bfloat16] * 3 + [torch.float32] * 2
    for result, expected in zip(actual, exact, strict=True):
        assert relative_error(result, expected) < 2e-2


@pytest.mark.parametrize(
    ("slope", "noise", "padding", "shared"),
    [
        ("image", "full", "replicate", False),
        ("channel", "single", "zeros", False),
        ("scalar", "single", "replicate", True),
    ],
)
def test_gradcheck(slope: str, noise: str, padding: str, shared: bool) -> None:
    arguments = make(2, 2, 2, 2, 3, slope=slope, noise=noise, shared=shared)
    assert torch.autograd.gradcheck(
        lambda *tensors: degradation_block(*tensors, padding=padding), leaves(arguments), atol=1e-7
    )


def test_second_derivatives_raise() -> None:
    arguments = make()
    (grad,) = torch.autograd.grad(degradation_block(**arguments).square().sum(), arguments["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="degradation_block_backward"):
        grad.sum().backward()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x", "weight", "slope", "noise"])
def test_non_finite_values_propagate(where: str, value: float) -> None:
    arguments = make(2, 3, 4, 5, 6)
    with torch.no_grad():
        arguments[where].view(-1)[-1] = value
        actual, exact = degradation_block(**arguments), reference(arguments)
    assert not actual[-1].isfinite().all()
    assert actual[0].isfinite().all()  # the first image has its own parameters
    torch.testing.assert_close(actual, exact, equal_nan=True)


def test_nan_propagates_into_gradients() -> None:
    arguments = make(2, 3, 4, 5, 6)
    with torch.no_grad():
        arguments["x"][1, 0, 2, 2] = math.nan
    actual = outputs_and_gradients(arguments, "replicate", oracle=False)
    exact = outputs_and_gradients(arguments, "replicate", oracle=True)
    for result, expected in zip(actual, exact, strict=True):
        torch.testing.assert_close(result, expected, equal_nan=True)
    assert actual[2][1].isnan().any()
    assert actual[3][1].isnan()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("shared", [False, True])
def test_memory_formats(noise: str | None, shared: bool) -> None:
    arguments = make(2, 3, 4, 5, 6, noise=noise, shared=shared)
    contiguous = outputs_and_gradients(arguments, "replicate", oracle=False)
    assert contiguous[0].is_contiguous()
    assert contiguous[1].is_contiguous()
    arguments["x"] = arguments["x"].detach().to(memory_format=torch.channels_last).requires_grad_()
    last = outputs_and_gradients(arguments, "replicate", oracle=False)
    assert last[0].is_contiguous(memory_format=torch.channels_last)
    assert last[1].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(contiguous, last, strict=True):
        torch.testing.assert_close(a, b)


def test_strided_inputs() -> None:
    arguments = make(4, 6, 5, 8, 9)
    exact = outputs_and_gradients(arguments, "replicate", oracle=False)

    def scattered(tensor: Tensor) -> Tensor:
        """The same values with gaps between them, along reversed dimensions."""
        store = torch.empty([2 * size for size in reversed(tensor.shape)], dtype=tensor.dtype)
        view = store.permute(*reversed(range(tensor.dim())))[tuple([slice(None, None, 2)] * tensor.dim())]
        return view.copy_(tensor.detach()).requires_grad_()

    views = {name: scattered(tensor) for name, tensor in arguments.items()}
    assert not views["x"].is_contiguous()
    for a, b in zip(exact, outputs_and_gradients(views, "replicate", oracle=False), strict=True):
        torch.testing.assert_close(a, b)


def test_expanded_inputs_and_gradients() -> None:
    """Noise expanded from a single zero, as in identity networks, and the gradient of a sum."""
    arguments = make(2, 3, 4, 5, 6)
    arguments["noise"] = torch.zeros((), dtype=torch.float64).expand(2, 4, 5, 6).requires_grad_()
    out = degradation_block(**arguments)
    grads = torch.autograd.grad(out.sum(), leaves(arguments))
    exact = torch.autograd.grad(reference(arguments).sum(), leaves(arguments))
    for grad, expected in zip(grads, exact, strict=True):
        torch.testing.assert_close(grad, expected)
