"""The fp8 residual dense block: the reference, quantization, registration and argument errors."""

from typing import Any

import fp8_blocks
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import dispatch, residual_dense_block
from andfast.functional import residual_dense_block_fp8 as fp8
from andfast.functional import triton_support as _triton
from andfast.functional.residual_dense_block_fp8 import Fp8Weights, forward_op, quantize_weights
from andfast.functional.residual_dense_block_fp8 import residual_dense_block_fp8 as block
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference

SIZES = [(2, 64, 32, 6, 7), (1, 5, 3, 11, 2), (3, 1, 1, 1, 1), (2, 7, 9, 1, 13), (0, 4, 3, 5, 5)]


def results(x: Tensor, weights: Fp8Weights, grad: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    out = block(x, weights, **options)
    (grad_x,) = torch.autograd.grad(out, x, grad)
    return out.detach(), grad_x


def near(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("slope", "scale"), [(0.2, 0.2), (0.0, 1.0)])
@pytest.mark.parametrize("sizes", SIZES)
def test_matches_definition_in_float64(
    sizes: tuple[int, ...], slope: float, scale: float, memory_format: torch.memory_format
) -> None:
    """Equal to the second definition up to the order of summation and, for half types, the rounding of the result."""
    torch.manual_seed(sum(sizes))
    x, weights, biases = fp8_blocks.arguments(*sizes)
    grad = 20 * torch.randn_like(x)
    quantized = quantize_weights(weights, biases, scale=scale)
    right = fp8_blocks.forward_and_backward(x, weights, biases, grad, slope, scale)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        inputs = x.to(dtype).contiguous(memory_format=memory_format)
        actual = results(inputs, quantized, grad.to(dtype), slope=slope)
        assert actual[0].dtype == actual[1].dtype == dtype
        assert actual[0].is_contiguous(memory_format=memory_format)
        for tensor, expected in zip(actual, right, strict=True):
            assert near(tensor, expected) <= tolerance
    low, low_grad = x.bfloat16(), grad.bfloat16()
    right = fp8_blocks.forward_and_backward(low, weights, biases, low_grad, slope, scale)
    for tensor, expected in zip(results(low, quantized, low_grad, slope=slope), right, strict=True):
        assert tensor.dtype == torch.bfloat16
        assert near(tensor, expected) <= 4e-3


def test_error_against_exact_block() -> None:
    """Relative error of what the convolutions add, and of its gradient; 4.2% and 12% were measured."""
    torch.manual_seed(0)
    x, weights, biases = fp8_blocks.arguments(2, 64, 32, 12, 12)
    grad = 20 * torch.randn_like(x)
    out, grad_x = results(x, quantize_weights(weights, biases), grad)
    leaf = x.double().requires_grad_()
    exact = residual_dense_block_reference(leaf, [w.double() for w in weights], [b.double() for b in biases])
    (exact_grad,) = torch.autograd.grad(exact, leaf, grad.double())
    assert 0.02 < near(out - x, exact.detach() - x) < 0.05
    assert 0.05 < near(grad_x - grad, exact_grad - grad) < 0.14


def test_saturates_and_keeps_nan() -> None:
    torch.manual_seed(1)
    x, weights, biases = fp8_blocks.arguments(1, 4, 3, 5, 5)
    quantized = quantize_weights(weights, biases)
    large = x.clone()
    large[0, 0, 2, 2] = 1e6
    out, grad_x = results(large, quantized, 1e6 * torch.ones_like(x))
    assert out.isfinite().all()
    assert grad_x.isfinite().all()
    assert (
        1e6 - 1000 < out[0, 0, 2, 2] < 1e6 + 1000
    )  # the residual is exact, the rest saturates at e4m3's largest number
    large[0, 0, 2, 2] = float("nan")
    assert results(large, quantized, torch.ones_like(x))[0].isnan().any()
    weights[0][1, 2, 1, 1] = float("nan")
    assert results(x, quantize_weights(weights, biases), torch.ones_like(x))[0].isnan().any()


def test_zero_weights_have_nonzero_factors() -> None:
    x, weights, biases = fp8_blocks.arguments(1, 4, 3, 5, 5)
    out, grad = results(x, quantize_weights([0 * tensor for tensor in weights], [0 * tensor for tensor in biases]), x)
    assert torch.equal(out, x)
    assert torch.equal(grad, x)


def test_quantizes_stacked_blocks() -> None:
    results = [fp8_blocks.arguments(1, 5, 3, 2, 2)[1:] for _ in range(3)]
    stacked = [[torch.stack(same) for same in zip(*kind, strict=True)] for kind in zip(*results, strict=True)]
    together = quantize_weights(*stacked)
    for index, (weights, biases) in enumerate(results):
        for actual, expected in zip(together.block(index), quantize_weights(weights, biases), strict=True):
            for tensor, exact in zip(actual, expected, strict=True):
                assert tensor.is_contiguous()
                assert torch.equal(tensor, exact)
    with pytest.raises(ValueError, match=r"weights must be those of one block, had kernels of shape \(3, 9, 3, 5\)"):
        block(results[0][0][0].new_zeros(1, 5, 2, 2), together)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x, weights, biases = fp8_blocks.arguments(2, 5, 3, 4, 6)
    x = x.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    quantized = map(list, quantize_weights(weights, biases))
    torch.library.opcheck(forward_op, (x, *quantized, 0.2, "reference"))


def test_compiles_to_one_graph() -> None:
    torch.manual_seed(2)
    x, weights, biases = fp8_blocks.arguments(2, 5, 3, 4, 6)
    quantized = quantize_weights(weights, biases)
    compiled = torch.compile(lambda inputs: block(inputs, quantized) * 2, fullgraph=True, backend="aot_eager")
    leaf = x.requires_grad_()
    actual, right = compiled(leaf), block(leaf, quantized) * 2
    assert torch.equal(actual, right)
    assert torch.equal(*(torch.autograd.grad(tensor.sum(), leaf)[0] for tensor in (actual, right)))


def test_autocast_and_operations() -> None:
    """Casts and operation counts are those of the frozen residual_dense_block."""
    x, weights, biases = fp8_blocks.arguments(2, 8, 4, 5, 6)
    quantized = quantize_weights(weights, biases)
    counts = []
    for run in (lambda x: block(x, quantized), lambda x: residual_dense_block(x, weights, biases)):
        with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
            leaf = x.clone().requires_grad_()
            out = run(leaf)
            out.sum().backward()
        assert out.dtype == torch.bfloat16
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 2 * 9 * 30 * sum(w.shape[0] * w.shape[1] for w in weights) * 2


def test_errors() -> None:
    x, weights, biases = fp8_blocks.arguments(1, 4, 3, 5, 5)
    quantized = quantize_weights(weights, biases)
    trained = [weights[0].clone().requires_grad_(), *weights[1:]]
    with pytest.raises(ValueError, match=r"weights\[0\] must not require a gradient: fp8 is for frozen blocks"):
        quantize_weights(trained, biases)
    with pytest.raises(ValueError, match=r"biases\[4\] must not require a gradient"):
        quantize_weights(weights, [*biases[:4], biases[4].clone().requires_grad_()])
    with torch.no_grad():
        quantize_weights(trained, biases)
    with pytest.raises(ValueError, match=r"weights\[1\] must have shape .*, here \(3, 7, 3, 3\), was \(3, 4, 3, 3\)"):
        quantize_weights([weights[0], weights[0], *weights[2:]], biases)
    with pytest.raises(TypeError, match="weights must be a list or tuple of 5 tensors, was Tensor"):
        quantize_weights(weights[0], biases)
    with pytest.raises(TypeError, match="weights must be Fp8Weights, see quantize_weights, was list"):
        block(x, weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must have the 4 channels of weights, was \(1, 3, 5, 5\)"):
        block(x[:, :3], quantized)
    with pytest.raises(ValueError, match=r"x must have at least one row and column, was \(1, 4, 0, 5\)"):
        block(x[:, :, :0], quantized)
    with pytest.raises(ValueError, match=r"slope must be finite and at least 0, was -1"):
        block(x, quantized, slope=-1)
    with pytest.raises(RuntimeError, match=r"impl='triton' of residual_dense_block_fp8 is not .*'cpu'"):
        block(x, quantized, impl="triton")


@pytest.mark.parametrize(("capability", "runs"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)])
def test_triton_needs_compute_capability_8_9(
    capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_triton, "why_not", lambda device_type: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    impls = dispatch.available(fp8.NAME, "cuda", torch.bfloat16)
    assert impls == (("triton", "reference") if runs else ("reference",))
    assert dispatch.available(fp8.NAME, "cuda", torch.float32) == ("reference",)
    if not runs:
        version = f"{capability[0]}.{capability[1]}"
        text = rf"fp8 matrix products need compute capability 8.9 or newer .*, device 0 has {version}"
        with pytest.raises(RuntimeError, match=text):
            dispatch.resolve(fp8.NAME, "triton", "cuda", torch.bfloat16)
