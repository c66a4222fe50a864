"""LPIPS against the lpips package on random weights, and loading of weights."""

import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage import data

from andfast.metrics.lpips import LPIPS, MIN_SIZE, weights_file

lpips = pytest.importorskip("lpips")
FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


def package_network(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False).eval()


@pytest.fixture(scope="module")
def random_networks():
    """{net: (the package's LPIPS on random weights, its weights under torchvision's names)}."""
    torch.manual_seed(3)
    networks = {}
    for net in ("alex", "squeeze"):
        network = package_network(net)
        state = {f"features.{k.partition('.')[2]}": v.clone() for k, v in network.net.named_parameters()}
        networks[net] = network, state
    return networks


@pytest.fixture
def images():
    hr = torch.from_numpy(np.asarray(data.chelsea())[40:140, 60:190].transpose(2, 0, 1).copy())
    sr = (hr.float() + 12 * torch.randn(hr.shape)).clamp(0, 255).byte()
    return sr, hr


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Empty cache, failing downloads."""

    def fail(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_matches_the_package(net, random_networks, images, tmp_path):
    network, state = random_networks[net]
    torch.save(state | {"classifier.1.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    before = torch.get_rng_state()
    metric = LPIPS(net, weights=tmp_path / "weights.pth")
    assert torch.equal(torch.get_rng_state(), before)
    sr, hr = images
    with torch.no_grad():
        expected = network(sr[None] / 127.5 - 1, hr[None] / 127.5 - 1).item()
        cropped = network(sr[None, :, 8:-8, 8:-8] / 127.5 - 1, hr[None, :, 8:-8, 8:-8] / 127.5 - 1).item()
    assert expected > 0
    distance = metric(sr, hr)
    assert distance.shape == (1,)
    assert distance.item() == pytest.approx(expected, rel=1e-5)
    assert metric(sr, hr, crop_border=8).item() == pytest.approx(cropped, rel=1e-5)
    assert metric(sr.float() / 255, hr).item() == pytest.approx(expected, rel=1e-5)
    assert metric(hr, hr).item() == 0
    batch = metric(torch.stack((sr, hr)), torch.stack((hr, hr)))
    assert batch.tolist() == pytest.approx([expected, 0], rel=1e-5)
    assert not batch.requires_grad


def test_loads_weights_from_the_hub_cache_or_a_file(random_networks, images, no_network, tmp_path):
    _, state = random_networks["alex"]
    no_network.mkdir(parents=True)
    torch.save(state, no_network / FILES["alex"])
    save_file({name.removeprefix("features."): value for name, value in state.items()}, tmp_path / "a.safetensors")
    cached, named = LPIPS("alex"), LPIPS("alex", weights=tmp_path / "a.safetensors")
    assert cached(*images) == named(*images)
    assert (cached.weights, named.weights, cached.version) == (FILES["alex"], "a.safetensors", "0.1")


@pytest.mark.parametrize("net", FILES)
def test_offline_error_states_url_and_path(net, no_network):
    with pytest.raises(FileNotFoundError) as caught:
        LPIPS(net)
    message = str(caught.value)
    assert str(no_network / FILES[net]) in message
    assert f"https://download.pytorch.org/models/{FILES[net]}" in message
    assert "--lpips-weights" in message
    assert "no route to host" in message
    assert weights_file(net) == (f"https://download.pytorch.org/models/{FILES[net]}", no_network / FILES[net])


def test_downloads_missing_weights_with_checksum(random_networks, images, no_network, monkeypatch):
    calls = []

    def download(url, target, hash_prefix, progress):
        calls.append((url, hash_prefix))
        torch.save(random_networks["alex"][1], target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    LPIPS("alex")
    assert calls == [(f"https://download.pytorch.org/models/{FILES['alex']}", "7be5be79")]


def test_rejects_wrong_weights(random_networks, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"torchvision's AlexNet weights, .*gone\.pth does not exist"):
        LPIPS("alex", weights=tmp_path / "gone.pth")
    state = random_networks["alex"][1]
    wrong = {
        "squeeze": random_networks["squeeze"][1],
        "shape": state | {"features.0.weight": torch.zeros(64, 3, 7, 7)},
        "missing": {name: value for name, value in state.items() if name != "features.10.bias"},
        "more": state | {"features.12.weight": torch.zeros(1)},
        "list": [1, 2],
    }
    for name, content in wrong.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=rf"{name}\.pth must contain torchvision's AlexNet weights"):
            LPIPS("alex", weights=tmp_path / f"{name}.pth")
    (tmp_path / "damaged.pth").write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(ValueError, match=r"damaged\.pth cannot be read") as caught:
        LPIPS("alex", weights=tmp_path / "damaged.pth")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="net must be one of 'alex', 'vgg', 'squeeze', was 'resnet'"):
        LPIPS("resnet")


def test_missing_package_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "andfast\[metrics\]"'):
        LPIPS("alex")


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_minimum_image_size(net, random_networks, tmp_path):
    torch.save(random_networks[net][1], tmp_path / "weights.pth")
    metric = LPIPS(net, weights=tmp_path / "weights.pth")
    side = MIN_SIZE[net]
    assert metric(torch.rand(3, side, side), torch.rand(3, side, side)).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {side} pixels high and wide"):
        metric(torch.rand(3, side, side - 1), torch.rand(3, side, side - 1))
    with pytest.raises(ValueError, match=f"at least {side} pixels high and wide"):
        metric(torch.rand(3, side + 2, side + 2), torch.rand(3, side + 2, side + 2), crop_border=2)
    with pytest.raises(ValueError, match="sr must have shape that of hr"):
        metric(torch.rand(3, 64, 64), torch.rand(3, 64, 65))
