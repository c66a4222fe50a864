"""impl="cuda" of G's ops with the compiled ops emulated on the CPU: gradients, fakes, formats and errors."""

import compiled_ops_emulation
import pytest
import torch
from convolution_checks import FORMATS, assert_same, assert_same_gradients
from dense_blocks import flat, freeze, make
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional import (
    compiled_ops,
    dense_blocks_cuda,
    dispatch,
    frozen_dense_blocks,
    residual_dense_block,
    upsampled_convolution,
)
from andfast.functional.frozen_dense_blocks import PackedBlocks, frozen_dense_blocks_reference, pack_dense_blocks
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference
from andfast.functional.upsampled_convolution_reference import upsampled_convolution_reference

OPS = torch.ops.andfast
LAYERS = [(3, 8, 1, 1.0), (8, 8, 1, 0.2), (16, 8, 2, 0.2), (8, 3, 1, 1.0)]
"""Cin, Cout, factor, slope: as conv_first, conv_hr, conv_up and conv_last."""


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_ops_emulation.use(monkeypatch)


def layer(c_in: int, c_out: int, memory_format: torch.memory_format) -> list[Tensor]:
    """x, weight and bias in float64."""
    generator = torch.Generator().manual_seed(c_in + 100 * c_out)
    shapes = [(2, c_in, 5, 7), (c_out, c_in, 3, 3), (c_out,)]
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.requires_grad_() for tensor in (x.contiguous(memory_format=memory_format), weight, bias)]


# ----------------------------------------------------------------------------------------------- Dense blocks


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("frozen", [False, True])
def test_dense_block_matches_the_definition(frozen: bool, memory_format: torch.memory_format) -> None:
    x, weights, biases = make(features=16, growth=8)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    if frozen:
        weights, biases = freeze(weights), freeze(biases)
    inputs = [tensor for tensor in (x, *weights, *biases) if tensor.requires_grad]
    out, expected = (
        residual_dense_block(x, weights, biases, impl="cuda"),
        residual_dense_block_reference(x, weights, biases),
    )
    assert out.is_contiguous(memory_format=memory_format)
    assert_same([out], [expected])
    assert_same_gradients(out, expected, inputs)


@pytest.mark.parametrize("needed", [[1], [5], [6], [10], [3, 9], [0, 4]])
def test_dense_block_computes_the_needed_gradients(needed: list[int]) -> None:
    x, weights, biases = make(features=8, growth=8)
    tensors = [tensor.detach().requires_grad_(n in needed) for n, tensor in enumerate((x, *weights, *biases))]
    out = flat(lambda *arguments: residual_dense_block(*arguments, impl="cuda"))(*tensors)
    assert_same_gradients(out, flat(residual_dense_block_reference)(*tensors), [tensors[n] for n in needed])


@pytest.mark.parametrize("frozen", [pytest.param(False, marks=pytest.mark.slow), True])
def test_dense_block_opcheck(frozen: bool) -> None:
    x, weights, biases = make(features=8, growth=8)
    if frozen:
        weights, biases = freeze(weights), freeze(biases)
    arguments = (x, weights, biases, 0.2, 0.2, not frozen, "cuda")
    torch.library.opcheck(OPS.residual_dense_block.default, arguments)
    with torch.no_grad():
        out, saved = OPS.residual_dense_block(*arguments)
        needed = [not frozen] * 5
        options = (0.2, 0.2, True, needed, needed, "cuda", x.detach())
        torch.library.opcheck(
            OPS.residual_dense_block_backward.default, (torch.randn_like(out), saved, freeze(weights), *options)
        )


def trunk(blocks: int = 6) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """x and the parameters of frozen blocks."""
    x, weights, biases = make(features=8, growth=8)
    generator = torch.Generator().manual_seed(0)
    more = [[torch.randn(t.shape, generator=generator, dtype=t.dtype) / 9 for t in weights] for _ in range(blocks - 1)]
    weights = [*freeze(weights), *(weight for block in more for weight in block)]
    return x, weights, freeze(biases) * blocks


