"""The upsampled convolution's Triton kernels on a GPU, against the definition in float64."""

import pytest
import torch
from comparison import assert_near
from torch import Tensor

from andfast.functional import upsampled_convolution
from andfast.functional.upsampled_convolution_reference import upsampled_convolution_reference
from andfast.kernels.common.config import MAX_REGISTERS
from andfast.kernels.upsampled_convolution.configs import TABLE

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
NAMES = ("out", "x", "weight", "bias")
SLOPE = 0.2
CASES = [  # each size, factor, kind of backward and number of warps; products of them say nothing more
    ((64, 64, 37, 53), 2, False, 8),
    ((64, 64, 37, 53), 2, True, 4),
    ((3, 64, 16, 24), 1, False, 4),
    ((64, 3, 24, 16), 1, True, 8),
    ((33, 17, 17, 19), 2, False, 8),
    ((1, 1, 5, 1), 1, False, 4),
]


def make(
    dtype: torch.dtype, n: int = 2, c_in: int = 64, c_out: int = 64, height: int = 64, width: int = 64
) -> list[Tensor]:
    """x, weight and bias; a term of 2 or -2 keeps pre-activations away from zero, where the gradient jumps."""

    def signs(*shape: int) -> Tensor:
        return torch.where(torch.rand(shape, device="cuda") < 0.5, 1.0, -1.0)

    x = torch.randn(n, c_in, height, width, device="cuda")
    x[:, 0] = 2 * signs(n, height, width)
    weight = torch.randn(c_out, c_in, 3, 3, device="cuda") / (18 * c_in**0.5)
    weight[:, 0, 1, 1] = signs(c_out)
    bias = torch.randn(c_out, device="cuda") / 10
    return [
        tensor.to(dtype).requires_grad_() for tensor in (x.contiguous(memory_format=torch.channels_last), weight, bias)
    ]


def run(arguments: list[Tensor], grad: Tensor, frozen: bool, factor: int, slope: float = SLOPE) -> list[Tensor]:
    """The result and the gradients: to x only with frozen weights, else to all arguments."""
    parameters = [tensor.detach() for tensor in arguments[1:]] if frozen else arguments[1:]
    out = upsampled_convolution(arguments[0], *parameters, factor=factor, slope=slope, impl="triton")
    return [out, *torch.autograd.grad(out, arguments[:1] if frozen else arguments, grad)]


def exact(arguments: list[Tensor], grad: Tensor, factor: int, slope: float = SLOPE) -> list[Tensor]:
    leaves = [tensor.detach().double().requires_grad_() for tensor in arguments]
    out = upsampled_convolution_reference(*leaves, factor=factor, slope=slope)
    return [out, *torch.autograd.grad(out, leaves, grad.double())]


def incoming(arguments: list[Tensor], factor: int) -> Tensor:
    x, weight, _ = arguments
    shape = (x.shape[0], weight.shape[0], factor * x.shape[2], factor * x.shape[3])
    return torch.randn(shape, device="cuda").to(x.dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("sizes", "factor", "frozen", "warps"), CASES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_on_a_gpu(
    dtype: torch.dtype, sizes: tuple[int, ...], factor: int, frozen: bool, warps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 4 and 8 warps, with and without an activation, against float64; two runs give the same bits."""
    for entries in TABLE.values():
        for key, config in entries.items():
            monkeypatch.setitem(entries, key, config._replace(warps=warps, registers=MAX_REGISTERS))
    arguments = make(dtype, 2, *sizes)
    grad = incoming(arguments, factor)
    for slope in (SLOPE, 1.0):
        actual, again = (run(arguments, grad, frozen, factor, slope) for _ in range(2))
        right = exact(arguments, grad, factor, slope)
        for tensor, repeated, expected, name in zip(actual, again, right, NAMES, strict=False):
            if name != "weight":  # PyTorch's gradient to weight is not deterministic
                assert torch.equal(tensor, repeated), name
            assert_near(
                tensor, expected, TOLERANCES[dtype], f"{name}, {sizes}, x{factor}, frozen {frozen}, slope {slope}"
            )


@pytest.mark.parametrize(("factor", "side", "frozen"), [(2, 64, True), (2, 128, False), (1, 256, True)])
def test_training_size_on_a_gpu(factor: int, side: int, frozen: bool) -> None:
    """The three layers of G's tail, with the configurations of the table."""
    arguments = make(torch.bfloat16, 8, 64, 64, side, side)
    grad = incoming(arguments, factor)
    actual, right = run(arguments, grad, frozen, factor), exact(arguments, grad, factor)
    for tensor, expected, name in zip(actual, right, NAMES, strict=False):
        assert_near(tensor, expected, TOLERANCES[torch.bfloat16], f"{name}, frozen {frozen}")


@pytest.mark.parametrize("frozen", [False, True])
def test_saved_memory_on_a_gpu(frozen: bool) -> None:
    """Besides x and the result, one bit per element is saved with frozen weights and an activation, else nothing."""
    arguments = make(torch.bfloat16, 16)
    parameters = [tensor.detach() for tensor in arguments[1:]] if frozen else arguments[1:]
    for slope, bits in ((SLOPE, 64 if frozen else 0), (1.0, 0)):
        for measured in (False, True):  # the first call compiles
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            out = upsampled_convolution(arguments[0], *parameters, slope=slope, impl="triton")
            if measured:
                assert torch.cuda.memory_allocated() - before == out.nbytes + bits // 8 * 16 * 128 * 128
            del out


@pytest.mark.parametrize("frozen", [False, True])
def test_cuda_graph_on_a_gpu(frozen: bool) -> None:
    arguments = make(torch.bfloat16, 2, 64, 64, 24, 40)
    grad = incoming(arguments, 2)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(arguments, grad, frozen, 2)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(arguments, grad, frozen, 2)
    with torch.no_grad():
        arguments[0].copy_(torch.randn_like(arguments[0]))
    graph.replay()
    for tensor, right in zip(captured, run(arguments, grad, frozen, 2), strict=True):
        torch.testing.assert_close(tensor, right, rtol=1e-2, atol=1e-2)


def test_compile_under_autocast_on_a_gpu() -> None:
    arguments = make(torch.float32, 2, 16, 8, 16, 24)

    def loss(*inputs: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = upsampled_convolution(*inputs, impl="triton")
        assert out.dtype == torch.bfloat16
        return out.float().square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    eager = torch.autograd.grad(loss(*arguments), arguments)
    for got, right in zip(torch.autograd.grad(compiled(*arguments), arguments), eager, strict=True):
        assert_near(got, right, 1e-2, "compiled")
