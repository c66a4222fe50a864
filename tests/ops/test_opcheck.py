"""opcheck of every registered op with the arguments of its self-test, in each implementation of a device."""

from collections.abc import Iterator
from typing import Any

import compiled_ops_emulation
import pytest
import torch
from dense_blocks import freeze, make_float32
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from andfast.functional import compiled_ops, dispatch, selftest
from andfast.functional.frozen_dense_blocks import frozen_dense_blocks, pack_dense_blocks
from andfast.functional.selftest_cases import CASES, Draw

OPS: Any = torch.ops.andfast
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
UTILS = ("test_schema", "test_faketensor")
"""What depends on the device; tests of single ops check autograd and tracing."""
CALLS = 2
"""Calls per op and case of the self-test that are checked."""
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class Recorded(TorchDispatchMode):
    """Collects the calls of andfast's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "andfast":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def opcheck(calls: list[Call]) -> set[str]:
    """Check up to ``CALLS`` calls of each op; return the names of the ops."""
    checked: dict[str, int] = {}
    for function, args, kwargs in calls:
        name = function.overloadpacket.__name__
        checked[name] = checked.get(name, 0) + 1
        if checked[name] <= CALLS:
            torch.library.opcheck(function, args, kwargs, test_utils=UTILS)
    return set(checked)


@pytest.mark.parametrize("op", [op for op in CASES if op != "ascent_step"])  # which launches kernels without an op
@pytest.mark.parametrize("device", DEVICES)
def test_ops_of_the_self_test(device: str, op: str) -> None:
    dtype = DTYPES[device]
    impls = dispatch.available(op, device, dtype)
    for impl in impls:
        with Recorded() as recorded:
            for case in CASES[op](Draw(0)):
                selftest._errors(case, impl, torch.device(device), dtype)
        assert opcheck(recorded.calls)


@pytest.mark.parametrize("impl", ["triton", "cuda"])
@pytest.mark.gpu
def test_frozen_dense_blocks_on_a_gpu(impl: str) -> None:
    if (reason := dispatch.unavailable("cuda").get("residual_dense_block", {}).get(impl)) is not None:
        pytest.skip(reason)
    x, weights, biases = make_float32(2, 64, 32, 9, 11, "cuda")
    packed = pack_dense_blocks(freeze(weights) * 3, freeze(biases) * 3, torch.bfloat16, impl=impl)
    with Recorded() as recorded:
        frozen_dense_blocks(x.detach().bfloat16().requires_grad_(), packed).sum().backward()
    assert opcheck(recorded.calls) == {"frozen_dense_blocks", "frozen_dense_blocks_backward"}


def compiled_calls(device: str, dtype: torch.dtype) -> Iterator[Call]:
    """A call of each op of andfast._ops."""

    def last(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)

    x, weight, bias = last(2, 64, 5, 7), torch.randn(32, 64, 3, 3, device=device), torch.randn(32, device=device)
    for factor in (1, 2):
        forward, backward = (weight, bias, dtype, factor, False), (weight, None, dtype, factor, True)
        yield OPS.convolution_pack.default, forward, {}
        yield OPS.convolution_pack.default, backward, {}
        packed = OPS.convolution_pack(*forward)
        yield (
            OPS.convolution_forward.default,
            (x, packed, 32, factor, 0.2, None, 1.0, None, None, False, False, True),
            {},
        )
        grad, packed = last(2, 32, 5 * factor, 7 * factor), OPS.convolution_pack(*backward)
        yield OPS.convolution_backward.default, (grad, packed, 64, factor, None, 1.0, False), {}
    signs = torch.randint(256, (2, 10, 14, 4), device=device, dtype=torch.uint8)
    yield OPS.convolution_activation_backward.default, (grad, signs, 0.2), {}
    _, weights, biases = make_float32(2, 64, 32, 5, 7, device)
    forward, backward = (
        (freeze(weights), freeze(biases), dtype, 0, 0.2, 1.0, False),
        (freeze(weights), [], dtype, 0, 0.2, 1.0, True),
    )
    yield OPS.dense_blocks_pack.default, forward, {}
    yield OPS.dense_blocks_pack.default, backward, {}
    for keep in (compiled_ops.KEEP_SIGNS, compiled_ops.KEEP_GROWTH):
        arguments = (x, OPS.dense_blocks_pack(*forward), 32, 1, 0, 0.2, 0.2, 1.0, keep)
        yield OPS.dense_blocks_forward.default, arguments, {}
        saved = OPS.dense_blocks_forward(*arguments)[1]
        arguments = (x, saved, OPS.dense_blocks_pack(*backward), 32, 1, 0, 0.2, 0.2, 1.0)
        yield OPS.dense_blocks_backward.default, arguments, {}


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_ops(device: str) -> None:
    """On the CPU their emulation, for the test itself."""
    if device == "cpu":
        compiled_ops_emulation.install()
    elif (reason := compiled_ops.why_not(device)) is not None:
        pytest.skip(reason)
    assert len(opcheck(list(compiled_calls(device, DTYPES[device])))) == 7
