"""The weights under examples/: their size, other tools, and what they are worth on a photograph that is new to them."""

from pathlib import Path

import pytest
import torch
from skimage import data
from spandrel import ModelLoader

from andfast.config.files import build, read_settings
from andfast.inference.models import load_restorer
from andfast.metrics import psnr_y
from andfast.nn.weights import generator_from_weights
from benchmarks.ablation.damage import damaged

EXAMPLES = Path(__file__).parents[2] / "examples"
WEIGHTS = EXAMPLES / "andnet_x4_small.safetensors"


def gain(damage: str) -> float:
    """PSNR-Y over bicubic's, in dB, on a photograph of scikit-image's with a condition of the ablation."""
    hr = torch.from_numpy(data.coffee()[72:328, 172:428].copy()).permute(2, 0, 1)[None]
    lr = damaged(damage, hr, 4).float() / 255
    sr, bicubic = (load_restorer(source, scale=4).restore(lr) for source in (WEIGHTS, "bicubic"))
    return float(psnr_y(sr.clamp(0, 1), hr, crop_border=4) - psnr_y(bicubic.clamp(0, 1), hr, crop_border=4))


def test_other_tools_load_them() -> None:
    assert WEIGHTS.stat().st_size < 4e6
    lr = torch.rand(1, 3, 16, 24)
    theirs = ModelLoader(device="cpu").load_from_file(WEIGHTS).model
    with torch.no_grad():
        torch.testing.assert_close(generator_from_weights(WEIGHTS)(lr), theirs(lr), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("damage", "least"), [("clean", 1.2), ("noise 10", 0.8), ("blur 0.7", 0.6), ("jpeg 75", 0.6)])
def test_beats_bicubic(damage: str, least: float) -> None:
    assert gain(damage) > least


@pytest.mark.parametrize("name", ["andnet_x4_small_start", "andnet_x4_small", "andnet_x4_small_fast"])
def test_configurations_train_such_a_network(name: str) -> None:
    config = build({"output": "runs/x"} | read_settings(EXAMPLES / f"{name}.yaml"))
    config.validate()
    network = generator_from_weights(WEIGHTS)
    sizes = (config.generator.features, config.generator.blocks, config.generator.growth)
    assert sizes == (network.features, network.blocks, network.growth)
