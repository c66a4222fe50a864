"""identity_gradients: the reference against the formulas in float64, contract and errors."""

from typing import Any

import pytest
import torch
from identity_gradients_cases import Call, Results, assert_correct, random_call
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import identity_gradients as module
from andfast.functional.identity_gradients import identity_gradients

OP = torch.ops.andfast.identity_gradients.default


def make(n: int = 2, channels: int = 5, size: tuple[int, int] = (4, 6), **options: Any) -> Call:
    x, grad = torch.randn(n, 3, *size), torch.randn(n, 3, *size)
    options = {"noises": [channels, channels], "slopes": [True, True], "correlation": True} | options
    return Call(x, grad, torch.randn(2, n, 3, channels), torch.randn(2, n, 3, channels), options)


def run(call: Call) -> Results:
    return identity_gradients(*call[:4], **call.options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_random_calls(dtype: torch.dtype) -> None:
    for seed in range(60):
        call = random_call(seed, dtypes=(dtype,))
        assert_correct(run(call), call)


def test_chunks_do_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    call = make(5, noises=[5, 1])
    whole = run(call)
    monkeypatch.setattr(module, "CHUNK", 2 * 27 * 24)
    parts = run(call)
    for a, b in zip([whole[0], *whole[1], whole[2]], [parts[0], *parts[1], parts[2]], strict=True):
        torch.testing.assert_close(a, b)


class Largest(TorchDispatchMode):
    """Records the number of values of the largest tensor that an op returns."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.values = max(self.values, out.numel())
        return out


def test_slopes_take_chunks_of_memory() -> None:
    """The reference holds at most CHUNK pre-activations, or those of one image."""
    call = make(16, 8, (64, 64), noises=[0, 0], correlation=False)
    with Largest() as largest:
        module._reference(*call[:4], [None, None], [True, True], False, "zeros")
    assert largest.values <= max(module.CHUNK, 16 * 3 * 64 * 64)
    assert largest.values < 16 * 8 * 64 * 64 or module.CHUNK >= 16 * 8 * 64 * 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_has_no_effect(dtype: torch.dtype) -> None:
    call = make()
    plain = run(call)
    with torch.autocast("cpu", dtype=dtype):
        again = run(call)
    assert torch.equal(plain[0], again[0])
    assert torch.equal(plain[2], again[2])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], again[1], strict=True))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "required", [([5, 5], [True, True], True), ([0, 1], [False, True], False), ([0, 0], [False, False], True)]
)
def test_opcheck(memory_format: torch.memory_format, required: tuple[list[int], list[bool], bool]) -> None:
    call = make()
    noises, slopes, correlation = required
    x = call.x.contiguous(memory_format=memory_format)
    torch.library.opcheck(
        OP, (x, *call[1:4], noises, torch.float16, slopes, correlation, "replicate", "reference")
    )  # fmt: skip


def test_compiles_as_one_graph() -> None:
    call = make()
    compiled = torch.compile(
        lambda *tensors: identity_gradients(*tensors, **call.options), fullgraph=True, backend="aot_eager"
    )
    actual, expected = compiled(*call[:4]), run(call)
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1])


def test_flops() -> None:
    """Three products per value of a noise, four more for a slope, and 81 per pixel for the correlation."""
    call = make(2, 5, (4, 6), noises=[5, 1], slopes=[True, False])
    with FlopCounterMode(display=False) as counter:
        run(call)
    assert counter.get_total_flops() == 2 * 2 * 24 * (81 + 3 * 5 + 4 * 5 + 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 3}, TypeError, r"x must be a torch\.Tensor, was int"),
        ({"x": torch.rand(2, 4, 4, 6)}, ValueError, r"x must have 3 channels, had shape \(2, 4, 4, 6\)"),
        ({"x": torch.rand(2, 3, 0, 6)}, ValueError, r"x must have H and W of at least 1"),
        ({"grad": torch.rand(2, 3, 4, 5)}, ValueError, r"grad must have shape of x, here \(2, 3, 4, 6\), was"),
        ({"grad": torch.ones(2, 3, 4, 6).int()}, TypeError, r"grad must be a floating-point tensor, was torch\.int32"),
        ({"before": torch.rand(2, 2, 5, 3)}, ValueError, r"before must have shape \(L, N, 3, C\), here \(L, 2, 3, C\)"),
        ({"after": torch.rand(2, 2, 3, 4)}, ValueError, r"after must have shape of before, here \(2, 2, 3, 5\), was"),
        ({"after": torch.rand(2, 2, 3, 5).half()}, TypeError, r"after must have the dtype of before"),
        ({"noises": [5, 2]}, ValueError, r"noises must be 2 numbers, each 0, 1 or 5, was \[5, 2\]"),
        ({"slopes": [True]}, ValueError, r"slopes must be 2 values, was \[True\]"),
        ({"padding": "reflect"}, ValueError, r"padding must be one of 'replicate', 'zeros', was 'reflect'"),
        ({"noise_dtype": torch.int32}, TypeError, r"noise_dtype must be a floating-point dtype, was torch\.int32"),
        ({"impl": "fast"}, ValueError, r"impl must be one of auto"),
        ({"impl": "cpp"}, RuntimeError, r"identity_gradients has no such implementation"),
    ],
)
def test_rejects_invalid_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    call = make()
    arguments = {"x": call.x, "grad": call.grad, "before": call.before, "after": call.after, **call.options} | change
    tensors = [arguments.pop(name) for name in ("x", "grad", "before", "after")]
    with pytest.raises(error, match=message):
        identity_gradients(*tensors, **arguments)
