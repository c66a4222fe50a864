"""Properties that residual_dense_block and upsampled_convolution share as registered ops of G."""

from collections.abc import Callable
from typing import NamedTuple

import dense_blocks
import pytest
import torch
from convolution_checks import (
    Op,
    assert_follows_autocast,
    assert_output_follows_the_input,
    assert_same,
)
from torch import Tensor

from andfast import functional
from andfast.functional.residual_dense_block import residual_dense_block
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference
from andfast.functional.upsampled_convolution import upsampled_convolution
from andfast.functional.upsampled_convolution_reference import upsampled_convolution_reference


class Subject(NamedTuple):
    """An op with its definition, both on flat arguments, x first."""

    op: Callable[..., Tensor]
    call: Callable[..., Tensor]
    definition: Op


def make(name: str, n: int = 2, height: int = 5, width: int = 7, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random arguments that require gradients; x has 4 channels."""
    if name == "residual_dense_block":
        x, weights, biases = dense_blocks.make(n, 4, 3, height, width, dtype)
        return [x, *weights, *biases]
    shapes = (n, 4, height, width), (11, 4, 3, 3), (11,)
    return [(torch.randn(shape, dtype=torch.float64) / 3).to(dtype).requires_grad_() for shape in shapes]


def call_dense_block(x: Tensor, *parameters: Tensor, impl: str = "auto") -> Tensor:
    return residual_dense_block(x, parameters[:5], parameters[5:], impl=impl)


SUBJECTS = {
    "residual_dense_block": Subject(
        residual_dense_block, call_dense_block, dense_blocks.flat(residual_dense_block_reference)
    ),
    "upsampled_convolution": Subject(upsampled_convolution, upsampled_convolution, upsampled_convolution_reference),
}

pytestmark = pytest.mark.parametrize("name", SUBJECTS)


def test_compiles_for_dynamic_shapes(name: str) -> None:
    _, call, definition = SUBJECTS[name]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, height, width in ((2, 5, 7), (3, 4, 9)):
        arguments = make(name, n, height, width)
        assert_same((compiled(*arguments),), (definition(*arguments),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    _, call, definition = SUBJECTS[name]
    assert_follows_autocast(call, definition, make(name, dtype=torch.float32), dtype)


def test_output_memory_format(name: str) -> None:
    _, call, definition = SUBJECTS[name]
    parameters = make(name)[1:]
    assert_output_follows_the_input(lambda x: call(x, *parameters), lambda x: definition(x, *parameters))


def test_differentiable_once(name: str) -> None:
    x, *parameters = make(name)
    (grad,) = torch.autograd.grad(SUBJECTS[name].call(x, *parameters).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name}_backward"):
        grad.sum().backward()


def test_no_grad_records_nothing(name: str) -> None:
    with torch.no_grad():
        assert SUBJECTS[name].call(*make(name)).grad_fn is None


def test_does_not_modify_arguments(name: str) -> None:
    arguments = make(name)
    before = [tensor.detach().clone() for tensor in arguments]
    SUBJECTS[name].call(*arguments).sum().backward()
    assert all(torch.equal(tensor, old) for tensor, old in zip(arguments, before, strict=True))


def test_impl(name: str) -> None:
    op, call, _ = SUBJECTS[name]
    arguments = make(name)
    assert torch.equal(call(*arguments), call(*arguments, impl="reference"))
    with pytest.raises(RuntimeError, match=f"impl='triton' of {name}"):
        call(*arguments, impl="triton")
    with pytest.raises(ValueError, match=r"impl must be one of .*, was 'fastest'"):
        call(*arguments, impl="fastest")
    assert getattr(functional, name) is op
