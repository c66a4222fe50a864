"""upsampled_convolution against its definition: results, gradients, operation counts and saved tensors."""

import itertools
from collections.abc import Callable

import pytest
import torch
from convolution_checks import (
    FORMATS,
    assert_same,
    assert_same_gradients,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from upsampled_cases import FACTORS, make

from andfast.functional import upsampled_convolution_reference as reference
from andfast.functional.upsampled_convolution import backward_op, forward_op, upsampled_convolution
from andfast.functional.upsampled_convolution_reference import upsampled_convolution_reference
from andfast.functional.upsampled_kernel import transposed_kernel, weight_gradient

SHAPES = [
    (2, 4, 3, 5, 7),
    (1, 8, 16, 8, 8),
    (3, 1, 1, 1, 1),
    (2, 3, 17, 1, 6),
    (0, 4, 9, 6, 6),
]  # N, Cin, Cout, H, W


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slope", [0.2, 0.0, 1.0, 1.5])
@pytest.mark.parametrize("factor", FACTORS)
def test_matches_definition(
    shape: tuple[int, ...], memory_format: torch.memory_format, slope: float, factor: int
) -> None:
    x, weight, bias = make(*shape)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    actual = upsampled_convolution(x, weight, bias, factor=factor, slope=slope)
    expected = upsampled_convolution_reference(x, weight, bias, factor=factor, slope=slope)
    assert_same((actual,), (expected,))
    channels_last = x.stride(1) == 1 and x.stride(3) != 1
    assert actual.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert_same_gradients(actual, expected, (x, weight, bias))


@given(
    n=st.integers(0, 3),
    c_in=st.integers(1, 6),
    c_out=st.integers(1, 18),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    factor=st.sampled_from(FACTORS),
    frozen=st.booleans(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_random_shapes_match_definition(
    n: int, c_in: int, c_out: int, height: int, width: int, factor: int, frozen: bool
) -> None:
    x, weight, bias = make(n, c_in, c_out, height, width)
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    arguments = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]
    actual, expected = (
        f(x, weight, bias, factor=factor) for f in (upsampled_convolution, upsampled_convolution_reference)
    )
    assert_same((actual,), (expected,))
    assert_same_gradients(actual, expected, arguments)


def test_border_is_zero_padded() -> None:
    """With a kernel of ones the result is the number of taps inside the map."""
    tensor = torch.ones(1, 1, 3, 2, dtype=torch.float64)
    weight, bias = torch.ones(1, 1, 3, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    actual = upsampled_convolution(tensor, weight, bias, factor=2)[0, 0]
    rows, columns = torch.full((6,), 3), torch.full((4,), 3)
    rows[[0, -1]] = columns[[0, -1]] = 2
    assert torch.equal(actual, torch.outer(rows, columns).double())


@pytest.mark.parametrize("factor", FACTORS)
def test_weight_gradient_is_transpose_of_kernel(factor: int) -> None:
    """<k(w), g> = <w, k'(g)>."""
    weight, grad = torch.randn(3, 2, 3, 3).double(), torch.randn(3, 2, factor + 2, factor + 2).double()
    left, right = (transposed_kernel(weight, factor) * grad).sum(), (weight * weight_gradient(grad, factor)).sum()
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3))[1:])
@pytest.mark.parametrize("factor", FACTORS)
def test_subsets_of_gradients(needs: tuple[bool, ...], factor: int) -> None:
    tensors = [tensor if need else tensor.detach() for tensor, need in zip(make(), needs, strict=True)]
    arguments = [tensor for tensor in tensors if tensor.requires_grad]
    with FlopCounterMode(display=False) as counter:
        actual = upsampled_convolution(*tensors, factor=factor)
    expected = upsampled_convolution_reference(*tensors, factor=factor)
    operations = 2 * 9 * 4 * 11 * actual[:, 0].numel()
    assert counter.get_total_flops() == operations
    grad = torch.randn_like(actual)
    with FlopCounterMode(display=False) as counter:
        grads = torch.autograd.grad(actual, arguments, grad)
    assert counter.get_total_flops() == operations * sum(needs[:2])
    assert_same(grads, torch.autograd.grad(expected, arguments, grad))


class Largest(TorchDispatchMode):
    """Records the largest number of elements of any tensor created inside an op, by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))  # type: ignore[operator]
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.sizes[tensor.dtype] = max(self.sizes.get(tensor.dtype, 0), tensor.numel())
        return out


def test_upsampled_map_is_not_materialized() -> None:
    """Not inside the op either: with more input than output channels it would be the largest tensor."""
    x, weight, bias = (tensor.detach() for tensor in make(1, 16, 4, 8, 8))
    forward, backward = (op._init_fn for op in (forward_op, backward_op))
    with Largest() as largest:
        out, signs = forward(x, weight, bias, 2, 0.2, True, "reference")
        for saved, all_needed in ((signs, False), (out, True)):
            needed = [True, all_needed, all_needed]
            backward(torch.randn_like(out), saved, x, weight, 2, 0.2, needed, False, "reference")
    kernel = 16 * 16 * 4
    assert largest.sizes[torch.float64] == max(out.numel(), kernel) < 4 * x.numel()
    assert signs.numel() == out.numel() // 4  # bytes of 8 signs, of which half have no channel here


def saved_tensors(call: Callable[[], Tensor], parameters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the result and the tensors saved for backward, without parameters and empty tensors."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        out = call()
    pointers = {tensor.data_ptr() for tensor in parameters}
    return out, [tensor for tensor in saved if tensor.numel() and tensor.data_ptr() not in pointers]


@pytest.mark.parametrize("factor", FACTORS)
def test_saved_tensors(factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen: one bit per element, or nothing without an activation. Trained: x and the result."""
    x, weight, bias = make(2, 8, 16, 6, 5, torch.float32)
    frozen = weight.detach(), bias.detach()
    bits = (torch.uint8, (2, factor * 6, factor * 5, 2))
    with monkeypatch.context() as patch:
        patch.setattr(reference, "gradients", None)
        out, saved = saved_tensors(lambda: upsampled_convolution(x, *frozen, factor=factor), list(frozen))
        assert [(tensor.dtype, tuple(tensor.shape)) for tensor in saved] == [bits]
        out.sum().backward()
        out, saved = saved_tensors(lambda: upsampled_convolution(x, *frozen, factor=factor, slope=1), list(frozen))
        assert saved == []
        out.sum().backward()
    out, saved = saved_tensors(lambda: upsampled_convolution(x, weight, bias, factor=factor), [weight, bias])
    assert [tensor.data_ptr() for tensor in saved] == [out.data_ptr(), x.data_ptr()]
    out, saved = saved_tensors(lambda: upsampled_convolution(x, frozen[0], bias, factor=factor), [weight, bias])
    assert [tensor.data_ptr() for tensor in saved] == [out.data_ptr()]


def test_no_grad_saves_nothing() -> None:
    with torch.no_grad():
        assert upsampled_convolution(*make()).grad_fn is None
    assert forward_op(*make(), 2, 0.2, False, "reference")[1].numel() == 0


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradcheck(frozen: bool, factor: int) -> None:
    x, *parameters = make(2, 2, 3, 3, 4)
    if frozen:
        parameters = [tensor.detach() for tensor in parameters]
    torch.autograd.gradcheck(lambda *tensors: upsampled_convolution(*tensors, factor=factor), (x, *parameters))
