"""upsampled_convolution: against its definition, and as a registered op."""

import itertools
import sys
from collections.abc import Callable
from functools import partial

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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import upsampled_convolution as op_from_package
from andfast.functional.upsampled_convolution import (
    backward_op,
    forward_op,
    upsampled_convolution,
    upsampled_convolution_reference,
)
from andfast.functional.upsampled_kernel import transposed_kernel, weight_gradient

FACTORS = [1, 2]
SHAPES = [
    (2, 4, 3, 5, 7),
    (1, 8, 16, 8, 8),
    (3, 1, 1, 1, 1),
    (2, 3, 17, 1, 6),
    (0, 4, 9, 6, 6),
]  # N, Cin, Cout, H, W


def make(
    n: int = 2, c_in: int = 4, c_out: int = 11, height: int = 5, width: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Random x, weight and bias that require gradients; results are of about unit size."""
    generator = torch.Generator().manual_seed(n + 10 * c_in + 100 * c_out + 1000 * height)
    shapes = (n, c_in, height, width), (c_out, c_in, 3, 3), (c_out,)
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    weight /= 3 * c_in**0.5
    return tuple(one.to(dtype).requires_grad_() for one in (x, weight, bias / 3))  # type: ignore[return-value]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slope", [0.2, 0.0, 1.0, 1.5])
@pytest.mark.parametrize("factor", FACTORS)
def test_equals_its_definition(
    shape: tuple[int, ...], memory_format: torch.memory_format, slope: float, factor: int
) -> None:
    x, weight, bias = make(*shape)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    found = upsampled_convolution(x, weight, bias, factor=factor, slope=slope)
    wanted = upsampled_convolution_reference(x, weight, bias, factor=factor, slope=slope)
    assert_same((found,), (wanted,))
    channels_last = x.stride(1) == 1 and x.stride(3) != 1
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert_same_gradients(found, wanted, (x, weight, bias))


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
def test_any_shape_equals_the_definition(
    n: int, c_in: int, c_out: int, height: int, width: int, factor: int, frozen: bool
) -> None:
    x, weight, bias = make(n, c_in, c_out, height, width)
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    arguments = [one for one in (x, weight, bias) if one.requires_grad]
    found, wanted = (
        f(x, weight, bias, factor=factor) for f in (upsampled_convolution, upsampled_convolution_reference)
    )
    assert_same((found,), (wanted,))
    assert_same_gradients(found, wanted, arguments)


def test_the_border_meets_zeros_and_not_copies_of_it() -> None:
    """A kernel that sums its nine taps counts how many of them meet the map."""
    one = torch.ones(1, 1, 3, 2, dtype=torch.float64)
    weight, bias = torch.ones(1, 1, 3, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found = upsampled_convolution(one, weight, bias, factor=2)[0, 0]
    rows, columns = torch.full((6,), 3), torch.full((4,), 3)
    rows[[0, -1]] = columns[[0, -1]] = 2
    assert torch.equal(found, torch.outer(rows, columns).double())


@pytest.mark.parametrize("factor", FACTORS)
def test_the_gradient_to_weight_is_the_transpose_of_the_kernel(factor: int) -> None:
    """<k(w), g> = <w, k'(g)>."""
    weight, grad = torch.randn(3, 2, 3, 3).double(), torch.randn(3, 2, factor + 2, factor + 2).double()
    left, right = (transposed_kernel(weight, factor) * grad).sum(), (weight * weight_gradient(grad, factor)).sum()
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("needs", list(itertools.product((False, True), repeat=3))[1:])
@pytest.mark.parametrize("factor", FACTORS)
def test_every_subset_of_gradients(needs: tuple[bool, ...], factor: int) -> None:
    given = [one if need else one.detach() for one, need in zip(make(), needs, strict=True)]
    arguments = [one for one in given if one.requires_grad]
    with FlopCounterMode(display=False) as counter:
        found = upsampled_convolution(*given, factor=factor)
    wanted = upsampled_convolution_reference(*given, factor=factor)
    operations = 2 * 9 * 4 * 11 * found[:, 0].numel()
    assert counter.get_total_flops() == operations
    grad = torch.randn_like(found)
    with FlopCounterMode(display=False) as counter:
        grads = torch.autograd.grad(found, arguments, grad)
    assert counter.get_total_flops() == operations * sum(needs[:2])
    assert_same(grads, torch.autograd.grad(wanted, arguments, grad))


class Largest(TorchDispatchMode):
    """The most values that a tensor has that an op makes inside of andfast's ops, by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))  # type: ignore[operator]
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor):
                self.found[one.dtype] = max(self.found.get(one.dtype, 0), one.numel())
        return out


def test_the_upsampled_map_is_never_made() -> None:
    """Not in the op either: with more channels in than out it would be the largest tensor."""
    x, weight, bias = (one.detach() for one in make(1, 16, 4, 8, 8))
    forward, backward = (op._init_fn for op in (forward_op, backward_op))
    with Largest() as largest:
        out, signs = forward(x, weight, bias, 2, 0.2, True, "reference")
        for saved, all_needed in ((signs, False), (out, True)):
            needed = [True, all_needed, all_needed]
            backward(torch.randn_like(out), saved, x, weight, 2, 0.2, needed, False, "reference")
    kernel = 16 * 16 * 4
    assert largest.found[torch.float64] == max(out.numel(), kernel) < 4 * x.numel()
    assert signs.numel() == out.numel() // 4  # bytes of 8 signs, of which half have no channel here


def kept(call: Callable[[], Tensor], parameters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The result, and what autograd keeps for the backward pass, parameters and tensors without elements apart."""
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        out = call()
    pointers = {one.data_ptr() for one in parameters}
    return out, [one for one in saved if one.numel() and one.data_ptr() not in pointers]


@pytest.mark.parametrize("factor", FACTORS)
def test_what_is_kept(factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen: a bit an element, nothing without an activation, and no gradient to weight; trained: x and the result."""
    x, weight, bias = make(2, 8, 16, 6, 5, torch.float32)
    module = sys.modules[upsampled_convolution.__module__]
    frozen = weight.detach(), bias.detach()
    bits = (torch.uint8, (2, factor * 6, factor * 5, 2))
    with monkeypatch.context() as patch:
        patch.setattr(module, "gradients", None)
        out, saved = kept(lambda: upsampled_convolution(x, *frozen, factor=factor), list(frozen))
        assert [(one.dtype, tuple(one.shape)) for one in saved] == [bits]
        out.sum().backward()
        out, saved = kept(lambda: upsampled_convolution(x, *frozen, factor=factor, slope=1), list(frozen))
        assert saved == []
        out.sum().backward()
    out, saved = kept(lambda: upsampled_convolution(x, weight, bias, factor=factor), [weight, bias])
    assert [one.data_ptr() for one in saved] == [out.data_ptr(), x.data_ptr()]
    out, saved = kept(lambda: upsampled_convolution(x, frozen[0], bias, factor=factor), [weight, bias])
    assert [one.data_ptr() for one in saved] == [out.data_ptr()]


def test_no_gradient_keeps_nothing() -> None:
    with torch.no_grad():
        assert upsampled_convolution(*make()).grad_fn is None
    assert forward_op(*make(), 2, 0.2, False, "reference")[1].numel() == 0


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("frozen", [False, True])
def test_gradcheck(frozen: bool, factor: int) -> None:
    x, *parameters = make(2, 2, 3, 3, 4)
    if frozen:
        parameters = [one.detach() for one in parameters]
    torch.autograd.gradcheck(lambda *given: upsampled_convolution(*given, factor=factor), (x, *parameters))


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
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_to_one_graph(backend: str, frozen: bool) -> None:
    x, weight, bias = make(2, 4, 4, dtype=torch.float32)
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    arguments = [one for one in (x, weight, bias) if one.requires_grad]

    def thrice(x: Tensor) -> Tensor:
        x = upsampled_convolution(upsampled_convolution(x, weight, bias).sin(), weight, bias, factor=1)
        return upsampled_convolution(x, weight, bias, factor=1, slope=1)

    compiled = torch.compile(thrice, fullgraph=True, backend=backend)
    found, wanted = compiled(x), thrice(x)
    assert_same((found,), (wanted,), 1e-5)
    assert_same(torch.autograd.grad(found.sum(), arguments), torch.autograd.grad(wanted.sum(), arguments), 1e-5)


def test_compiles_for_dynamic_shapes() -> None:
    compiled = torch.compile(upsampled_convolution, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, height, width in ((2, 5, 7), (3, 4, 9)):
        given = make(n, 4, 3, height, width)
        assert_same((compiled(*given),), (upsampled_convolution_reference(*given),))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("factor", FACTORS)
def test_precision(dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format, factor: int) -> None:
    """Every result keeps clear of zero, where its gradient jumps, by a summand of 2 or -2."""
    x, weight, bias = (one.detach() for one in make(2, 16, 8, 9, 11))
    x[:, 0], weight = 2 * x[:, 0].sign(), weight / 6
    weight[:, 0, 1, 1] = bias.sign()
    stored = [x.to(dtype).contiguous(memory_format=memory_format), weight.to(dtype), (bias / 3).to(dtype)]
    grad = torch.randn(2, 8, 9 * factor, 11 * factor).to(dtype)
    op, definition = (partial(f, factor=factor) for f in (upsampled_convolution, upsampled_convolution_reference))
    wanted, found = results_in(torch.float64, definition, stored, grad), results_in(dtype, op, stored, grad)
    assert wanted[0].abs().min() > 0.05
    for one, exact in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert error(one, exact) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    given = make(dtype=torch.float32)
    assert_follows_autocast(upsampled_convolution, upsampled_convolution_reference, given, dtype)


def test_output_follows_the_input() -> None:
    _, weight, bias = make(2, 4, 3)
    assert_output_follows_the_input(
        lambda x: upsampled_convolution(x, weight, bias), lambda x: upsampled_convolution_reference(x, weight, bias)
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("factor", FACTORS)
def test_meta_and_fake_tensors(factor: int, frozen: bool, memory_format: torch.memory_format) -> None:
    def run(device: str) -> list[Tensor]:
        x = torch.randn(2, 4, 5, 7, device=device).contiguous(memory_format=memory_format).requires_grad_()
        parameters = [torch.randn(11, 4, 3, 3, device=device), torch.randn(11, device=device)]
        arguments = [x] if frozen else [x, *(one.requires_grad_() for one in parameters)]
        out = upsampled_convolution(x, *parameters, factor=factor)
        return [out, *torch.autograd.grad(out.sum(), arguments)]

    assert_known_without_data(run)


def test_differentiable_once() -> None:
    x, weight, bias = make()
    (grad,) = torch.autograd.grad(upsampled_convolution(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="upsampled_convolution_backward"):
        grad.sum().backward()


@pytest.mark.parametrize("keep_signs", [False, True])
def test_signs_and_the_result_say_the_same(keep_signs: bool) -> None:
    given = make()
    out, _ = forward_op(*given, 2, 0.2, keep_signs, "reference")
    assert_same(torch.autograd.grad(out.sum(), given), torch.autograd.grad(upsampled_convolution(*given).sum(), given))


def test_a_result_that_was_changed_is_no_longer_differentiated() -> None:
    out = upsampled_convolution(*make())
    out.mul_(-1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_arguments_are_left_alone() -> None:
    given = make()
    before = [one.detach().clone() for one in given]
    upsampled_convolution(*given).sum().backward()
    assert all(torch.equal(one, old) for one, old in zip(given, before, strict=True))


def test_impl() -> None:
    given = make()
    assert torch.equal(upsampled_convolution(*given), upsampled_convolution(*given, impl="reference"))
    with pytest.raises(RuntimeError, match=r"impl='triton' of upsampled_convolution"):
        upsampled_convolution(*given, impl="triton")
    with pytest.raises(ValueError, match=r"impl must be one of .*, was 'fastest'"):
        upsampled_convolution(*given, impl="fastest")
    assert op_from_package is upsampled_convolution


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
def test_wrong_arguments_are_named(
    change: Callable[[dict[str, Tensor]], dict], kind: type[Exception], message: str
) -> None:
    arguments = dict(zip(("x", "weight", "bias"), make(), strict=True))
    with pytest.raises(kind, match=message):
        upsampled_convolution(**{**arguments, **change(arguments)})