@pytest.mark.parametrize(("blocks", "per_group"), [(6, 3), (3, 3), (4, 2), (2, 0), (1, 0)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_frozen_dense_blocks_match_the_definition(
    blocks: int, per_group: int, memory_format: torch.memory_format
) -> None:
    x, weights, biases = trunk(blocks)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    packed = pack_dense_blocks(weights, biases, x.dtype, blocks_per_group=per_group, outer_scale=0.3, impl="cuda")
    out = frozen_dense_blocks.frozen_dense_blocks(x, packed)
    expected = frozen_dense_blocks_reference(x, weights, biases, blocks_per_group=per_group, outer_scale=0.3)
    assert out.is_contiguous(memory_format=memory_format)
    assert_same([out], [expected])
    assert_same_gradients(out, expected, [x])


def packed_trunk() -> tuple[Tensor, PackedBlocks]:
    x, weights, biases = trunk(3)
    return x, pack_dense_blocks(weights, biases, x.dtype, impl="cuda")


def test_frozen_dense_blocks_opcheck() -> None:
    x, packed = packed_trunk()
    constants = (*packed[3:9], packed.impl)
    torch.library.opcheck(OPS.frozen_dense_blocks.default, (x, *packed[:2], *constants, True))
    torch.library.opcheck(OPS.frozen_dense_blocks.default, (x.detach(), *packed[:2], *constants, False))
    with torch.no_grad():
        out, signs = OPS.frozen_dense_blocks(x, *packed[:2], *constants, True)
        torch.library.opcheck(
            OPS.frozen_dense_blocks_backward.default, (torch.randn_like(out), signs, packed.backward, *constants)
        )


def test_frozen_dense_blocks_keep_nothing_without_a_gradient() -> None:
    x, packed = packed_trunk()
    with torch.no_grad():
        out = frozen_dense_blocks.frozen_dense_blocks(x, packed)
    assert torch.equal(out, frozen_dense_blocks.frozen_dense_blocks(x, packed))
    assert OPS.frozen_dense_blocks(x.detach(), *packed[:2], *packed[3:9], packed.impl, False)[1].numel() == 0


def test_frozen_dense_blocks_compile_with_their_packing() -> None:
    x, weights, biases = trunk(3)

    def restore(x: Tensor) -> Tensor:
        return frozen_dense_blocks.frozen_dense_blocks(x, pack_dense_blocks(weights, biases, x.dtype, impl="cuda"))

    compiled = torch.compile(restore, fullgraph=True, backend="aot_eager")
    assert_same([compiled(x)], [restore(x)])
    assert_same_gradients(compiled(x), restore(x), [x])


def test_frozen_dense_blocks_count_the_operations_of_the_definition() -> None:
    x, weights, biases = trunk(3)
    packed = pack_dense_blocks(weights, biases, x.dtype, impl="cuda")
    totals = []
    for call in (
        lambda: frozen_dense_blocks.frozen_dense_blocks(x, packed),
        lambda: frozen_dense_blocks_reference(x, weights, biases),
    ):
        with FlopCounterMode(display=False) as counter:
            call().sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


def test_frozen_dense_blocks_reject_other_inputs() -> None:
    x, packed = packed_trunk()
    with pytest.raises(TypeError, match=r"x must be torch.float64, the dtype of the packed weights, was torch.float32"):
        frozen_dense_blocks.frozen_dense_blocks(x.float(), packed)
    with pytest.raises(ValueError, match=r"x must have 8 channels, those of the packed weights, was \(2, 3, 5, 7\)"):
        frozen_dense_blocks.frozen_dense_blocks(x[:, :3], packed)
    _, weights, biases = trunk(3)
    with pytest.raises(ValueError, match="weights must hold 5 tensors for each block, held 14"):
        pack_dense_blocks(weights[1:], biases[1:], x.dtype, impl="cuda")
    with pytest.raises(ValueError, match="biases must hold as many tensors as weights, 15, held 14"):
        pack_dense_blocks(weights, biases[1:], x.dtype, impl="cuda")
    with pytest.raises(ValueError, match=r"dtype must be .*, was torch.int8"):
        pack_dense_blocks(weights, biases, torch.int8, impl="cuda")
    with pytest.raises(ValueError, match=r"impl must be 'cuda' or 'triton', was 'reference'"):
        pack_dense_blocks(weights, biases, x.dtype, impl="reference")


# --------------------------------------------------------------------------------------------- Single layers


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("c_in", "c_out", "factor", "slope"), LAYERS)
def test_convolution_matches_the_definition(
    c_in: int, c_out: int, factor: int, slope: float, frozen: bool, memory_format: torch.memory_format
) -> None:
    x, weight, bias = layer(c_in, c_out, memory_format)
    if frozen:
        weight, bias = weight.detach(), bias.detach()
    inputs = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]
    out = upsampled_convolution(x, weight, bias, factor=factor, slope=slope, impl="cuda")
    expected = upsampled_convolution_reference(x, weight, bias, factor=factor, slope=slope)
    assert out.is_contiguous(memory_format=memory_format)
    assert_same([out], [expected])
    assert_same_gradients(out, expected, inputs)


@pytest.mark.parametrize(("c_in", "c_out", "factor", "slope"), LAYERS)
def test_convolution_opcheck(c_in: int, c_out: int, factor: int, slope: float) -> None:
    x, weight, bias = layer(c_in, c_out, torch.channels_last)
    keep_signs = slope != 1
    forward = (x, weight.detach(), bias.detach(), factor, slope, keep_signs, "cuda")
    torch.library.opcheck(OPS.upsampled_convolution.default, forward)
    with torch.no_grad():
        out, signs = OPS.upsampled_convolution(*forward)
        backward = (torch.randn_like(out), signs, None, weight, factor, slope, [True, False, False], True, "cuda")
        torch.library.opcheck(OPS.upsampled_convolution_backward.default, backward)


