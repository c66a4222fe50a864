"""residual_dense_block against its definition: results, gradients, operation counts and saved tensors."""

import itertools

import pytest
import torch
from convolution_checks import (
    FORMATS,
    assert_same,
    assert_same_gradients,
)
from dense_blocks import flat, freeze, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import layout
from andfast.functional.residual_dense_block import residual_dense_block
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference

SHAPES = [
    (2, 4, 3, 5, 7),
    (1, 8, 4, 8, 8),
    (3, 1, 1, 1, 1),
    (2, 3, 2, 1, 6),
    (0, 4, 2, 6, 6),
]  # N, F, G, H, W


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("slope", "scale"), [(0.2, 0.2), (0.0, 1.0), (1.5, -0.5)])
def test_matches_definition(
    shape: tuple[int, ...], memory_format: torch.memory_format, slope: float, scale: float
) -> None:
    x, weights, biases = make(*shape)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    arguments = [x, *weights, *biases]
    actual = residual_dense_block(x, weights, biases, slope=slope, scale=scale)
    expected = residual_dense_block_reference(x, weights, biases, slope=slope, scale=scale)
    assert_same((actual,), (expected,))
    assert actual.stride() == x.stride()
    assert_same_gradients(actual, expected, arguments)


@given(
    n=st.integers(0, 3),
    features=st.integers(1, 6),
    growth=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    frozen=st.booleans(),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_random_shapes_match_definition(
    n: int, features: int, growth: int, height: int, width: int, frozen: bool
) -> None:
    x, weights, biases = make(n, features, growth, height, width)
    if frozen:
        weights, biases = freeze(weights), freeze(biases)
    arguments = [tensor for tensor in (x, *weights, *biases) if tensor.requires_grad]
    actual, expected = (f(x, weights, biases) for f in (residual_dense_block, residual_dense_block_reference))
    assert_same((actual,), (expected,))
    assert_same_gradients(actual, expected, arguments)


# Which of x, weights and biases require gradients.
NEEDS = [
    *itertools.product((False, True), repeat=3),
    (False, [2], []),
    (False, [4], []),
    (True, [0, 3], [1]),
    (False, [], [0]),
    (False, [], [4]),
]


def choose(needs: bool | list[int], tensors: list[Tensor]) -> list[Tensor]:
    chosen = range(5) if needs is True else needs or []
    return [tensor if k in chosen else tensor.detach() for k, tensor in enumerate(tensors)]


@pytest.mark.parametrize("needs", NEEDS[1:])
def test_subsets_of_gradients(needs: tuple) -> None:
    x, weights, biases = make()
    x = x if needs[0] else x.detach()
    weights, biases = choose(needs[1], weights), choose(needs[2], biases)
    arguments = [tensor for tensor in (x, *weights, *biases) if tensor.requires_grad]
    actual = residual_dense_block(x, weights, biases)
    expected = residual_dense_block_reference(x, weights, biases)
    assert_same_gradients(actual, expected, arguments)


@pytest.mark.parametrize("needs", NEEDS)
def test_flop_counts(needs: tuple) -> None:
    """Two per multiply-accumulate; backward counts only the gradients that autograd needs."""
    n, features, growth, height, width = 2, 4, 3, 5, 7
    x, weights, biases = make(n, features, growth, height, width)
    x = x if needs[0] else x.detach()
    weights, biases = choose(needs[1], weights), choose(needs[2], biases)

    def operations(k: int, cin: int) -> int:
        return 2 * 9 * cin * (growth if k < 4 else features) * height * width * n

    with FlopCounterMode(display=False) as forward:
        out = residual_dense_block(x, weights, biases)
    assert forward.get_total_flops() == sum(operations(k, features + k * growth) for k in range(5))
    if not out.requires_grad:
        return
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    expected = 0
    for k in range(5):
        if weights[k].requires_grad:
            expected += operations(k, features + k * growth)
        if x.requires_grad:
            expected += operations(k, features + k * growth)
        elif any(tensor.requires_grad for tensor in (*weights[:k], *biases[:k])):
            expected += operations(k, k * growth)
    assert backward.get_total_flops() == expected


def test_flop_count_matches_definition() -> None:
    """With all gradients, the count equals that of the plain composition of PyTorch ops."""
    counts = []
    for f in (residual_dense_block, residual_dense_block_reference):
        x, weights, biases = make()
        with FlopCounterMode(display=False) as counter:
            f(x, weights, biases).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_frozen_weights_save_signs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, biases = make(2, 8, 4, 6, 6, torch.float32)
    weights, biases = freeze(weights), freeze(biases)

    def fail(*_: object) -> None:
        raise AssertionError("a gradient to weights was computed")

    monkeypatch.setattr(layout, "convolution_backward", fail)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        out = residual_dense_block(x, weights, biases)
    out.sum().backward()
    parameters = {tensor.data_ptr() for tensor in weights}
    kept = [tensor for tensor in saved if tensor.data_ptr() not in parameters]
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in kept] == [(torch.uint8, (2, 4, 6, 6))]
    with pytest.raises(AssertionError, match="a gradient to weights"):
        residual_dense_block(x, [tensor.requires_grad_() for tensor in weights], biases).sum().backward()


@pytest.mark.parametrize("frozen", [False, True])
def test_gradcheck(frozen: bool) -> None:
    x, weights, biases = make(2, 2, 2, 3, 4)
    parameters = [*weights, *biases]
    if frozen:
        parameters = freeze(parameters)
    torch.autograd.gradcheck(flat(residual_dense_block), (x, *parameters))
