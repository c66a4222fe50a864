"""residual_dense_block as a registered op: opcheck, torch.compile, autocast, dtypes, fake tensors and errors."""

import pytest
import torch
from convolution_checks import (
    FORMATS,
    assert_known_without_data,
    assert_same,
    error,
    results_in,
)
from dense_blocks import flat, freeze, make
from torch import Tensor

from andfast.functional.residual_dense_block import backward_op, forward_op, residual_dense_block
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference


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
@pytest.mark.parametrize(("backend", "frozen"), [("aot_eager", False), ("aot_eager", True), ("inductor", True)])
def test_compiles_to_one_graph(backend: str, frozen: bool) -> None:
    x, weights, biases = make(dtype=torch.float32)
    if frozen:
        weights, biases = freeze(weights), freeze(biases)
    arguments = [tensor for tensor in (x, *weights, *biases) if tensor.requires_grad]

    def twice(x: Tensor) -> Tensor:
        return residual_dense_block(residual_dense_block(x, weights, biases).sin(), weights, biases)

    compiled = torch.compile(twice, fullgraph=True, backend=backend)
    actual, expected = compiled(x), twice(x)
    assert_same((actual,), (expected,), 1e-5)
    assert_same(torch.autograd.grad(actual.sum(), arguments), torch.autograd.grad(expected.sum(), arguments), 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_precision(dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format) -> None:
    arguments = [
        tensor for group in make(2, 16, 8, 9, 11) for tensor in ([group] if isinstance(group, Tensor) else group)
    ]
    stored = [tensor.detach().to(dtype) for tensor in arguments]
    stored[0] = stored[0].contiguous(memory_format=memory_format)
    grad = torch.randn(2, 16, 9, 11).to(dtype)
    op, definition = flat(residual_dense_block), flat(residual_dense_block_reference)
    expected = results_in(torch.float64, definition, stored, grad)
    actual, plain = (results_in(dtype, f, stored, grad) for f in (op, definition))
    assert all(tensor.dtype == dtype for tensor in actual)
    assert error(actual[0], expected[0]) < tolerance
    # Pre-activations near zero may change sign in 16 bits, which outweighs rounding, also in the definition.
    for tensor, eager, exact in zip(actual[1:], plain[1:], expected[1:], strict=True):
        assert error(tensor, exact) < max(tolerance, 1.3 * error(eager, exact))


def test_autocast_compiles() -> None:
    x, weights, biases = make(dtype=torch.float32)

    def under_autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return residual_dense_block(x, weights, biases)

    actual = torch.compile(under_autocast, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(actual, under_autocast(x))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("frozen", [False, True])
def test_meta_and_fake_tensors(frozen: bool, memory_format: torch.memory_format) -> None:
    def run(device: str) -> list[Tensor]:
        x = torch.randn(2, 4, 5, 7, device=device).contiguous(memory_format=memory_format).requires_grad_()
        weights = [torch.randn(3 if k < 4 else 4, 4 + 3 * k, 3, 3, device=device) for k in range(5)]
        biases = [torch.randn(3 if k < 4 else 4, device=device) for k in range(5)]
        arguments = [x] if frozen else [x, *(tensor.requires_grad_() for tensor in (*weights, *biases))]
        out = residual_dense_block(x, weights, biases)
        return [out, *torch.autograd.grad(out.sum(), arguments)]

    assert_known_without_data(run)


def test_weight_gradients_need_keep_features() -> None:
    x, weights, biases = make()
    out, _ = forward_op(x, weights, biases, 0.2, 0.2, False, "reference")
    with pytest.raises(RuntimeError, match="keep_features=True"):
        out.sum().backward()


def replaced(tensors: list[Tensor], k: int, value: object) -> list:
    return [value if i == k else tensor for i, tensor in enumerate(tensors)]


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
def test_rejects_invalid_arguments(change: object, kind: type[Exception], message: str) -> None:
    x, weights, biases = make()
    arguments = {"x": x, "weights": weights, "biases": biases}
    with pytest.raises(kind, match=message):
        residual_dense_block(**{**arguments, **change(arguments)})  # type: ignore[operator]