# ------------------------------------------------------------------------------- Channels, fakes, availability


def test_rejects_channels_that_the_kernels_do_not_take() -> None:
    x, weights, biases = make(features=8, growth=3)
    message = r"features and growth must be multiples of 8, were 8 and 3, with impl='cuda' of residual_dense_block"
    with pytest.raises(ValueError, match=message):
        residual_dense_block(x, weights, biases, impl="cuda")
    with pytest.raises(ValueError, match="features and growth must be multiples of 8"):
        pack_dense_blocks(weights, biases, torch.float64, impl="cuda")
    x, weight, bias = layer(12, 8, torch.channels_last)
    with pytest.raises(ValueError, match=r"Cin must be a multiple of 8 or less than 8, was 12, with impl='cuda'"):
        upsampled_convolution(x, weight, bias, factor=1, impl="cuda")
    x, weight, bias = layer(8, 3, torch.channels_last)
    with pytest.raises(ValueError, match=r"Cout must be a multiple of 8, was 3, with impl='cuda'"):
        upsampled_convolution(x, weight.detach(), bias.detach(), factor=1, impl="cuda")


def test_auto_skips_cuda_for_channels_that_it_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert dispatch.resolve("residual_dense_block", "auto", "cuda", torch.bfloat16) == "cuda"
    unsuited = dense_blocks_cuda.unsuited(64, 3)
    assert dispatch.resolve("residual_dense_block", "auto", "cuda", torch.bfloat16, unsuited) == "reference"


@pytest.mark.parametrize(
    ("capability", "half", "basis"),
    [((8, 0), "cuda", "counts"), ((8, 6), "cuda", "counts"), ((12, 0), "reference", "default order")],
)
def test_order_follows_the_compute_capability(
    capability: tuple[int, int], half: str, basis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    for op in ("residual_dense_block", "upsampled_convolution"):
        monkeypatch.setitem(dispatch._TABLE[op], "triton", dispatch.everywhere)
        assert dispatch.resolve(op, "auto", "cuda", torch.bfloat16) == half
        assert dispatch.resolve(op, "auto", "cuda", torch.float32) == "reference"
        assert dispatch.basis(op, "cuda") == basis
        assert dispatch.basis(op, "cpu") is None


def test_triton_is_first_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for op in ("residual_dense_block", "upsampled_convolution"):
        monkeypatch.setitem(dispatch._TABLE[op], "triton", dispatch.everywhere)
        assert dispatch.available(op, "cuda", torch.bfloat16) == ("triton", "reference", "cuda")
        assert dispatch.basis(op, "cuda") is None


@pytest.mark.parametrize(("capability", "basis"), [((9, 0), None), ((8, 0), "default order")])
def test_order_without_a_ranking_was_measured_on_hopper_alone(
    capability: tuple[int, int], basis: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setitem(dispatch._TABLE["degradation_block"], "triton", dispatch.everywhere)
    assert dispatch.basis("degradation_block", "cuda") == basis
    monkeypatch.setitem(dispatch._TABLE["degradation_block"], "triton", lambda _: "not installed")
    assert dispatch.basis("degradation_block", "cuda") is None


def test_fakes_of_the_compiled_ops() -> None:
    """Shapes and strides on a fake CUDA device, as torch.compile asks for them."""
    with FakeTensorMode():
        x = torch.empty(2, 64, 5, 7, device="cuda", dtype=torch.bfloat16)
        packed = torch.empty(100, device="cuda", dtype=torch.uint8)
        for keep, saved_shape in (
            (compiled_ops.KEEP_NOTHING, (0,)),
            (compiled_ops.KEEP_SIGNS, (1, 4, 2, 5, 7, 4)),
            (compiled_ops.KEEP_GROWTH, (2, 128, 5, 7)),
        ):
            out, saved = OPS.dense_blocks_forward(x, packed, 32, 1, 0, 0.2, 0.2, 0.2, keep)
            assert out.shape == x.shape
            assert out.is_contiguous(memory_format=torch.channels_last)
            assert saved.shape == saved_shape
        grad_x, grad_growth = OPS.dense_blocks_backward(x, saved, packed, 32, 1, 0, 0.2, 0.2, 0.2)
        assert (grad_x.shape, grad_growth.shape) == (x.shape, (2, 128, 5, 7))
        out, signs = OPS.convolution_forward(x, packed, 40, 2, 0.2, None, 1.0, None, None, False, False, True)
        assert (out.shape, signs.shape) == ((2, 40, 10, 14), (2, 10, 14, 8))
        grad = OPS.convolution_backward(out, packed, 64, 2, None, 1.0, False)
        assert grad.shape == x.shape
        assert grad.is_contiguous(memory_format=torch.channels_last)
        assert OPS.convolution_activation_backward(out, signs, 0.2).shape == out.shape
        assert x.device.type == out.device.type == "cuda"
