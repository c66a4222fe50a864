"""The residual dense block in Triton: configurations, dispatch and saved tensors, without a GPU or the interpreter."""

import itertools

import pytest
import torch
from dense_blocks import make_float32
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from andfast.functional import dispatch, residual_dense_block
from andfast.kernels.common.config import PRECISIONS, reduction_block, smallest_block
from andfast.kernels.residual_dense_block.configs import CHANNEL_BLOCKS, OUTPUT_BLOCKS, TABLE


def test_triton_is_unavailable_on_cpu() -> None:
    with pytest.raises(RuntimeError, match=r"impl='triton' of residual_dense_block .* CUDA devices.*'cpu'"):
        residual_dense_block(*make_float32(), impl="triton")


def test_triton_rejects_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._TABLE["residual_dense_block"], "triton", dispatch.everywhere)
    x, weights, biases = make_float32()
    with pytest.raises(TypeError, match=r"x must be float32, bfloat16 or float16 with impl='triton', was torch\.f"):
        residual_dense_block(
            x.double(),
            [tensor.double() for tensor in weights],
            [tensor.double() for tensor in biases],
            impl="triton",
        )


def test_config_table_is_complete() -> None:
    kernels = [
        *(f"convolution_{block}" for block in OUTPUT_BLOCKS),
        *(f"grad_weight_{block}" for block in CHANNEL_BLOCKS),
    ]
    for entries in TABLE.values():
        assert set(entries) == set(itertools.product(kernels, PRECISIONS))
        for (kernel, _), config in entries.items():
            assert config.block_h * config.block_w >= 16
            assert (config.programs > 0) == kernel.startswith("grad_weight")


def test_channel_blocks() -> None:
    blocks = [smallest_block(channels, CHANNEL_BLOCKS) for channels in (1, 16, 17, 32, 33, 64, 65, 1000)]
    assert blocks == [16, 16, 32, 32, 64, 64, 64, 64]
    assert [smallest_block(channels, OUTPUT_BLOCKS) for channels in (3, 32, 64)] == [16, 32, 32]


@pytest.mark.parametrize(
    ("segments", "limit", "expected"),
    [
        ((64, 0), 64, 64),
        ((64, 32), 64, 32),
        ((64, 64), 64, 64),
        ((64, 96), 64, 32),
        ((64, 128), 32, 32),
        ((24, 8), 64, 16),
        ((3, 1), 64, 16),
    ],
)
def test_reduction_block(segments: tuple[int, int], limit: int, expected: int) -> None:
    assert reduction_block(segments, limit, CHANNEL_BLOCKS) == expected


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("frozen", [False, True])
def test_saved_tensors_of_fake_tensors(
    frozen: bool, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At training size: 16 bytes per pixel with frozen weights, else the growth; no copy of x."""
    monkeypatch.setitem(dispatch._TABLE["residual_dense_block"], "triton", dispatch.everywhere)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[id(tensor)] = tensor
        return tensor

    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x, weights, biases = make_float32(48, 64, 32, 64, 64)
        x = x.bfloat16().to(memory_format=memory_format).requires_grad_()
        weights = [tensor.bfloat16().requires_grad_(not frozen) for tensor in weights]
        out = residual_dense_block(x, weights, [tensor.bfloat16() for tensor in biases], impl="triton")
        saved = [tensor for tensor in kept.values() if all(tensor is not weight for weight in weights)]
        assert out.is_contiguous(memory_format=memory_format)
        pixels = 48 * 64 * 64
        if frozen:
            assert [(tensor.dtype, tensor.nbytes) for tensor in saved] == [(torch.uint8, 16 * pixels)]
        else:
            assert {tensor.nbytes for tensor in saved} == {2 * 128 * pixels, x.nbytes}
            assert any(tensor is x for tensor in saved)
        (grad,) = torch.autograd.grad(out, x, out)
        assert (grad.shape, grad.dtype) == (x.shape, x.dtype)
