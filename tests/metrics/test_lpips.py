"""LPIPS against the lpips package on weights that the tests make, and what is said where weights are missing."""

import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage import data

from andfast.metrics.lpips import LPIPS, SMALLEST, weights_file

lpips = pytest.importorskip("lpips")
FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


def packages_network(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False).eval()


@pytest.fixture(scope="module")
def made():
    """{net: (the package's LPIPS on random weights, those weights as torchvision names them)}."""
    torch.manual_seed(3)
    found = {}
    for net in ("alex", "squeeze"):
        network = packages_network(net)
        state = {f"features.{k.partition('.')[2]}": v.clone() for k, v in network.net.named_parameters()}
        found[net] = network, state
    return found


@pytest.fixture
def images():
    hr = torch.from_numpy(np.asarray(data.chelsea())[40:140, 60:190].transpose(2, 0, 1).copy())
    sr = (hr.float() + 12 * torch.randn(hr.shape)).clamp(0, 255).byte()
    return sr, hr


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache, and nothing to download from."""

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_values_are_the_packages(net, made, images, tmp_path):
    network, state = made[net]
    torch.save(state | {"classifier.1.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    before = torch.get_rng_state()
    metric = LPIPS(net, weights=tmp_path / "weights.pth")
    assert torch.equal(torch.get_rng_state(), before)
    sr, hr = images
    with torch.no_grad():
        expected = network(sr[None] / 127.5 - 1, hr[None] / 127.5 - 1).item()
        cut = network(sr[None, :, 8:-8, 8:-8] / 127.5 - 1, hr[None, :, 8:-8, 8:-8] / 127.5 - 1).item()
    assert expected > 0
    found = metric(sr, hr)
    assert found.shape == (1,)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert metric(sr, hr, crop_border=8).item() == pytest.approx(cut, rel=1e-5)
    assert metric(sr.float() / 255, hr).item() == pytest.approx(expected, rel=1e-5)
    assert metric(hr, hr).item() == 0
    batch = metric(torch.stack((sr, hr)), torch.stack((hr, hr)))
    assert batch.tolist() == pytest.approx([expected, 0], rel=1e-5)
    assert not batch.requires_grad


def test_weights_come_from_torchvisions_cache_or_a_safetensors_file(made, images, no_network, tmp_path):
    _, state = made["alex"]
    no_network.mkdir(parents=True)
    torch.save(state, no_network / FILES["alex"])
    save_file({name.removeprefix("features."): value for name, value in state.items()}, tmp_path / "a.safetensors")
    cached, named = LPIPS("alex"), LPIPS("alex", weights=tmp_path / "a.safetensors")
    assert cached(*images) == named(*images)
    assert (cached.weights, named.weights, cached.version) == (FILES["alex"], "a.safetensors", "0.1")


@pytest.mark.parametrize("net", FILES)
def test_offline_the_error_says_which_file_to_put_where(net, no_network):
    with pytest.raises(FileNotFoundError) as caught:
        LPIPS(net)
    message = str(caught.value)
    assert str(no_network / FILES[net]) in message
    assert f"https://download.pytorch.org/models/{FILES[net]}" in message
    assert "--lpips-weights" in message
    assert "no route to host" in message
    assert weights_file(net) == (f"https://download.pytorch.org/models/{FILES[net]}", no_network / FILES[net])


def test_missing_weights_are_downloaded_with_their_hash(made, images, no_network, monkeypatch):
    calls = []

    def download(url, target, hash_prefix, progress):
        calls.append((url, hash_prefix))
        torch.save(made["alex"][1], target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    LPIPS("alex")
    assert calls == [(f"https://download.pytorch.org/models/{FILES['alex']}", "7be5be79")]


def test_wrong_weights_are_refused_by_name(made, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"torchvision's AlexNet, there is none at .*gone\.pth"):
        LPIPS("alex", weights=tmp_path / "gone.pth")
    state = made["alex"][1]
    wrong = {
        "squeeze": made["squeeze"][1],
        "shape": state | {"features.0.weight": torch.zeros(64, 3, 7, 7)},
        "missing": {name: value for name, value in state.items() if name != "features.10.bias"},
        "more": state | {"features.12.weight": torch.zeros(1)},
        "list": [1, 2],
    }
    for name, content in wrong.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=rf"{name}\.pth must hold the weights of torchvision's AlexNet"):
            LPIPS("alex", weights=tmp_path / f"{name}.pth")
    (tmp_path / "damaged.pth").write_bytes(b"\x80\x02cos\nsystem\n")
    with pytest.raises(ValueError, match=r"damaged\.pth cannot be read") as caught:
        LPIPS("alex", weights=tmp_path / "damaged.pth")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="net must be one of 'alex', 'vgg', 'squeeze', was 'resnet'"):
        LPIPS("resnet")


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "andfast\[metrics\]"'):
        LPIPS("alex")


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_the_smallest_image(net, made, tmp_path):
    torch.save(made[net][1], tmp_path / "weights.pth")
    metric = LPIPS(net, weights=tmp_path / "weights.pth")
    side = SMALLEST[net]
    assert metric(torch.rand(3, side, side), torch.rand(3, side, side)).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {side} pixels high and wide"):
        metric(torch.rand(3, side, side - 1), torch.rand(3, side, side - 1))
    with pytest.raises(ValueError, match=f"at least {side} pixels high and wide"):
        metric(torch.rand(3, side + 2, side + 2), torch.rand(3, side + 2, side + 2), crop_border=2)
    with pytest.raises(ValueError, match="sr must have shape that of hr"):
        metric(torch.rand(3, 64, 64), torch.rand(3, 64, 65))
