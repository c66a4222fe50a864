"""Chains of frozen blocks in Triton against the definition and against single blocks.

test_residual_dense_block_kernels.py runs this file in Triton's interpreter.
"""

import pytest
import torch
import triton_interpreter
from comparison import assert_near
from dense_blocks import make_float32
from torch import Tensor
from triton_interpreter import INTERPRETED

from andfast.functional import dispatch, residual_dense_block
from andfast.functional.frozen_dense_blocks import (
    frozen_dense_blocks,
    frozen_dense_blocks_reference,
    pack_dense_blocks,
)
from andfast.nn import RRDBNet

pytestmark = triton_interpreter.quiet


def chain(blocks: int, **sizes: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """x, which requires a gradient, and five weights and biases per block."""
    torch.manual_seed(blocks)
    x = make_float32(**sizes)[0]
    parameters = [make_float32(**sizes)[1:] for _ in range(blocks)]
    weights, biases = ([tensor for block in parameters for tensor in block[kind]] for kind in (0, 1))
    return x.requires_grad_(), weights, biases


if INTERPRETED:
    triton_interpreter.repair()

    @pytest.fixture(autouse=True)
    def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
        for op in ("residual_dense_block", "upsampled_convolution"):
            monkeypatch.setitem(dispatch._TABLE[op], "triton", dispatch.everywhere)

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize(
        ("blocks", "per_group", "features", "growth", "n"),
        [(1, 0, 8, 8, 1), (2, 2, 5, 3, 2), (4, 2, 1, 9, 1), (3, 3, 16, 8, 1), (3, 0, 4, 3, 1), (2, 2, 4, 3, 0)],
    )
    def test_match_the_definition(
        blocks: int, per_group: int, features: int, growth: int, n: int, memory_format: torch.memory_format
    ) -> None:
        x, weights, biases = chain(blocks, n=n, features=features, growth=growth, height=3, width=5)
        x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
        options = {"blocks_per_group": per_group, "slope": 0.3, "scale": 0.4, "outer_scale": 0.5}
        packed = pack_dense_blocks(weights, biases, x.dtype, **options, impl="triton")
        out = frozen_dense_blocks(x, packed)
        double = x.detach().double().requires_grad_()
        expected = frozen_dense_blocks_reference(
            double, [weight.double() for weight in weights], [bias.double() for bias in biases], **options
        )
        assert out.is_contiguous(memory_format=memory_format)
        assert_near(out, expected, 1e-5, "out")
        grad = torch.randn_like(out)
        actual_grad, expected_grad = (torch.autograd.grad(y, z, grad)[0] for y, z in ((out, x), (expected, double)))
        assert_near(actual_grad, expected_grad, 1e-5, "gradient")

    def test_have_the_bits_of_single_blocks() -> None:
        x, weights, biases = chain(2, n=1, features=6, growth=4, height=4, width=3)
        packed = pack_dense_blocks(weights, biases, x.dtype, blocks_per_group=0, impl="triton")
        out = frozen_dense_blocks(x, packed)
        block_out = x
        for first in (0, 5):
            of = slice(first, first + 5)
            block_out = residual_dense_block(block_out, weights[of], biases[of], impl="triton")
        assert torch.equal(out, block_out)
        grad = torch.randn_like(out)
        assert torch.equal(torch.autograd.grad(out, x, grad)[0], torch.autograd.grad(block_out, x, grad)[0])

    def test_opcheck() -> None:
        x, weights, biases = chain(2, n=1, features=4, growth=3, height=2, width=3)
        packed = pack_dense_blocks(weights, biases, x.dtype, blocks_per_group=2, impl="triton")
        constants = (*packed[3:9], packed.impl)
        forward, backward = torch.ops.andfast.frozen_dense_blocks, torch.ops.andfast.frozen_dense_blocks_backward
        utils = triton_interpreter.SCHEMA_AND_FAKE
        torch.library.opcheck(forward.default, (x, *packed[:2], *constants, True), test_utils=utils)
        with torch.no_grad():
            out, signs = forward(x, *packed[:2], *constants, True)
            arguments = (torch.randn_like(out), signs, packed.backward, *constants)
            torch.library.opcheck(backward.default, arguments, test_utils=utils)

    def test_are_the_body_of_a_frozen_generator() -> None:
        torch.manual_seed(0)
        networks = [RRDBNet(features=4, blocks=1, growth=3, impl=impl) for impl in ("triton", "reference")]
        networks[1].load_state_dict(networks[0].state_dict())
        gradients = []
        for network in networks:
            network.requires_grad_(False)
            torch.manual_seed(1)
            lr = torch.rand(1, 3, 3, 4, requires_grad=True)
            body = network.frozen_body(lr.device, lr.dtype)
            assert (body is None) == (network.impl == "reference")
            out = network(lr, body=body)
            gradients.append(torch.autograd.grad(out.square().sum(), lr)[0])
        assert_near(gradients[0], gradients[1].double(), 1e-4, "gradient to LR")
