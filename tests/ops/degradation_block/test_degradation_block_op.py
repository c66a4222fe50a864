"""degradation_block as a registered op: required gradients, opcheck, fake tensors, compile, autocast, FLOPs."""

import itertools
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from degradation_block_cases import (
    BACKWARD,
    FORMATS,
    FORWARD,
    NAMES,
    Calls,
    leaves,
    make,
    outputs_and_gradients,
    reference,
    relative_error,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import degradation_block


@pytest.mark.parametrize("subset", [subset for subset in itertools.product([False, True], repeat=4) if any(subset)])
def test_computes_only_required_gradients(subset: tuple[bool, ...]) -> None:
    arguments = make(2, 3, 4, 5, 6)
    full = dict(zip(NAMES, outputs_and_gradients(arguments, "replicate", oracle=False)[1:], strict=True))
    for name, required in zip(NAMES, subset, strict=True):
        arguments[name].requires_grad_(required)
    with Calls() as calls:
        out = degradation_block(**arguments)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        out.backward(grad)
    assert calls.saved == [True]
    assert calls.needs_grad == [list(subset)]
    for name, required in zip(NAMES, subset, strict=True):
        if required:
            torch.testing.assert_close(arguments[name].grad, full[name])
        else:
            assert arguments[name].grad is None


def test_saves_nothing_without_gradients() -> None:
    arguments = make()
    with Calls() as calls:
        with torch.no_grad():
            assert not degradation_block(**arguments).requires_grad
        for leaf in leaves(arguments):
            leaf.requires_grad_(False)
        assert not degradation_block(**arguments).requires_grad
    assert calls.saved == [False, False]
    _, saved = FORWARD(*arguments.values(), "replicate", False, "reference")
    assert saved.numel() == 0


def test_arguments_are_not_modified_and_results_do_not_alias() -> None:
    arguments = make(2, 4, 4, 5, 6, noise="full")
    before = {name: tensor.detach().clone() for name, tensor in arguments.items()}
    out = degradation_block(**arguments)
    grad = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves(arguments), grad)
    for name, tensor in arguments.items():
        assert torch.equal(tensor, before[name])
    pointers = [tensor.data_ptr() for tensor in (*leaves(arguments), out, grad, *grads)]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slope", "noise", "padding", "shared", "memory_format"),
    [
        ("image", "full", "replicate", False, torch.contiguous_format),
        ("channel", "single", "replicate", False, torch.channels_last),
        ("scalar", None, "zeros", True, torch.channels_last),
    ],
)
def test_opcheck_forward(
    slope: str, noise: str | None, padding: str, shared: bool, memory_format: torch.memory_format
) -> None:
    arguments = make(shared=shared, noise=noise, slope=slope)
    arguments["x"] = arguments["x"].detach().to(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(FORWARD, (*arguments.values(), padding, True, "reference"))
    frozen = [None if tensor is None else tensor.detach() for tensor in arguments.values()]
    torch.library.opcheck(FORWARD, (*frozen, padding, False, "reference"))


def op_arguments(
    x_format: str, grad_format: str, needs_grad: list[bool], **options: Any
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Positional arguments of the forward and the backward op."""
    arguments = {name: tensor.detach() for name, tensor in make(**options).items()}
    x = arguments["x"].to(memory_format=FORMATS[x_format])
    forward = (x, arguments["weight"], arguments["slope"], arguments["noise"], "replicate", True, "reference")
    out, saved = FORWARD(*forward)
    grad = torch.randn_like(out, memory_format=FORMATS[grad_format])
    noise_shape = list(arguments["noise"].shape)
    backward = (grad, *forward[:3], saved, noise_shape, torch.float64, "replicate", needs_grad, "reference")
    return forward, backward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x_format", "grad_format", "needs_grad", "noise"),
    [
        ("contiguous", "contiguous", [True] * 4, "full"),
        ("channels_last", "contiguous", [False, True, True, True], "single"),
        ("contiguous", "channels_last", [True, False, False, False], "full"),
    ],
)
def test_opcheck_backward(x_format: str, grad_format: str, needs_grad: list[bool], noise: str) -> None:
    torch.library.opcheck(BACKWARD, op_arguments(x_format, grad_format, needs_grad, noise=noise)[1])


@pytest.mark.parametrize("x_format", FORMATS)
@pytest.mark.parametrize("grad_format", FORMATS)
def test_fake_results_match_real_ones(x_format: str, grad_format: str) -> None:
    """Compare shapes, dtypes and strides, on which compiled graphs rely; opcheck does not compare strides."""
    sizes: list[dict[str, Any]] = [{}, {"c_out": 1}, {"c_in": 1}, {"height": 1, "width": 1}, {"n": 1}, {"n": 0}]
    for size, (noise, shared) in itertools.product(sizes, (("full", False), ("single", True))):
        forward, backward = op_arguments(x_format, grad_format, [True] * 4, noise=noise, shared=shared, **size)
        for op, args in ((FORWARD, forward), (BACKWARD, backward)):
            with FakeTensorMode() as mode:
                fakes = op(*[mode.from_tensor(arg) if isinstance(arg, Tensor) else arg for arg in args])
            for real, fake in zip(op(*args), fakes, strict=True):
                expected = (fake.shape, fake.dtype, fake.stride())
                assert (real.shape, real.dtype, real.stride()) == expected, (op, size, noise, shared)


def test_meta_device() -> None:
    arguments = {name: tensor.detach().to("meta").requires_grad_() for name, tensor in make().items()}
    out = degradation_block(**arguments)
    out.sum().backward()
    assert out.shape == (2, 5, 4, 7)
    assert out.is_meta
    for leaf in leaves(arguments):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape


@pytest.mark.slow
def test_compiles_to_one_node() -> None:
    torch._dynamo.reset()
    arguments = make(2, 3, 4, 6, 5, dtype=torch.float32)
    counter = torch._dynamo.testing.EagerAndRecordGraphs()
    torch.compile(degradation_block, backend=counter, fullgraph=True)(**arguments)
    targets = [node.target for graph in counter.graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert [target for target in targets if "andfast" in str(target)] == [torch.ops.andfast.degradation_block]
    assert len(counter.graphs) == 1
    torch._dynamo.reset()

    def permuted(**options: Any) -> Tensor:
        """With a permutation, so that the incoming gradient is not contiguous."""
        return degradation_block(**options).permute(0, 2, 3, 1)

    grad = torch.randn(2, 6, 5, 4)
    compiled, eager = torch.compile(permuted, fullgraph=True)(**arguments), permuted(**arguments)
    torch.testing.assert_close(compiled, eager)
    grads = (torch.autograd.grad(out, leaves(arguments), grad) for out in (compiled, eager))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    arguments = make(2, 8, 8, 6, 6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        out = degradation_block(**arguments)
        nested = degradation_block(out, arguments["weight"].detach(), 0.5)
        exact = degradation_block(**{name: tensor.detach().double() for name, tensor in arguments.items()})
    assert out.dtype == nested.dtype == dtype
    assert exact.dtype == torch.float64  # autocast does not cast float64
    assert relative_error(out, reference(arguments)) < 1e-2
    out.float().square().sum().backward()
    for leaf in leaves(arguments):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("c_out", [1, 7])
def test_operation_count(shared: bool, c_out: int) -> None:
    """Two operations per multiply-accumulate, counted per group of a grouped convolution."""
    n, c_in, height, width = 3, 5, 6, 11
    macs = n * height * width * c_in * c_out * 9
    for subset in itertools.product([False, True], repeat=4):
        arguments = make(n, c_in, c_out, height, width, shared=shared)
        for name, required in zip(NAMES, subset, strict=True):
            arguments[name].requires_grad_(required)
        with FlopCounterMode(display=False) as counter:
            out = degradation_block(**arguments)
            assert counter.get_total_flops() == 2 * macs
            if any(subset):
                out.sum().backward()
        assert counter.get_total_flops() == 2 * macs * (1 + subset[0] + subset[1])
