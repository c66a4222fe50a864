"""G's ops by the compiled convolutions on a GPU, against the definitions in float64."""

from collections.abc import Callable

import pytest
import torch
from comparison import assert_near
from convolution_checks import FORMATS, error
from dense_blocks import make_float32
from torch import Tensor

from andfast.functional import compiled_ops, residual_dense_block, upsampled_convolution
from andfast.functional.frozen_dense_blocks import (
    frozen_dense_blocks,
    frozen_dense_blocks_reference,
    pack_dense_blocks,
)
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference
from andfast.functional.upsampled_convolution_reference import upsampled_convolution_reference
from andfast.nn import RRDBNet, frozen

pytestmark = pytest.mark.gpu

TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 3e-3}
LAYERS = [  # Cin, Cout, factor, slope, height, width, whether weights are frozen, memory format
    (3, 64, 1, 1.0, 37, 53, False, FORMATS[0]),
    (64, 64, 1, 1.0, 64, 64, True, FORMATS[1]),
    (64, 64, 2, 0.2, 64, 64, False, FORMATS[1]),
    (64, 64, 2, 0.2, 19, 27, True, FORMATS[0]),
    (64, 64, 1, 0.2, 64, 96, True, FORMATS[1]),
    (64, 3, 1, 1.0, 40, 33, False, FORMATS[1]),
    (24, 40, 1, 0.2, 5, 1, False, FORMATS[0]),
]


@pytest.fixture(autouse=True)
def _built() -> None:
    if (reason := compiled_ops.why_not("cuda")) is not None:
        pytest.skip(reason)


def without_ties(x: Tensor, weights: list[Tensor]) -> None:
    """Add a term of 2 or -2, so that no pre-activation is near zero, where the gradient jumps."""
    x[:, 0] = 4.0 * torch.randint(2, x[:, 0].shape, device=x.device) - 2
    for weight in weights:
        weight[:, 0] = 0
        weight[:, 0, 1, 1] = 1


def block(
    dtype: torch.dtype, features: int, growth: int, height: int, width: int, memory_format: torch.memory_format
) -> list[Tensor]:
    """x, weights and biases."""
    x, weights, biases = make_float32(2, features, growth, height, width, "cuda")
    weights = [weight / 6 for weight in weights]
    without_ties(x, weights)
    tensors = [x.contiguous(memory_format=memory_format), *weights, *(bias / 3 for bias in biases)]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def results(f: Callable[..., Tensor], arguments: list[Tensor], grad: Tensor, frozen: bool) -> list[Tensor]:
    """The result and the gradients: to x alone with frozen parameters."""
    parameters = [tensor.detach() for tensor in arguments[1:]] if frozen else arguments[1:]
    out = f(arguments[0], *parameters)
    return [out, *torch.autograd.grad(out, arguments[:1] if frozen else arguments, grad.to(out.dtype))]


def exact(f: Callable[..., Tensor], arguments: list[Tensor], grad: Tensor, frozen: bool) -> list[Tensor]:
    return results(f, [tensor.detach().double().requires_grad_() for tensor in arguments], grad, frozen)


def cuda_block(x: Tensor, *parameters: Tensor) -> Tensor:
    return residual_dense_block(x, parameters[:5], parameters[5:], impl="cuda")


def reference_block(x: Tensor, *parameters: Tensor) -> Tensor:
    return residual_dense_block_reference(x, parameters[:5], parameters[5:])


@pytest.mark.parametrize(
    ("sizes", "frozen", "memory_format"),
    [
        ((64, 32, 64, 64), True, FORMATS[1]),
        ((64, 32, 37, 53), False, FORMATS[1]),
        ((64, 32, 37, 53), True, FORMATS[0]),
        ((16, 8, 31, 40), False, FORMATS[0]),
        ((24, 40, 5, 1), True, FORMATS[1]),
    ],
)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_dense_block_on_a_gpu(
    dtype: torch.dtype, sizes: tuple[int, ...], frozen: bool, memory_format: torch.memory_format
) -> None:
    arguments = block(dtype, *sizes, memory_format)
    grad = torch.randn_like(arguments[0])
    actual = results(cuda_block, arguments, grad, frozen)
    for n, (tensor, expected) in enumerate(zip(actual, exact(reference_block, arguments, grad, frozen), strict=True)):
        assert_near(tensor, expected, TOLERANCES[dtype], f"result {n}, {sizes}, frozen {frozen}")


