"""Discriminators: BasicSR's names and logits, operation count, spectral norm, legacy files."""

import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from andfast.nn import UNetDiscriminator, VGGDiscriminator
from andfast.nn.weights import read_weights, save_weights

# -------------------------------------------------------------------------------------------------- VGG style


def vgg_names(size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of BasicSR's VGGStyleDiscriminator with 64 features."""
    channels = [64, 128, 256, 512, 512, 512][: 5 if size == 128 else 6]
    shapes: dict[str, tuple[int, ...]] = {
        "conv0_0.bias": (64,),
        "linear1.weight": (100, 8192),
        "linear1.bias": (100,),
    }
    shapes |= {"linear2.weight": (1, 100), "linear2.bias": (1,)}
    for i, cout in enumerate(channels):
        shapes[f"conv{i}_0.weight"] = (cout, channels[i - 1] if i else 3, 3, 3)
        shapes[f"conv{i}_1.weight"] = (cout, cout, 4, 4)
        for norm in (f"bn{i}_0", f"bn{i}_1")[0 if i else 1 :]:
            shapes |= {f"{norm}.{part}": (cout,) for part in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{norm}.num_batches_tracked"] = ()
    return shapes


@pytest.mark.parametrize("size", [128, 256])
def test_vgg_names_and_shapes_match_basicsr(size: int) -> None:
    with torch.device("meta"):
        state = VGGDiscriminator(size).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == vgg_names(size)


def test_vgg_operation_count() -> None:
    """9.12 GMAC forward for a 256x256 image with BasicSR's six stages (five: 8.91)."""
    with torch.device("meta"):
        network = VGGDiscriminator(256)
        image = torch.empty(1, 3, 256, 256)
    with FlopCounterMode(display=False) as counter:
        assert network(image).shape == (1, 1)
    assert counter.get_total_flops() == 2 * 9_123_430_500


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("training", [False, True])
def test_vgg_matches_sequential_layers(size: int, training: bool) -> None:
    torch.manual_seed(0)
    network = VGGDiscriminator(size, features=4)
    layers: list[nn.Module] = []
    for i in range(5 if size == 128 else 6):
        layers += [getattr(network, f"conv{i}_0")]
        layers += [getattr(network, f"bn{i}_0")] if i else []
        layers += [
            nn.LeakyReLU(0.2),
            getattr(network, f"conv{i}_1"),
            getattr(network, f"bn{i}_1"),
            nn.LeakyReLU(0.2),
        ]
    sequential = nn.Sequential(*layers, nn.Flatten(), network.linear1, nn.LeakyReLU(0.2), network.linear2)
    sequential = copy.deepcopy(sequential).train(training)
    network.train(training)
    x = torch.rand(2, 3, size, size)
    torch.testing.assert_close(network(x), sequential(x))
    channels_last = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(channels_last, sequential(x), rtol=1e-4, atol=1e-5)


def test_vgg_gradients_reach_all_parameters() -> None:
    torch.manual_seed(0)
    network = VGGDiscriminator(128, features=4)
    x = torch.rand(2, 3, 128, 128, requires_grad=True)
    network(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 256, 256), (1, 3, 128, 256), (1, 1, 128, 128), (3, 128, 128)])
def test_vgg_rejects_invalid_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(N, 3, 128, 128\) for a discriminator of size 128, was "):
        VGGDiscriminator(128, features=2)(torch.rand(shape))


def test_rejects_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="size must be one of 128, 256, was 64"):
        VGGDiscriminator(64)
    for kind in (VGGDiscriminator, UNetDiscriminator):
        with pytest.raises(ValueError, match="features must be at least 1, was 0"):
            kind(features=0)
        with pytest.raises(ValueError, match="in_channels must be at least 1, was 0"):
            kind(in_channels=0)


# ------------------------------------------------------------------------------------------------------ U-Net


