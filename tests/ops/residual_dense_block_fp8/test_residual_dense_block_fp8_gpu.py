"""The fp8 dense block's Triton kernels on a GPU, against the reference on the same GPU."""

import fp8_blocks
import pytest
import torch
from comparison import assert_near
from torch import Tensor

from andfast.functional import dispatch
from andfast.functional.residual_dense_block_fp8 import NAME, Fp8Weights, quantize_weights, residual_dense_block_fp8
from andfast.kernels.residual_dense_block_fp8 import kernels
from andfast.nn import RRDBNet, frozen
from andfast.nn.fp8_body import Fp8Body

pytestmark = pytest.mark.gpu

TOLERANCE = 1e-2
"""Hopper keeps sums of fp8 products to about 14 bits, so values near a tie may round to the neighbouring fp8 number."""

ADDED_TOLERANCE = 3e-2
"""For what the block adds to x or to the gradient. Emulated on a CPU with sums truncated to 14 bits: 2.8e-2 in float32
for the gradient, 64 features and growth 32, as e5m2 has only two bits of mantissa."""


@pytest.fixture(autouse=True)
def _fp8_units() -> None:
    if "triton" not in dispatch.available(NAME, "cuda", torch.bfloat16):
        pytest.skip(dispatch.unavailable("cuda")[NAME]["triton"])


def make(dtype: torch.dtype, sizes: tuple[int, ...]) -> tuple[Tensor, Fp8Weights, Tensor]:
    torch.manual_seed(sum(sizes))
    x, weights, biases = fp8_blocks.arguments(*sizes)
    quantized = quantize_weights([tensor.cuda() for tensor in weights], [tensor.cuda() for tensor in biases])
    x = x.to("cuda", dtype).contiguous(memory_format=torch.channels_last)
    return x, quantized, 20 * torch.randn_like(x)


def run(x: Tensor, weights: Fp8Weights, grad: Tensor, impl: str) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    out = residual_dense_block_fp8(leaf, weights, impl=impl)
    return [out.detach(), *torch.autograd.grad(out, leaf, grad)]


@pytest.mark.parametrize(
    "sizes", [(48, 64, 32, 64, 64), (2, 64, 32, 37, 53), (2, 16, 8, 31, 40), (2, 33, 5, 17, 19), (2, 3, 1, 5, 1)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    """Close to the reference, both the result and what the block adds; two runs give the same bits."""
    x, weights, grad = make(dtype, sizes)
    runs = (run(x, weights, grad, impl) for impl in ("triton", "triton", "reference"))
    for actual, again, expected, residual, name in zip(*runs, (x, grad), ("out", "gradient"), strict=True):
        assert torch.equal(actual, again), name
        assert_near(actual, expected.double(), TOLERANCE, f"{name}, {sizes}")
        # Both results are rounded to x's dtype: each error is uniform in half a unit of at most eps * |result|, so the
        # norm of their difference is at most eps / sqrt(6) of the result's, which is several times what the block adds.
        rounding = torch.finfo(dtype).eps / 6**0.5 * expected.double().norm()
        added = expected.double() - residual.double()
        tolerance = ADDED_TOLERANCE + (rounding / added.norm()).item()
        assert_near(actual.double() - residual.double(), added, tolerance, f"added to {name}, {sizes}")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_quantize_matches_torch_on_a_gpu(dtype: torch.dtype) -> None:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).cuda()
    x = values.reshape(1, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    actual = kernels.quantize(x, dtype).permute(0, 3, 1, 2).float()
    largest = torch.finfo(dtype).max
    right = x.float().clamp(-largest, largest).to(dtype).float()
    torch.testing.assert_close(actual, right, rtol=0, atol=0, equal_nan=True)


def test_cuda_graph_reads_new_weights() -> None:
    """G's body quantizes inside the graph, so a replay uses the current weights."""
    torch.manual_seed(0)
    generator = RRDBNet(blocks=2, features=16, growth=8).cuda().bfloat16().to(memory_format=torch.channels_last)
    lr = torch.rand(2, 3, 16, 16, device="cuda", dtype=torch.bfloat16)

    def gradient() -> Tensor:
        leaf = lr.clone().requires_grad_()
        return torch.autograd.grad(generator(leaf, Fp8Body(generator, "triton")).float().mean(), leaf)[0]

    with frozen(generator):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                gradient()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            actual = gradient()
        with torch.no_grad():
            for tensor in generator.parameters():
                tensor.mul_(1.25)
        graph.replay()
        assert_near(actual, gradient().double(), 1e-3, "the gradient to LR")
