"""residual_dense_block: against its definition, and as a registered op."""

import itertools
import sys
from collections.abc import Callable

import pytest
import torch
from convolution_checks import (
    FORMATS,
    assert_follows_autocast,
    assert_known_without_data,
    assert_output_follows_the_input,
    assert_same,
    assert_same_gradients,
    error,
    results_in,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import residual_dense_block as op_from_package
from andfast.functional.residual_dense_block import (
    backward_op,
    forward_op,
    residual_dense_block,
    residual_dense_block_reference,
)

SHAPES = [
    (2, 4, 3, 5, 7),
    (1, 8, 4, 8, 8),
    (3, 1, 1, 1, 1),
    (2, 3, 2, 1, 6),
    (0, 4, 2, 6, 6),
]  # N, F, G, H, W


def make(
    n: int = 2,
    features: int = 4,
    growth: int = 3,
    height: int = 5,
    width: int = 7,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Random arguments that require gradients, of about unit size at every layer."""
    generator = torch.Generator().manual_seed(n + 10 * features + 100 * growth + 1000 * height)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(n, features, height, width)
    weights, biases = [], []
    for k in range(5):
        cin, cout = features + k * growth, growth if k < 4 else features
        weights.append(draw(cout, cin, 3, 3) / (3 * cin**0.5))
        biases.append(draw(cout) / 3)
    return (
        x.to(dtype).requires_grad_(),
        [one.to(dtype).requires_grad_() for one in weights],
        [one.to(dtype).requires_grad_() for one in biases],
    )


def flat(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The block with x, five weights and five biases as arguments."""
    return lambda x, *parameters: f(x, parameters[:5], parameters[5:])


def freeze(tensors: list[Tensor]) -> list[Tensor]:
    return [one.detach() for one in tensors]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("slope", "scale"), [(0.2, 0.2), (0.0, 1.0), (1.5, -0.5)])
def test_equals_its_definition(
    shape: tuple[int, ...], memory_format: torch.memory_format, slope: float, scale: float
) -> None:
    x, weights, biases = make(*shape)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    arguments = [x, *weights, *biases]
    found = residual_dense_block(x, weights, biases, slope=slope, scale=scale)
    wanted = residual_dense_block_reference(x, weights, biases, slope=slope, scale=scale)
    assert_same((found,), (wanted,))
    assert found.stride() == x.stride()
    assert_same_gradients(found, wanted, arguments)


@given(
    n=st.integers(0, 3),
    features=st.integers(1, 6),
    growth=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    frozen=st.booleans(),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_any_shape_equals_the_definition(
    n: int, features: int, growth: int, height: int, width: int, frozen: bool
) -> None:
    x, weights, biases = make(n, features, growth, height, width)
    if frozen:
        weights, biases = freeze(weights), freeze(biases)
    arguments = [one for one in (x, *weights, *biases) if one.requires_grad]
    found, wanted = (f(x, weights, biases) for f in (residual_dense_block, residual_dense_block_reference))
    assert_same((found,), (wanted,))
    assert_same_gradients(found, wanted, arguments)


# A subset of arguments: x, all weights, all biases, and some odd ones.
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
    return [one if k in chosen else one.detach() for k, one in enumerate(tensors)]


@pytest.mark.parametrize("needs", NEEDS[1:])
def test_every_subset_of_gradients(needs: tuple) -> None:
    x, weights, biases = make()
    x = x if needs[0] else x.detach()
    weights, biases = choose(needs[1], weights), choose(needs[2], biases)
    arguments = [one for one in (x, *weights, *biases) if one.requires_grad]
    found = residual_dense_block(x, weights, biases)
    wanted = residual_dense_block_reference(x, weights, biases)
    assert_same_gradients(found, wanted, arguments)


@pytest.mark.parametrize("needs", NEEDS)
def test_counts_the_operations_it_does(needs: tuple) -> None:
    """Two a multiply-accumulate; of the backward pass, what is computed, no more than autograd needs."""
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
    wanted = 0
    for k in range(5):
        if weights[k].requires_grad:
            wanted += operations(k, features + k * growth)
        if x.requires_grad:
            wanted += operations(k, features + k * growth)
        elif any(one.requires_grad for one in (*weights[:k], *biases[:k])):
            wanted += operations(k, k * growth)
    assert backward.get_total_flops() == wanted


def test_counts_as_much_as_the_definition() -> None:
    """With x and weights trained, the flop counter of the plain composition is the witness."""
    counts = []
    for f in (residual_dense_block, residual_dense_block_reference):
        x, weights, biases = make()
        with FlopCounterMode(display=False) as counter:
            f(x, weights, biases).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_frozen_weights_get_no_gradient_and_keep_signs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, biases = make(2, 8, 4, 6, 6, torch.float32)
    weights, biases = freeze(weights), freeze(biases)
    module = sys.modules[residual_dense_block.__module__]

    def refuse(*_: object) -> None:
        raise AssertionError("a gradient to weights was computed")

    monkeypatch.setattr(module, "_convolution_backward", refuse)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        out = residual_dense_block(x, weights, biases)
    out.sum().backward()
    parameters = {one.data_ptr() for one in weights}
    kept = [one for one in saved if one.data_ptr() not in parameters]
    assert [(one.dtype, tuple(one.shape)) for one in kept] == [(torch.uint8, (2, 4, 6, 6))]
    with pytest.raises(AssertionError, match="a gradient to weights"):
        residual_dense_block(x, [one.requires_grad_() for one in weights], biases).sum().backward()


def test_no_gradient_keeps_nothing() -> None:
    x, weights, biases = make()
    with torch.no_grad():
        assert residual_dense_block(x, weights, biases).grad_fn is None


@pytest.mark.parametrize("frozen", [False, True])
def test_gradcheck(frozen: bool) -> None:
    x, weights, biases = make(2, 2, 2, 3, 4)
    parameters = [*weights, *biases]
    if frozen:
        parameters = freeze(parameters)
    torch.autograd.gradcheck(flat(residual_dense_block), (x, *parameters))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("frozen", [False, True])
def test_opcheck(frozen: bool, memory_format: torch.memory_format) -> None:
    x, weights, biases = make()
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    if frozen:
        weights, biases = freeze(weights), freeze(biases)
    torch.library.opcheck(forward_op, (x, weights, biases, 0.2, 0.2, not frozen, "reference"))
    with torch.no_grad():
        out, saved = forward_op(x, weights, biases, 0.2, 0.2, not frozen, "reference")
        needed = [not frozen] * 5
        arguments = (
            torch.randn_like(out),
            saved,
            freeze(weights),
            0.2,
            0.2,
            True,
            needed,
            needed,
            "reference",
        )
        torch.library.opcheck(backward_op, arguments)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # Inductor's own
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_to_one_graph(backend: str, frozen: bool) -> None:
    x, weights, biases = make(dtype=torch.float32)
    if frozen:
        weights, biases = freeze(weights), freeze(biases)
    arguments = [one for one in (x, *weights, *biases) if one.requires_grad]

    def twice(x: Tensor) -> Tensor:
        return residual_dense_block(residual_dense_block(x, weights, biases).sin(), weights, biases)

    compiled = torch.compile(twice, fullgraph=True, backend=backend)
    found, wanted = compiled(x), twice(x)
    assert_same((found,), (wanted,), 1e-5)
    assert_same(torch.autograd.grad(found.sum(), arguments), torch.autograd.grad(wanted.sum(), arguments), 1e-5)


def test_compiles_for_dynamic_shapes() -> None:
    compiled = torch.compile(residual_dense_block, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, height, width in ((2, 5, 7), (3, 4, 9)):
        x, weights, biases = make(n, 4, 3, height, width)
        assert_same((compiled(x, weights, biases),), (residual_dense_block_reference(x, weights, biases),))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_precision(dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format) -> None:
    arguments = [one for group in make(2, 16, 8, 9, 11) for one in ([group] if isinstance(group, Tensor) else group)]
    stored = [one.detach().to(dtype) for one in arguments]
    stored[0] = stored[0].contiguous(memory_format=memory_format)
    grad = torch.randn(2, 16, 9, 11).to(dtype)
    op, definition = flat(residual_dense_block), flat(residual_dense_block_reference)
    wanted = results_in(torch.float64, definition, stored, grad)
    found, plain = (results_in(dtype, f, stored, grad) for f in (op, definition))
    assert all(one.dtype == dtype for one in found)
    assert error(found[0], wanted[0]) < tolerance
    # An activation near zero that takes the other sign in 16 bits weighs more than rounding, for the
    # definition too.
    for one, other, exact in zip(found[1:], plain[1:], wanted[1:], strict=True):
        assert error(one, exact) < max(tolerance, 1.3 * error(other, exact))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    x, weights, biases = make(dtype=torch.float32)
    assert_follows_autocast(
        flat(residual_dense_block), flat(residual_dense_block_reference), [x, *weights, *biases], dtype
    )


def test_autocast_compiles() -> None:
    x, weights, biases = make(dtype=torch.float32)

    def under_autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return residual_dense_block(x, weights, biases)

    found = torch.compile(under_autocast, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(found, under_autocast(x))


def test_output_follows_the_input() -> None:
    _, weights, biases = make(2, 4, 3)
    assert_output_follows_the_input(
        lambda x: residual_dense_block(x, weights, biases), lambda x: residual_dense_block_reference(x, weights, biases)
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("frozen", [False, True])
def test_meta_and_fake_tensors(frozen: bool, memory_format: torch.memory_format) -> None:
    def run(device: str) -> list[Tensor]:
        x = torch.randn(2, 4, 5, 7, device=device).contiguous(memory_format=memory_format).requires_grad_()
        weights = [torch.randn(3 if k < 4 else 4, 4 + 3 * k, 3, 3, device=device) for k in range(5)]
        biases = [torch.randn(3 if k < 4 else 4, device=device) for k in range(5)]
        arguments = [x] if frozen else [x, *(one.requires_grad_() for one in (*weights, *biases))]
        out = residual_dense_block(x, weights, biases)
        return [out, *torch.autograd.grad(out.sum(), arguments)]

    assert_known_without_data(run)


def test_differentiable_once() -> None:
    x, weights, biases = make()
    (grad,) = torch.autograd.grad(residual_dense_block(x, weights, biases).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="residual_dense_block_backward"):
        grad.sum().backward()


def test_op_without_features_refuses_weight_gradients() -> None:
    x, weights, biases = make()
    out, _ = forward_op(x, weights, biases, 0.2, 0.2, False, "reference")
    with pytest.raises(RuntimeError, match="keep_features=True"):
        out.sum().backward()


def test_arguments_are_left_alone() -> None:
    x, weights, biases = make()
    before = [one.detach().clone() for one in (x, *weights, *biases)]
    residual_dense_block(x, weights, biases).sum().backward()
    assert all(torch.equal(one, old) for one, old in zip((x, *weights, *biases), before, strict=True))


def test_impl() -> None:
    x, weights, biases = make()
    reference = residual_dense_block(x, weights, biases, impl="reference")
    assert_same((residual_dense_block(x, weights, biases),), (reference,))
    with pytest.raises(RuntimeError, match=r"impl='triton' .*residual_dense_block"):
        residual_dense_block(x, weights, biases, impl="triton")
    with pytest.raises(ValueError, match=r"impl must be one of .*, was 'fastest'"):
        residual_dense_block(x, weights, biases, impl="fastest")
    assert op_from_package is residual_dense_block


def replaced(tensors: list[Tensor], k: int, value: object) -> list:
    return [value if i == k else one for i, one in enumerate(tensors)]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda a: {"x": a["x"].tolist()}, TypeError, "x must be a torch.Tensor, was list"),
        (lambda a: {"x": a["x"][0]}, ValueError, r"x must have shape \(N, C, H, W\), was \(4, 5, 7\)"),
        (lambda a: {"x": a["x"].long()}, TypeError, "x must be a floating-point tensor, was torch.int64"),
        (lambda a: {"x": a["x"][:, :, :0]}, ValueError, "x must have at least one channel, row and column"),
        (
            lambda a: {"x": a["x"][:, :3]},
            ValueError,
            r"weights\[0\] must have shape .* \(3, 3, 3, 3\), was \(3, 4, 3",
        ),
        (
            lambda a: {"weights": a["weights"][0]},
            TypeError,
            "weights must be a list or tuple of 5 tensors, was Tensor",
        ),
        (lambda a: {"weights": a["weights"][:4]}, ValueError, "weights must hold 5 tensors, held 4"),
        (
            lambda a: {"biases": replaced(a["biases"], 2, None)},
            TypeError,
            r"biases\[2\] must be a torch.Tensor",
        ),
        (
            lambda a: {"weights": replaced(a["weights"], 0, a["weights"][0][:0])},
            ValueError,
            r"weights\[0\] .* at least 1",
        ),
        (
            lambda a: {"weights": replaced(a["weights"], 1, a["weights"][0])},
            ValueError,
            r"weights\[1\] .* F \+ 1\*G",
        ),
        (
            lambda a: {"weights": replaced(a["weights"], 4, a["weights"][3])},
            ValueError,
            r"weights\[4\] .*\(F, F \+ 4",
        ),
        (
            lambda a: {"biases": replaced(a["biases"], 4, a["biases"][0])},
            ValueError,
            r"biases\[4\] must have shape \(F,",
        ),
        (
            lambda a: {"weights": replaced(a["weights"], 3, a["weights"][3].float())},
            TypeError,
            r"weights\[3\] .*dtype",
        ),
        (
            lambda a: {"biases": replaced(a["biases"], 0, a["biases"][0].to("meta"))},
            ValueError,
            r"biases\[0\] .*device",
        ),
        (lambda a: {"slope": -0.1}, ValueError, "slope must be at least 0, was -0.1"),
        (lambda a: {"slope": torch.tensor(0.2)}, TypeError, "slope must be a number, was Tensor"),
        (lambda a: {"scale": float("nan")}, ValueError, "scale must be finite, was nan"),
    ],
)
def test_wrong_arguments_are_named(change: object, kind: type[Exception], message: str) -> None:
    x, weights, biases = make()
    arguments = {"x": x, "weights": weights, "biases": biases}
    with pytest.raises(kind, match=message):
        residual_dense_block(**{**arguments, **change(arguments)})  # type: ignore[operator]
