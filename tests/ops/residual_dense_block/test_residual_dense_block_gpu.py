"""The residual dense block's Triton kernels on a GPU, against the definition in float64."""

import pytest
import torch
from comparison import assert_near
from torch import Tensor

from andfast.functional import residual_dense_block
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference
from andfast.kernels.common.config import MAX_REGISTERS
from andfast.kernels.residual_dense_block.configs import TABLE

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
CASES = [  # each size, kind of backward and number of warps; products of them say nothing more
    ((64, 32, 64, 64), True, 8),
    ((64, 32, 37, 53), False, 4),
    ((16, 8, 31, 40), False, 8),
    ((33, 5, 17, 19), True, 4),
    ((3, 1, 5, 1), False, 8),
]
NAMES = ("out", "x", *(f"weight {k}" for k in range(5)), *(f"bias {k}" for k in range(5)))


def make(
    dtype: torch.dtype, n: int = 2, features: int = 64, growth: int = 32, height: int = 64, width: int = 64
) -> list[Tensor]:
    """x, weights and biases; a term of 2 or -2 keeps pre-activations away from zero, where the gradient jumps."""

    def signs(*shape: int) -> Tensor:
        return torch.where(torch.rand(shape, device="cuda") < 0.5, 1.0, -1.0)

    x = torch.randn(n, features, height, width, device="cuda")
    x[:, 0] = 2 * signs(n, height, width)
    weights, biases = [], []
    for k in range(5):
        cout, cin = growth if k < 4 else features, features + k * growth
        weight = torch.randn(cout, cin, 3, 3, device="cuda") / (18 * cin**0.5)
        weight[:, 0, 1, 1] = signs(cout)
        weights.append(weight)
        biases.append(torch.randn(cout, device="cuda") / 10)
    return [
        tensor.to(dtype).requires_grad_()
        for tensor in (x.contiguous(memory_format=torch.channels_last), *weights, *biases)
    ]


def run(arguments: list[Tensor], grad: Tensor, frozen: bool, impl: str = "triton") -> list[Tensor]:
    """The result and the gradients: to x only with frozen weights, else to all arguments."""
    parameters = [tensor.detach() for tensor in arguments[1:]] if frozen else arguments[1:]
    out = residual_dense_block(arguments[0], parameters[:5], parameters[5:], impl=impl)
    return [out, *torch.autograd.grad(out, arguments[:1] if frozen else arguments, grad)]


def exact(arguments: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().double().requires_grad_() for tensor in arguments]
    out = residual_dense_block_reference(leaves[0], leaves[1:6], leaves[6:])
    return [out, *torch.autograd.grad(out, leaves, grad.double())]


@pytest.mark.parametrize(("sizes", "frozen", "warps"), CASES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_on_a_gpu(
    dtype: torch.dtype, sizes: tuple[int, ...], frozen: bool, warps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 4 and 8 warps, against float64; two runs give the same bits."""
    for entries in TABLE.values():
        for key, config in entries.items():
            monkeypatch.setitem(entries, key, config._replace(warps=warps, registers=MAX_REGISTERS))
    arguments = make(dtype, 2, *sizes)
    grad = torch.randn_like(arguments[0])
    actual, again, right = run(arguments, grad, frozen), run(arguments, grad, frozen), exact(arguments, grad)
    for tensor, repeated, expected, name in zip(actual, again, right, NAMES, strict=False):
        assert torch.equal(tensor, repeated), name
        assert_near(tensor, expected, TOLERANCES[dtype], f"{name}, {sizes}, frozen {frozen}, {warps} warps")


@pytest.mark.parametrize(
    ("dtype", "frozen"),
    [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, False), (torch.float32, True)],
)
def test_training_size_on_a_gpu(dtype: torch.dtype, frozen: bool) -> None:
    """A batch of 48 at 64 x 64, with the configurations of the table."""
    arguments = make(dtype, 48)
    grad = torch.randn_like(arguments[0])
    actual, right = run(arguments, grad, frozen), exact(arguments, grad)
    for tensor, expected, name in zip(actual, right, NAMES, strict=False):
        assert_near(tensor, expected, TOLERANCES[dtype], f"{name}, frozen {frozen}")


def test_saved_memory_on_a_gpu() -> None:
    """Besides x and the result, 16 bytes per pixel are saved with frozen weights, and 256 with trained ones."""
    arguments = make(torch.bfloat16, 16)
    pixels = 16 * 64 * 64
    for frozen, kept in ((True, 16), (False, 256)):
        parameters = [tensor.detach() for tensor in arguments[1:]] if frozen else arguments[1:]
        residual_dense_block(arguments[0], parameters[:5], parameters[5:], impl="triton")  # compiles
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        out = residual_dense_block(arguments[0], parameters[:5], parameters[5:], impl="triton")
        assert torch.cuda.memory_allocated() - before == out.nbytes + kept * pixels


@pytest.mark.parametrize("frozen", [False, True])
def test_cuda_graph_on_a_gpu(frozen: bool) -> None:
    arguments = make(torch.bfloat16, 2, 64, 32, 24, 40)
    grad = torch.randn_like(arguments[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(arguments, grad, frozen)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(arguments, grad, frozen)
    with torch.no_grad():
        arguments[0].copy_(torch.randn_like(arguments[0]))
    graph.replay()
    for tensor, right in zip(captured, run(arguments, grad, frozen), strict=True):
        torch.testing.assert_close(tensor, right, rtol=0, atol=0)


def test_compile_under_autocast_on_a_gpu() -> None:
    arguments = make(torch.float32, 2, 16, 8, 16, 24)

    def loss(*inputs: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = residual_dense_block(inputs[0], inputs[1:6], inputs[6:], impl="triton")
        assert out.dtype == torch.bfloat16
        return out.float().square().sum()

    compiled = torch.compile(loss, fullgraph=True)
    eager = torch.autograd.grad(loss(*arguments), arguments)
    for got, right in zip(torch.autograd.grad(compiled(*arguments), arguments), eager, strict=True):
        assert_near(got, right, 1e-2, "compiled")