class ReferenceUNet(nn.Module):
    """U-Net discriminator with torch's deprecated spectral_norm, which wrote the published netD files."""

    def __init__(self, features: int, skip: bool) -> None:
        super().__init__()
        f = features
        self.skip = skip
        self.conv0 = nn.Conv2d(3, f, 3, 1, 1)
        down = [(f, 2 * f), (2 * f, 4 * f), (4 * f, 8 * f)]
        same = [(8 * f, 4 * f), (4 * f, 2 * f), (2 * f, f), (f, f), (f, f)]
        for i, (cin, cout) in enumerate(down, 1):
            setattr(self, f"conv{i}", nn.utils.spectral_norm(nn.Conv2d(cin, cout, 4, 2, 1, bias=False)))
        for i, (cin, cout) in enumerate(same, 4):
            setattr(self, f"conv{i}", nn.utils.spectral_norm(nn.Conv2d(cin, cout, 3, 1, 1, bias=False)))
        self.conv9 = nn.Conv2d(f, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        encoder = []
        for i in range(4):
            x = F.leaky_relu(getattr(self, f"conv{i}")(x), 0.2)
            encoder.append(x)
        for i, features in zip((4, 5, 6), reversed(encoder[:3]), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.leaky_relu(getattr(self, f"conv{i}")(x), 0.2)
            x = x + features if self.skip else x
        for i in (7, 8):
            x = F.leaky_relu(getattr(self, f"conv{i}")(x), 0.2)
        return self.conv9(x)


def reference_unet(skip: bool = True) -> ReferenceUNet:
    """A reference network after a few power iterations, as in a trained file."""
    torch.manual_seed(0)
    network = ReferenceUNet(8, skip)
    for _ in range(5):
        network(torch.rand(1, 3, 16, 16))
    return network


def test_unet_names_and_shapes_match_basicsr() -> None:
    torch.manual_seed(0)
    expected = {name: tuple(value.shape) for name, value in ReferenceUNet(8, True).state_dict().items()}
    state = UNetDiscriminator(features=8).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    with torch.device("meta"):
        real = UNetDiscriminator().state_dict()
    assert tuple(real["conv3.weight_orig"].shape) == (512, 256, 4, 4)
    assert tuple(real["conv3.weight_u"].shape) == (512,)
    assert tuple(real["conv3.weight_v"].shape) == (4096,)


@pytest.mark.parametrize("skip", [False, True])
def test_unet_loads_legacy_files(skip: bool, tmp_path: Path) -> None:
    reference = reference_unet(skip).eval()
    file = tmp_path / "netD.pth"
    torch.save({"params": OrderedDict(reference.state_dict())}, file)
    network = UNetDiscriminator(features=8, skip_connection=skip)
    network.load_state_dict(read_weights(file))
    network.eval()
    x = torch.rand(2, 3, 16, 24)
    assert network(x).shape == (2, 1, 16, 24)
    torch.testing.assert_close(network(x), reference(x), rtol=1e-5, atol=1e-6)
    # In training mode both normalize by an estimate that is one power iteration further.
    torch.testing.assert_close(network.train()(x), reference.train()(x), rtol=0.05, atol=0.05)


def test_unet_state_dict_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, restored = UNetDiscriminator(features=4), UNetDiscriminator(features=4)
    network(torch.rand(1, 3, 8, 8))  # updates u and v
    save_weights(tmp_path / "d.safetensors", network)
    state = read_weights(tmp_path / "d.safetensors")
    ReferenceUNet(4, True).load_state_dict(state)
    names = list(state)
    restored.load_state_dict(state)
    assert list(state) == names  # the caller's dict is unchanged
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(network.eval()(x), restored.eval()(x))
    assert torch.equal(copy.deepcopy(network)(x), network(x))
    parametrized = {name: value.detach().clone() for name, value in network.named_parameters()}
    parametrized |= {name: value.clone() for name, value in network.named_buffers()}
    restored.load_state_dict(parametrized)  # under the parametrizations' names
    wrapped = nn.ModuleDict({"d": network})
    assert "d.conv1.weight_orig" in wrapped.state_dict()
    nn.ModuleDict({"d": restored}).load_state_dict(wrapped.state_dict())


def test_unet_reports_missing_and_unexpected_names() -> None:
    network = UNetDiscriminator(features=4)
    state = network.state_dict()
    del state["conv9.bias"]
    state["conv10.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*conv9.bias.*Unexpected.*conv10.weight"):
        network.load_state_dict(state)


def test_unet_kernels_have_unit_spectral_norm() -> None:
    torch.manual_seed(0)
    network = UNetDiscriminator(features=8)
    for _ in range(30):
        network(torch.rand(1, 3, 8, 8))
    network.eval()
    for i in range(1, 9):
        kernel = getattr(network, f"conv{i}").weight
        assert torch.linalg.matrix_norm(kernel.flatten(1), 2).item() == pytest.approx(1, abs=0.05)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(torch.rand(1, 3, 8, 8))
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


def test_unet_gradients_reach_all_parameters() -> None:
    torch.manual_seed(0)
    network = UNetDiscriminator(features=4)
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    network(x).square().sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (1, 1, 16, 16), (3, 16, 16)])
def test_unet_rejects_invalid_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x must have .*, was \("):
        UNetDiscriminator(features=2)(torch.rand(shape))


@pytest.mark.parametrize(("kind", "size"), [(VGGDiscriminator, 128), (UNetDiscriminator, 16)])
def test_compile_and_bf16(kind: type[nn.Module], size: int) -> None:
    torch.manual_seed(0)
    network = kind(128, features=2) if kind is VGGDiscriminator else kind(features=2)
    network.eval()
    x = torch.rand(2, 3, size, size)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), network(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16
