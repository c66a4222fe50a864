"""Replicate padding: no frame on flat images, alignment to multiples, tiles, and one protocol for all callers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from restorers import network_restorer, photograph
from torch import Tensor, nn

from andfast.inference.models import from_network
from andfast.inference.padding import MARGIN, Sides, restore_padded
from andfast.inference.tiles import restore_tiled
from andfast.nn import RRDBNet
from andfast.nn.weights import save_weights
from andfast.training.scoring import restore
from andfast.upscale import main


class Blur(nn.Module):
    """A zero-padded 5x5 mean followed by nearest upscaling: its receptive field is known, its frame is 40% dark."""

    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.conv = nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False)
        nn.init.constant_(self.conv.weight, 1 / 25)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (24, 17)])
def test_flat_image_stays_flat(size: tuple[int, int]) -> None:
    blur = Blur()
    x = torch.full((1, 3, *size), 0.5)
    assert (blur(x) - 0.5).abs().max() > 0.15
    sr = restore_padded(blur, x)
    assert sr.shape == (1, 3, 2 * size[0], 2 * size[1])
    assert torch.allclose(sr, torch.full_like(sr, 0.5), atol=1e-6)


def test_matches_a_replicate_padded_network() -> None:
    x = torch.rand(2, 3, 9, 13)
    blur = Blur(scale=1)
    expected = nn.functional.conv2d(nn.functional.pad(x, (2, 2, 2, 2), mode="replicate"), blur.conv.weight, groups=3)
    assert torch.allclose(restore_padded(blur, x), expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "multiple"), [(8, 8, 4), (5, 7, 4), (1, 3, 5), (16, 16, 1)])
def test_input_is_aligned_to_the_multiple(height: int, width: int, multiple: int) -> None:
    shapes: list[tuple[int, ...]] = []

    def network(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape[2:]))
        return x

    x = torch.rand(1, 3, height, width)
    assert torch.equal(restore_padded(network, x, margin=3, multiple=multiple), x)
    assert torch.equal(restore_padded(network, x, multiple=multiple, sides=Sides(False, False, False, False)), x)
    assert all(side % multiple == 0 for shape in shapes for side in shape)
    assert shapes[1] == tuple(-(-side // multiple) * multiple for side in (height, width))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_borders_of_a_network(scale: int) -> None:
    """A flat image has one color up to the border, where without padding the border differs visibly."""
    restorer = network_restorer(scale)
    x = torch.full((1, 3, 20, 24), 0.5)
    inside = restore_padded(restorer._function, x, margin=64, multiple=restorer.multiple)
    assert (restorer.restore(x) - inside).abs().max() < 0.5 / 255
    without = restore_padded(restorer._function, x, margin=0, multiple=restorer.multiple)
    assert (without - inside).abs().max() > 4 / 255


def test_tiles_have_the_borders_of_the_whole_image() -> None:
    restorer = network_restorer(4)
    x = photograph(128, 96)
    whole, tiled = restorer.restore(x), restore_tiled(restorer, x, tile=80, overlap=32)
    assert (whole - tiled).abs().max() < 1 / 255


def test_validation_restores_as_inference_does() -> None:
    torch.manual_seed(0)
    network = RRDBNet(2, features=8, blocks=1, growth=4)
    lr = torch.rand(2, 3, 9, 7)
    sr = restore(network, lr)
    restorer = from_network(network, "net", device=torch.device("cpu"))
    assert torch.allclose(torch.stack(sr), restorer.restore(lr), atol=1e-6)
    assert MARGIN % restorer.multiple == 0


def test_upscaled_flat_image_has_no_frame(tmp_path: Path) -> None:
    """Every 4x4 block of the result, at the border too, is the block that one LR pixel becomes."""
    torch.manual_seed(3)
    save_weights(tmp_path / "g.safetensors", RRDBNet(4, features=8, blocks=1, growth=4))
    Image.new("RGB", (64, 48), (128, 128, 128)).save(tmp_path / "flat.png")
    arguments = [str(tmp_path / "flat.png"), str(tmp_path / "out.png"), "--weights", str(tmp_path / "g.safetensors")]
    assert main([*arguments, "--quiet", "--device", "cpu"]) == 0
    blocks = np.asarray(Image.open(tmp_path / "out.png")).astype(int).reshape(48, 4, 64, 4, 3)
    assert np.abs(blocks - blocks[24:25, :, 32:33]).max() <= 1