@pytest.mark.parametrize("impl", ["cuda", "triton"])
@pytest.mark.parametrize(("blocks", "per_group"), [(6, 3), (2, 0)])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_frozen_dense_blocks_on_a_gpu(dtype: torch.dtype, blocks: int, per_group: int, impl: str) -> None:
    """The trunk as one op; also twice the same bits, and the same bits as block by block where nothing is grouped."""
    first = block(dtype, 64, 32, 24, 40, torch.channels_last)
    x, weights, biases = first[0], [], []
    for n in range(blocks):
        more = first if n == 0 else block(dtype, 64, 32, 24, 40, torch.channels_last)
        weights += [weight.detach() for weight in more[1:6]]
        biases += [bias.detach() for bias in more[6:]]
    packed = pack_dense_blocks(weights, biases, dtype, blocks_per_group=per_group, impl=impl)
    grad = torch.randn_like(x)
    runs = [results(lambda x: frozen_dense_blocks(x, packed), [x], grad, False) for _ in range(2)]
    for tensor, again in zip(*runs, strict=True):
        assert torch.equal(tensor, again)
    for tensor, expected in zip(
        runs[0],
        exact(
            lambda x: frozen_dense_blocks_reference(
                x, [w.double() for w in weights], [b.double() for b in biases], blocks_per_group=per_group
            ),
            [x],
            grad,
            False,
        ),
        strict=True,
    ):
        assert_near(tensor, expected, 2 * TOLERANCES[dtype], f"{blocks} blocks")
    if per_group == 0:
        out = x
        for n in range(blocks):
            of = slice(5 * n, 5 * n + 5)
            out = residual_dense_block(out, weights[of], biases[of], impl=impl)
        assert torch.equal(runs[0][0], out)
        assert torch.equal(runs[0][1], torch.autograd.grad(out, x, grad)[0])


@pytest.mark.parametrize(("c_in", "c_out", "factor", "slope", "height", "width", "frozen", "memory_format"), LAYERS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_convolution_on_a_gpu(
    dtype: torch.dtype,
    c_in: int,
    c_out: int,
    factor: int,
    slope: float,
    height: int,
    width: int,
    frozen: bool,
    memory_format: torch.memory_format,
) -> None:
    x = torch.randn(2, c_in, height, width, device="cuda")
    weight = torch.randn(c_out, c_in, 3, 3, device="cuda") / (18 * c_in**0.5)
    without_ties(x, [weight])
    bias = torch.randn(c_out, device="cuda") / 10
    tensors = (x.contiguous(memory_format=memory_format), weight, bias)
    arguments = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    grad = torch.randn(2, c_out, factor * height, factor * width, device="cuda").to(dtype)
    actual = results(
        lambda *t: upsampled_convolution(*t, factor=factor, slope=slope, impl="cuda"), arguments, grad, frozen
    )
    right = exact(lambda *t: upsampled_convolution_reference(*t, factor=factor, slope=slope), arguments, grad, frozen)
    for n, (tensor, expected) in enumerate(zip(actual, right, strict=True)):
        assert_near(tensor, expected, TOLERANCES[dtype], f"result {n}, frozen {frozen}")


def network(impl: str = "cuda") -> RRDBNet:
    torch.manual_seed(0)
    return RRDBNet(features=64, blocks=2, growth=32, impl=impl).cuda().to(memory_format=torch.channels_last)


def assert_as_near(actual: Tensor, reference: Tensor, exact: Tensor, name: str) -> None:
    """At most twice as far from ``exact`` as the reference in the same dtype, whose rounding flips signs as well."""
    assert error(actual, exact) <= 2 * error(reference, exact) + 1e-2, name


def gradient_to_lr(generator: RRDBNet, lr: Tensor) -> list[Tensor]:
    with frozen(generator), torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
        sr = generator(lr)
        return [sr, *torch.autograd.grad(sr.float().square().mean(), lr)]


def test_frozen_network_under_autocast_on_a_gpu() -> None:
    lr = torch.rand(2, 3, 24, 40, device="cuda", requires_grad=True)
    actual, reference = (gradient_to_lr(network(impl), lr) for impl in ("cuda", "reference"))
    assert actual[0].dtype == torch.bfloat16
    sr = network("reference").double()(lr.double())
    exact_results = [sr, *torch.autograd.grad(sr.square().mean(), lr)]
    for name, *tensors in zip(("SR", "gradient to LR"), actual, reference, exact_results, strict=True):
        assert_as_near(*tensors, name)


def test_cuda_graph_of_a_frozen_network_on_a_gpu() -> None:
    """Packing, both directions; a replay reads new weights and images from where the old ones were."""
    generator, lr = network(), torch.rand(2, 3, 24, 40, device="cuda", requires_grad=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradient_to_lr(generator, lr)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradient_to_lr(generator, lr)
    with torch.no_grad():
        lr.copy_(torch.rand_like(lr))
        for parameter in generator.parameters():
            parameter.mul_(1.1)
    graph.replay()
    for tensor, expected in zip(captured, gradient_to_lr(generator, lr), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_compiled_frozen_network_on_a_gpu() -> None:
    generator, lr = network(), torch.rand(2, 3, 24, 40, device="cuda")
    generator.requires_grad_(False)
    compiled = torch.compile(generator, fullgraph=True, backend="aot_eager")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert_near(compiled(lr), generator(lr).double(), 1e-2, "compiled")


def test_trained_network_on_a_gpu() -> None:
    """Gradients to all parameters, in one training pass under autocast."""
    lr = torch.rand(2, 3, 24, 40, device="cuda")
    gradients = []
    for generator in (network("cuda"), network("reference"), network("reference").double()):
        wide = generator.conv_first.weight.dtype == torch.float64
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=not wide):
            sr = generator(lr.double() if wide else lr)
        (sr if wide else sr.float()).square().mean().backward()
        gradients.append([parameter.grad for parameter in generator.parameters()])
    for (name, _), *tensors in zip(generator.named_parameters(), *gradients, strict=True):
        assert_as_near(*tensors, name)
