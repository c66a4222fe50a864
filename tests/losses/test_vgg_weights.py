"""Loading of VGG19 weights for the perceptual loss."""

import urllib.error

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from andfast.losses import ESRGAN_LAYERS, REAL_ESRGAN_LAYERS, PerceptualLoss

SHALLOW = {"conv1_2": 0.5, "conv2_1": 2.0}


@pytest.fixture(scope="module")
def vgg19_state():
    """A state dict with torchvision's VGG19 keys and shapes and small distinct values, 80 MB."""
    from torchvision.models.vgg import cfgs, make_layers  # noqa: PLC0415

    with torch.device("meta"):
        features = make_layers(cfgs["E"])
    generator = torch.Generator().manual_seed(0)
    return {
        f"features.{key}": torch.randn(value.shape, generator=generator) * 0.05
        for key, value in features.state_dict().items()
    }


def test_features_match_torchvision_before_activation(vgg19_state, tmp_path):
    """The reference runs torchvision's module list layer by layer, out of place."""
    from torchvision.models.vgg import cfgs, make_layers  # noqa: PLC0415

    file = tmp_path / "vgg.pth"
    torch.save(vgg19_state, file)
    loss = PerceptualLoss(REAL_ESRGAN_LAYERS, weights=file)
    x = torch.rand(1, 3, 32, 48)
    features = loss.features(x)

    reference = make_layers(cfgs["E"])
    reference.load_state_dict({key.removeprefix("features."): value for key, value in vgg19_state.items()})
    at = {2: "conv1_2", 7: "conv2_2", 16: "conv3_4", 25: "conv4_4", 34: "conv5_4"}
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    y = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        for position, layer in enumerate(reference):
            y = F.relu(y) if isinstance(layer, nn.ReLU) else layer(y)
            if position in at:
                torch.testing.assert_close(features.pop(at[position]), y, rtol=1e-4, atol=1e-5)
    assert not features
    assert loss.weights_note == str(file)


def test_loads_full_and_features_only_files_and_safetensors(vgg19_state, tmp_path):
    from safetensors.torch import save_file  # noqa: PLC0415

    classifier = {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    # The published file uses torch's legacy, non-zip format.
    torch.save(vgg19_state | classifier, tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    torch.save({k.removeprefix("features."): v for k, v in vgg19_state.items()}, tmp_path / "features.pth")
    save_file(vgg19_state, tmp_path / "vgg.safetensors")
    for name in ("whole.pth", "features.pth", "vgg.safetensors"):
        loss = PerceptualLoss({"conv2_1": 1.0}, weights=str(tmp_path / name))
        assert torch.equal(loss.vgg.conv2_1.weight, vgg19_state["features.5.weight"])
        assert torch.equal(loss.vgg.conv1_2.bias, vgg19_state["features.2.bias"])


def test_loads_torchvision_weights_from_the_hub_cache(vgg19_state, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    file.parent.mkdir(parents=True)
    torch.save(vgg19_state, file)
    loss = PerceptualLoss(SHALLOW, weights="torchvision")
    assert torch.equal(loss.vgg.conv1_1.weight, vgg19_state["features.0.weight"])
    assert loss.weights_note == "torchvision VGG19_Weights.IMAGENET1K_V1"


def test_downloads_missing_weights_with_checksum(vgg19_state, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def download(url, target, hash_prefix, progress):
        assert url.startswith("https://download.pytorch.org/")
        assert hash_prefix == "dcbb9e9d"
        assert progress  # half a gigabyte
        torch.save(vgg19_state, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert PerceptualLoss(SHALLOW).weights_note.startswith("torchvision")


def test_offline_error_states_url_and_path(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*_arguments, **_options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", fail)
    with pytest.raises(FileNotFoundError) as caught:
        PerceptualLoss(ESRGAN_LAYERS)
    message = str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth") in message
    assert "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth" in message
    assert "no route to host" in message
    assert "loss.vgg_weights" in message
    assert "random" in message


def test_rejects_wrong_files(vgg19_state, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth does not exist"):
        PerceptualLoss(SHALLOW, weights=tmp_path / "nowhere.pth")
    for bad in ("", None, 3):
        with pytest.raises(TypeError, match="weights must be"):
            PerceptualLoss(SHALLOW, weights=bad)

    text = tmp_path / "text.pth"
    text.write_text("not weights")
    with pytest.raises(ValueError, match=r"text\.pth cannot be read as a file of weights"):
        PerceptualLoss(SHALLOW, weights=text)

    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.rand(1000)}, whole)
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"truncated\.pth cannot be read"):
        PerceptualLoss(SHALLOW, weights=truncated)

    for name, state in {
        "list": [1, 2],
        "other": {"conv_first.weight": torch.zeros(1)},
        "missing": {k: v for k, v in vgg19_state.items() if not k.startswith("features.34")},
    }.items():
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=rf"{name}\.pth must contain torchvision's VGG19 weights"):
            PerceptualLoss(SHALLOW, weights=tmp_path / f"{name}.pth")


@pytest.mark.parametrize("config", ["D", "E_bn"])
def test_rejects_other_vgg_variants(config, tmp_path):
    from torchvision.models.vgg import cfgs, make_layers  # noqa: PLC0415

    with torch.device("meta"):
        features = make_layers(cfgs[config[0]], batch_norm=config.endswith("bn"))
    file = tmp_path / "other.pth"
    torch.save({f"features.{k}": torch.zeros(()).expand(v.shape) for k, v in features.state_dict().items()}, file)
    with pytest.raises(ValueError, match="without batch normalization"):
        PerceptualLoss(SHALLOW, weights=file)


def test_does_not_unpickle(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the file was unpickled",))

    file = tmp_path / "bomb.pth"
    torch.save({"features.0.weight": Bomb()}, file)
    with pytest.raises(ValueError, match="cannot be read"):
        PerceptualLoss(SHALLOW, weights=file)
