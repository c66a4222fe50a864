"""RRDBNet: BasicSR's names, shapes, initialization and outputs, and the operation count."""

import math
from pathlib import Path

import pytest
import torch
from spandrel import ImageModelDescriptor, ModelLoader
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from andfast.nn import RRDBNet, rrdbnet
from andfast.nn.weights import save_weights


def small(scale: int = 4, *, features: int = 8, blocks: int = 2, growth: int = 4) -> RRDBNet:
    torch.manual_seed(0)
    return RRDBNet(scale, features=features, blocks=blocks, growth=growth)


def randomized(network: RRDBNet) -> RRDBNet:
    """Larger random parameters, so that each of them affects the output."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) / math.sqrt(parameter[0].numel()))
    return network


@pytest.mark.parametrize(("scale", "first"), [(4, 3), (2, 12), (1, 48)])
def test_names_and_shapes_match_basicsr(scale: int, first: int) -> None:
    expected = {"conv_first": (64, first), "conv_body": (64, 64), "conv_up1": (64, 64), "conv_up2": (64, 64)}
    for i in range(23):
        for j in (1, 2, 3):
            for k in range(1, 6):
                expected[f"body.{i}.rdb{j}.conv{k}"] = (32 if k < 5 else 64, 64 + 32 * (k - 1))
    expected |= {"conv_hr": (64, 64), "conv_last": (3, 64)}
    with torch.device("meta"):
        state = RRDBNet(scale).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items() if name.endswith(".weight")} == {
        f"{name}.weight": (*shape, 3, 3) for name, shape in expected.items()
    }
    assert {name: tuple(value.shape) for name, value in state.items() if name.endswith(".bias")} == {
        f"{name}.bias": shape[:1] for name, shape in expected.items()
    }
    assert len(state) == 2 * len(expected) == 702


def test_operation_count() -> None:
    """73.43 GMAC for a 64x64 image: forward, input gradient and weight gradient each."""
    with torch.device("meta"):
        network = RRDBNet()
        lr = torch.empty(1, 3, 64, 64)
    with FlopCounterMode(display=False) as forward:
        out = network(lr.requires_grad_())
    assert out.shape == (1, 3, 256, 256)
    assert forward.get_total_flops() == 2 * 73_428_369_408
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()
    network.requires_grad_(False)
    with FlopCounterMode(display=False) as frozen:
        network(lr).sum().backward()
    assert frozen.get_total_flops() == 2 * forward.get_total_flops()


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize(("features", "blocks", "growth"), [(32, 1, 32), (24, 3, 32)])  # the demo's, and another
def test_matches_spandrel(scale: int, features: int, blocks: int, growth: int, tmp_path: Path) -> None:
    """From the weight file alone; spandrel's ESRGAN supports growth 32 only."""
    network = randomized(small(scale, features=features, blocks=blocks, growth=growth)).eval()
    file = tmp_path / "weights.safetensors"
    save_weights(file, network)
    model = ModelLoader(device="cpu").load_from_file(file)
    assert isinstance(model, ImageModelDescriptor)
    assert model.architecture.id == "ESRGAN"
    assert (model.scale, model.input_channels, model.output_channels) == (scale, 3, 3)
    image = torch.rand(2, 3, 12, 20)
    with torch.no_grad():
        output, expected = network(image), model.model.eval()(image)
    assert output.shape == (2, 3, 12 * scale, 20 * scale)
    assert output.std() > 0.01
    assert (output - expected).norm() / expected.norm() < 1e-5


def test_initialization_matches_basicsr() -> None:
    network = small(features=32, blocks=2, growth=16)
    for block in network.body:
        for dense in block.children():
            for name, convolution in dense.named_children():
                fan_in = convolution.weight[0].numel()
                assert convolution.weight.std().item() == pytest.approx(0.1 * math.sqrt(2 / fan_in), rel=0.1), name
                assert not convolution.bias.any()
    assert network.conv_first.bias.any()  # PyTorch's default, uniform within 1 / sqrt(fan in)
    bound = 1 / math.sqrt(32 * 9)
    assert 0.9 * bound < network.conv_body.weight.abs().max() <= bound


def test_meta_construction_leaves_the_generator_state() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        network = RRDBNet()
    assert all(parameter.is_meta for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_gradients_reach_all_parameters(scale: int) -> None:
    network = randomized(small(scale))
    network(torch.rand(1, 3, 8, 4)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_channels_last_autocast_and_compile() -> None:
    network = randomized(small())
    x = torch.rand(2, 3, 5, 7)
    expected = network(x)
    channels_last = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        bf16 = network(x)
    assert bf16.dtype == torch.bfloat16
    assert (bf16 - expected).norm() / expected.norm() < 2e-2
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


def test_empty_batch() -> None:
    assert small()(torch.empty(0, 3, 4, 4)).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 3}, "scale must be one of 1, 2, 4, was 3"),
        ({"blocks": 0}, "blocks must be at least 1, was 0"),
        ({"features": -1}, "features must be at least 1, was -1"),
        ({"growth": 0}, "growth must be at least 1, was 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, was 0"),
    ],
)
def test_rejects_invalid_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RRDBNet(**arguments)


@pytest.mark.parametrize(
    ("scale", "x", "message"),
    [
        (4, torch.rand(1, 4, 8, 8), r"x must have shape \(N, 3, H, W\), was \(1, 4, 8, 8\)"),
        (4, torch.rand(3, 8, 8), r"x must have shape \(N, 3, H, W\), was \(3, 8, 8\)"),
        (2, torch.rand(1, 3, 8, 7), r"divisible by 2 for scale 2, was \(1, 3, 8, 7\)"),
        (1, torch.rand(1, 3, 6, 8), r"divisible by 4 for scale 1, was \(1, 3, 6, 8\)"),
    ],
)
def test_rejects_invalid_images(scale: int, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(scale)(x)


@pytest.mark.parametrize("op", ["residual_dense_block", "upsampled_convolution"])
def test_impl_is_passed_to_the_ops(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (unused,) = {"residual_dense_block", "upsampled_convolution"} - {op}
    monkeypatch.setattr(rrdbnet, unused, lambda *_, **__: torch.rand(1, 4, 4, 4))
    network = RRDBNet(features=4, blocks=1, growth=2, impl="triton")
    with pytest.raises(RuntimeError, match=rf"impl='triton' of {op} "):
        network(torch.rand(1, 3, 4, 4))
