"""Checks shared by the tests of convolution ops. An op and its definition take flat arguments, x first."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

Op = Callable[..., Tensor]

FORMATS = [torch.contiguous_format, torch.channels_last]


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative error in the norm, in float64."""
    expected = expected.double()
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-12) -> None:
    for tensor, expected_tensor in zip(actual, expected, strict=True):
        assert tensor.shape == expected_tensor.shape
        assert error(tensor, expected_tensor) < tolerance


def assert_same_gradients(actual: Tensor, expected: Tensor, arguments: Sequence[Tensor]) -> None:
    """Compare the gradients of two results for a random incoming gradient."""
    grad = torch.randn_like(actual)
    assert_same(torch.autograd.grad(actual, arguments, grad), torch.autograd.grad(expected, arguments, grad))


def results_in(dtype: torch.dtype, f: Op, stored: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and all gradients, computed in ``dtype`` from the same stored values."""
    cast = [tensor.to(dtype).requires_grad_() for tensor in stored]
    out = f(*cast)
    return [out, *torch.autograd.grad(out, cast, grad.to(dtype))]


def assert_follows_autocast(op: Op, definition: Op, arguments: Sequence[Tensor], dtype: torch.dtype) -> None:
    """float32 arguments give a result in the autocast dtype and float32 gradients; float64 is not cast."""
    with torch.autocast("cpu", dtype):
        actual = op(*arguments)
    assert actual.dtype == dtype
    assert_same((actual,), (definition(*arguments),), 1e-2)
    grads = torch.autograd.grad(actual.float().sum(), arguments)
    assert all(tensor.dtype == torch.float32 for tensor in grads)
    with torch.autocast("cpu", dtype):  # as everywhere in PyTorch
        assert op(*(tensor.double() for tensor in arguments)).dtype == torch.float64


def assert_output_follows_the_input(op: Op, definition: Op) -> None:
    """The result is channels_last if x, (2, 4, H, W), is a slice of a channels_last tensor."""
    wide = torch.randn(2, 8, 5, 14, dtype=torch.float64)
    for x in (
        wide[:, ::2, :, ::2],
        wide.contiguous(memory_format=torch.channels_last)[:, 2:6, :, ::2],
        wide[:, :4, :, :7].transpose(2, 3),
        wide[:1, :4].expand(2, -1, -1, -1),
    ):
        assert not x.is_contiguous()
        actual = op(x)
        assert_same((actual,), (definition(x),))
        last = x.stride(1) == 1
        assert actual.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def assert_known_without_data(run: Callable[[str], Sequence[Tensor]]) -> None:
    """The results of ``run`` have the same shapes, strides and dtypes on meta and fake tensors as on the CPU."""
    real, meta = run("cpu"), run("meta")
    with FakeTensorMode():
        fake = run("cpu")
    for actual in (meta, fake):
        for tensor, cpu in zip(actual, real, strict=True):
            assert (tensor.shape, tensor.stride(), tensor.dtype) == (cpu.shape, cpu.stride(), cpu.dtype)
