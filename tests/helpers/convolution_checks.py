"""What the tests of ops that convolve images hold in common; an op and its definition take flat arguments, x first."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

Op = Callable[..., Tensor]

FORMATS = [torch.contiguous_format, torch.channels_last]


def error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm, in float64."""
    wanted = wanted.double()
    return ((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-300)).item()


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert error(one, other) < tolerance


def assert_same_gradients(found: Tensor, wanted: Tensor, arguments: Sequence[Tensor]) -> None:
    """Of two results, for one random incoming gradient."""
    grad = torch.randn_like(found)
    assert_same(torch.autograd.grad(found, arguments, grad), torch.autograd.grad(wanted, arguments, grad))


def results_in(dtype: torch.dtype, f: Op, stored: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and all gradients, computed in ``dtype`` from the same stored numbers."""
    cast = [one.to(dtype).requires_grad_() for one in stored]
    out = f(*cast)
    return [out, *torch.autograd.grad(out, cast, grad.to(dtype))]


def assert_follows_autocast(op: Op, definition: Op, arguments: Sequence[Tensor], dtype: torch.dtype) -> None:
    """The result of float32 arguments is of autocast's dtype, their gradients are not; float64 is left alone."""
    with torch.autocast("cpu", dtype):
        found = op(*arguments)
    assert found.dtype == dtype
    assert_same((found,), (definition(*arguments),), 1e-2)
    grads = torch.autograd.grad(found.float().sum(), arguments)
    assert all(one.dtype == torch.float32 for one in grads)
    with torch.autocast("cpu", dtype):  # as everywhere in PyTorch
        assert op(*(one.double() for one in arguments)).dtype == torch.float64


def assert_output_follows_the_input(op: Op, definition: Op) -> None:
    """Both take x (2, 4, H, W) alone; the result is channels_last where x is cut out of such a tensor."""
    wide = torch.randn(2, 8, 5, 14, dtype=torch.float64)
    for x in (
        wide[:, ::2, :, ::2],
        wide.contiguous(memory_format=torch.channels_last)[:, 2:6, :, ::2],
        wide[:, :4, :, :7].transpose(2, 3),
        wide[:1, :4].expand(2, -1, -1, -1),
    ):
        assert not x.is_contiguous()
        found = op(x)
        assert_same((found,), (definition(x),))
        last = x.stride(1) == 1
        assert found.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def assert_known_without_data(run: Callable[[str], Sequence[Tensor]]) -> None:
    """What ``run`` makes on a device has the same shapes, strides and dtypes on meta and on fake tensors."""
    real, meta = run("cpu"), run("meta")
    with FakeTensorMode():
        fake = run("cpu")
    for found in (meta, fake):
        for one, other in zip(found, real, strict=True):
            assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
