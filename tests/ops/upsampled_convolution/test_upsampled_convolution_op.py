"""upsampled_convolution as a registered op: opcheck, torch.compile, dtypes, fake tensors and errors."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from convolution_checks import (
    FORMATS,
    assert_known_without_data,
    assert_same,
    error,
    results_in,
)
from torch import Tensor
from upsampled_cases import FACTORS, make

from andfast.functional.upsampled_convolution import backward_op, forward_op, upsampled_convolution
from andfast.functional.upsampled_convolution_reference import upsampled_convolution_reference


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("factor", FACTORS)
def test_opcheck(factor: int, frozen: bool, memory_format: torch.memory_format) -> None:
    x, weight, bias = make()
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    torch.library.opcheck(forward_op, (x, weight, bias, factor, 0.2, True, "reference"))
    with torch.no_grad():
        out, signs = forward_op(x, weight, bias, factor, 0.2, True, "reference")
        needed = [True, not frozen, not frozen]
        last = memory_format == torch.channels_last
        x_kept, saved = (None, signs) if frozen else (x.detach(), out)
        arguments = (torch.randn_like(out), saved, x_kept, weight.detach(), factor, 0.2, needed, last, "reference")
        torch.library.opcheck(backward_op, arguments)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # Inductor's own
@pytest.mark.parametrize(
    ("backend", "frozen"),
    [("aot_eager", False), ("aot_eager", True), pytest.param("inductor", True, marks=pytest.mark.slow)],
)
def test_compiles_to_one_graph(backend: str, frozen: bool) -> None:
    x, weight, bias = make(2, 4, 4, dtype=torch.float32)
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    arguments = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]

    def thrice(x: Tensor) -> Tensor:
        x = upsampled_convolution(upsampled_convolution(x, weight, bias).sin(), weight, bias, factor=1)
        return upsampled_convolution(x, weight, bias, factor=1, slope=1)

    compiled = torch.compile(thrice, fullgraph=True, backend=backend)
    actual, expected = compiled(x), thrice(x)
    assert_same((actual,), (expected,), 1e-5)
    assert_same(torch.autograd.grad(actual.sum(), arguments), torch.autograd.grad(expected.sum(), arguments), 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("factor", FACTORS)
def test_precision(dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format, factor: int) -> None:
    """A term of 2 or -2 keeps every pre-activation away from zero, where the gradient jumps."""
    x, weight, bias = (tensor.detach() for tensor in make(2, 16, 8, 9, 11))
    x[:, 0], weight = 2 * x[:, 0].sign(), weight / 6
    weight[:, 0, 1, 1] = bias.sign()
    stored = [x.to(dtype).contiguous(memory_format=memory_format), weight.to(dtype), (bias / 3).to(dtype)]
    grad = torch.randn(2, 8, 9 * factor, 11 * factor).to(dtype)
    op, definition = (partial(f, factor=factor) for f in (upsampled_convolution, upsampled_convolution_reference))
    expected, actual = results_in(torch.float64, definition, stored, grad), results_in(dtype, op, stored, grad)
    assert expected[0].abs().min() > 0.05
    for tensor, exact in zip(actual, expected, strict=True):
        assert tensor.dtype == dtype
        assert error(tensor, exact) < tolerance


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("factor", FACTORS)
def test_meta_and_fake_tensors(factor: int, frozen: bool, memory_format: torch.memory_format) -> None:
    def run(device: str) -> list[Tensor]:
        x = torch.randn(2, 4, 5, 7, device=device).contiguous(memory_format=memory_format).requires_grad_()
        parameters = [torch.randn(11, 4, 3, 3, device=device), torch.randn(11, device=device)]
        arguments = [x] if frozen else [x, *(tensor.requires_grad_() for tensor in parameters)]
        out = upsampled_convolution(x, *parameters, factor=factor)
        return [out, *torch.autograd.grad(out.sum(), arguments)]

    assert_known_without_data(run)


@pytest.mark.parametrize("keep_signs", [False, True])
def test_gradients_from_signs_and_result_agree(keep_signs: bool) -> None:
    arguments = make()
    out, _ = forward_op(*arguments, 2, 0.2, keep_signs, "reference")
    expected = upsampled_convolution(*arguments)
    assert_same(torch.autograd.grad(out.sum(), arguments), torch.autograd.grad(expected.sum(), arguments))


def test_modified_result_raises_in_backward() -> None:
    out = upsampled_convolution(*make())
    out.mul_(-1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda a: {"x": a["x"].tolist()}, TypeError, "x must be a torch.Tensor, was list"),
        (lambda a: {"x": a["x"][0]}, ValueError, r"x must have shape \(N, C, H, W\), was \(4, 5, 7\)"),
        (lambda a: {"x": a["x"].long()}, TypeError, "x must be a floating-point tensor, was torch.int64"),
        (lambda a: {"x": a["x"][..., :0]}, ValueError, "x must have at least one channel, row and column"),
        (lambda a: {"weight": None}, TypeError, "weight must be a torch.Tensor, was NoneType"),
        (lambda a: {"weight": a["weight"][:0]}, ValueError, "weight .* Cout at least 1"),
        (lambda a: {"weight": a["weight"][0, 0, 0, 0]}, ValueError, "weight .* Cout at least 1"),
        (
            lambda a: {"weight": a["weight"][:, :3]},
            ValueError,
            r"weight must have shape \(Cout, Cin, 3, 3\), here \(11, 4, 3, 3\), was \(11, 3, 3, 3\)",
        ),
        (lambda a: {"weight": a["weight"].float()}, TypeError, "weight must have the dtype of x"),
        (lambda a: {"bias": None}, TypeError, "bias must be a torch.Tensor, was NoneType"),
        (lambda a: {"bias": a["bias"][:2]}, ValueError, r"bias must have shape \(Cout,\), here \(11,\), was \(2,\)"),
        (lambda a: {"bias": a["bias"].to("meta")}, ValueError, "bias must be on the device of x"),
        (lambda a: {"factor": 3}, ValueError, "factor must be 1 or 2, was 3"),
        (lambda a: {"factor": True}, ValueError, "factor must be 1 or 2, was True"),
        (lambda a: {"factor": 2.0}, ValueError, r"factor must be 1 or 2, was 2\.0"),
        (lambda a: {"slope": -0.1}, ValueError, "slope must be finite and at least 0, was -0.1"),
        (lambda a: {"slope": float("nan")}, ValueError, "slope must be finite and at least 0, was nan"),
        (lambda a: {"slope": torch.tensor(0.2)}, TypeError, "slope must be a number, was Tensor"),
    ],
)
def test_rejects_invalid_arguments(
    change: Callable[[dict[str, Tensor]], dict], kind: type[Exception], message: str
) -> None:
    arguments = dict(zip(("x", "weight", "bias"), make(), strict=True))
    with pytest.raises(kind, match=message):
        upsampled_convolution(**{**arguments, **change(arguments)})
