"""The degradation block's Triton kernels on a GPU, against the reference in float64."""

import pytest
import torch
from comparison import assert_near
from degradation_block_exact import exact_results, inputs_clear_of_zero
from torch import Tensor

from andfast.functional import degradation_block
from andfast.kernels.common.config import MAX_REGISTERS
from andfast.kernels.degradation_block.configs import TABLE

pytestmark = pytest.mark.gpu


def positive_like(out: Tensor) -> Tensor:
    """An incoming gradient in [0, 1), so that the gradient to a slope is a sum without cancellation.

    With gradients of random sign the sum over z * g is at times far smaller than its terms' root sum of squares, to
    which its rounding error is proportional: 2 million bf16 terms with a relative rounding error of 1.1e-3 came to a
    sum with one of 1e-2.
    """
    return torch.rand_like(out)


@pytest.mark.parametrize(("c_in", "c_out", "warps"), [(3, 64, 4), (64, 64, 4), (64, 64, 8), (64, 3, 8), (65, 17, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_forms(dtype: torch.dtype, c_in: int, c_out: int, warps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each padding, weight and noise form at a realistic size, with 4 and 8 warps, against float64."""
    for entries in TABLE.values():
        for key, config in entries.items():
            monkeypatch.setitem(entries, key, config._replace(warps=warps, registers=MAX_REGISTERS))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for padding, shared, channels in (("replicate", False, c_out), ("replicate", True, None), ("zeros", False, 1)):
        x, weight = inputs_clear_of_zero(2, c_in, c_out, 127, 256)
        x, weight = x.to(dtype, memory_format=torch.channels_last), weight.to(dtype)
        noise = None if channels is None else torch.randn(2, channels, 127, 256, device="cuda").to(dtype)
        arguments = [x, weight[0] if shared else weight, torch.rand(2, device="cuda"), noise]
        leaves = [tensor.requires_grad_() for tensor in arguments if tensor is not None]
        out = degradation_block(*arguments, padding=padding, impl="triton")
        grad = positive_like(out)
        exact = exact_results(arguments, padding, grad)
        grads = torch.autograd.grad(out, leaves, grad)
        assert torch.equal(grads[1], torch.autograd.grad(
            degradation_block(*arguments, padding=padding, impl="triton"), leaves, grad
        )[1])  # fmt: skip
        for actual, expected, name in zip((out, *grads), exact, ("out", "x", "weight", "slope", "noise"), strict=False):
            assert_near(actual, expected, tolerance, f"{name}, {padding}, shared {shared}, noise {channels}")


@pytest.mark.parametrize(
    ("dtype", "c_in", "c_out"),
    [
        (torch.float32, 64, 64),
        (torch.bfloat16, 64, 64),
        (torch.float16, 64, 64),
        (torch.bfloat16, 3, 64),
        (torch.bfloat16, 64, 3),
    ],
)
def test_at_the_size_of_training(dtype: torch.dtype, c_in: int, c_out: int) -> None:
    """A batch of 48 at 256 x 256 with the configurations of the table; three images are compared with float64."""
    x, weight = inputs_clear_of_zero(48, c_in, c_out, 256, 256)
    x, weight = x.to(dtype, memory_format=torch.channels_last), weight.to(dtype)
    noise = torch.randn(48, c_out, 256, 256, device="cuda").to(memory_format=torch.channels_last)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, torch.rand(48, device="cuda"), noise)]
    out = degradation_block(*leaves)
    grad = positive_like(out)
    results = (out, *torch.autograd.grad(out, leaves, grad))
    for image in (0, 23, 47):
        part = slice(image, image + 1)
        exact = exact_results([leaf[part] for leaf in leaves], "replicate", grad[part])
        for actual, expected, name in zip(results, exact, ("out", "x", "weight", "slope", "noise"), strict=True):
            assert_near(actual[part], expected, 1e-5 if dtype == torch.float32 else 1e-2, f"{name}, image {image}")


@pytest.mark.parametrize(
    ("dtype", "channels"),
    [
        (torch.bfloat16, None),
        (torch.bfloat16, 1),
        (torch.bfloat16, 64),
        (torch.float32, 64),
        (torch.float16, 64),
    ],
)
def test_recovered_slope(dtype: torch.dtype, channels: int | None) -> None:
    """As in training: noise in fp32, no saved z, configurations of the table."""
    x, weight = inputs_clear_of_zero(4, 64, 64, 127, 256)
    x, weight = x.to(dtype, memory_format=torch.channels_last), weight.to(dtype)
    noise = None if channels is None else 0.1 * torch.randn(4, channels, 127, 256, device="cuda")
    arguments = [x, weight, 0.5 + torch.rand(4, device="cuda"), noise]
    leaves = [tensor.requires_grad_() for tensor in arguments if tensor is not None]
    out = degradation_block(*arguments, smallest_slope=0.5, impl="triton")
    grad = positive_like(out)
    exact = exact_results(arguments, "replicate", grad)
    grads = torch.autograd.grad(out, leaves, grad)
    for actual, expected, name in zip(grads, exact[1:], ("x", "weight", "slope", "noise"), strict=False):
        assert_near(actual, expected, 1e-5 if dtype == torch.float32 else 1e-2, f"{name}, noise {channels}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_non_finite_values(dtype: torch.dtype, value: float) -> None:
    """A value of x that is not finite makes the same results non-finite as in the reference; others are unchanged."""
    x, weight = inputs_clear_of_zero(1, 64, 64, 19, 37)
    x[0, 5, 9, 20] = value
    x, weight = x.to(dtype, memory_format=torch.channels_last), weight.to(dtype)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, torch.rand(1, device="cuda"))]
    out = degradation_block(*leaves, impl="triton")
    grad = positive_like(out)
    exact = exact_results([*leaves, None], "replicate", grad)
    results = (out, *torch.autograd.grad(out, leaves, grad))
    for actual, expected, name in zip(results, exact, ("out", "x", "weight", "slope"), strict=False):
        finite = expected.isfinite()
        assert torch.equal(actual.isfinite(), finite), name
        assert_near(actual[finite], expected[finite], 1e-5 if dtype == torch.float32 else 1e-2, name)


def test_graph_capture() -> None:
    x = torch.randn(2, 64, 32, 48, device="cuda").to(torch.bfloat16, memory_format=torch.channels_last)
    weight = (torch.randn(2, 64, 64, 3, 3, device="cuda") / 24).bfloat16()
    leaves = [tensor.requires_grad_() for tensor in (x, weight, torch.rand(2, device="cuda"))]

    def work() -> list[Tensor]:
        out = degradation_block(*leaves, impl="triton")
        return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for actual, expected in zip(captured, work(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_compiles_as_one_graph_under_autocast() -> None:
    x = torch.randn(2, 8, 16, 24, device="cuda").to(memory_format=torch.channels_last)
    weight, slope = torch.randn(2, 16, 8, 3, 3, device="cuda") / 9, torch.rand(2, device="cuda")
    leaves = [tensor.requires_grad_() for tensor in (x, weight, slope)]

    def loss(*inputs: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = degradation_block(*inputs)
        assert out.dtype == torch.bfloat16
        return out.float().square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    eager = torch.autograd.grad(loss(*leaves), leaves)
    for actual, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), eager, strict=True):
        assert_near(actual, expected, 1e-2, "compiled")
