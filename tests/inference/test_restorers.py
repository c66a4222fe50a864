"""Restorers: own weights, bicubic, spandrel architectures, unusable weights, argument checks."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data

from andfast.inference.models import find_device, load_restorer
from andfast.inference.padding import restore_padded
from andfast.nn import RRDBNet
from andfast.nn.weights import save_weights
from andfast.training.scoring import bicubic


def weights(path: Path, scale: int = 4, **sizes: int) -> Path:
    torch.manual_seed(scale)
    save_weights(path, RRDBNet(scale, **{"features": 8, "blocks": 2, "growth": 4, **sizes}))
    return path


def compact(**changes: int) -> dict[str, torch.Tensor]:
    """The state dict of Real-ESRGAN's compact network (SRVGGNetCompact), x2, 16 features, 2 convolutions."""
    from spandrel.architectures.Compact import Compact  # noqa: PLC0415

    return Compact(**{"num_feat": 16, "num_conv": 2, "upscale": 2, **changes}).state_dict()


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (8, 12)])
def test_own_weights_restore_any_size(scale: int, height: int, width: int, tmp_path: Path) -> None:
    file = weights(tmp_path / "G.safetensors", scale)
    restorer = load_restorer(file)
    assert (restorer.name, restorer.scale, restorer.architecture) == ("G", scale, "RRDBNet")
    assert restorer.device == torch.device("cpu")
    x = torch.rand(2, 3, height, width, requires_grad=True)
    out = restorer.restore(x)
    assert out.shape == (2, 3, height * scale, width * scale)
    assert out.dtype == torch.float32
    assert not out.requires_grad


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_near(precision: str, tmp_path: Path) -> None:
    file = weights(tmp_path / "G.safetensors")
    x = torch.rand(1, 3, 12, 12)
    exact = load_restorer(file).restore(x)
    near = load_restorer(file, precision=precision).restore(x)
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    assert (near - exact).norm() < 1e-2 * exact.norm()
    # Not rounded to the precision: the last layer computes in fp32.
    assert not torch.equal(near, near.to({"bf16": torch.bfloat16, "fp16": torch.float16}[precision]).float())


def test_bicubic_matches_pillow_and_validation() -> None:
    picture = data.astronaut()[100:160, 90:170]
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    restorer = load_restorer("bicubic", scale=4)
    assert restorer.name == "bicubic"
    out = restorer.restore(x)
    assert torch.equal(out.clamp(0, 1), bicubic(x, 4))
    pillow = np.asarray(Image.fromarray(picture).resize((320, 240), Image.Resampling.BICUBIC))
    rounded = (out.clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(rounded - pillow).max() <= 1


def test_grey_network_restores_each_channel(tmp_path: Path) -> None:
    file = weights(tmp_path / "grey.safetensors", in_channels=1, out_channels=1)
    x = torch.rand(2, 3, 6, 7)
    together = load_restorer(file).restore(x)
    for channel in range(3):
        alone = load_restorer(file).restore(x[:, channel : channel + 1].expand(-1, 3, -1, -1))
        assert torch.allclose(together[:, channel], alone[:, 0], atol=1e-6)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("entry", [None, "params_ema", "model"])
def test_spandrel_architectures(suffix: str, entry: str | None, tmp_path: Path) -> None:
    spandrel = pytest.importorskip("spandrel")
    state = compact()
    file = tmp_path / f"compact{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({entry: state, "epoch": 3} if entry else state, file)
    restorer = load_restorer(file, scale=2)
    assert (restorer.scale, restorer.architecture) == (2, "RealESRGAN Compact")
    x = torch.rand(2, 3, 9, 11)
    model = spandrel.ModelLoader().load_from_state_dict(state).eval()
    expected = torch.cat([restore_padded(model, image[None]) for image in x])
    assert torch.allclose(restorer.restore(x), expected, atol=1e-6)


def test_missing_spandrel_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(compact(), tmp_path / "compact.pth")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ValueError, match=r"compact\.pth: not the weights of an RRDBNet: .*andfast\[models\]"):
        load_restorer(tmp_path / "compact.pth")


def test_spandrel_never_reads_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spandrel = pytest.importorskip("spandrel")

    def refuse(*_: object) -> None:
        raise AssertionError("spandrel must not open files")

    for name in ("load_from_file", "load_state_dict_from_file", "_load_pth", "_load_torchscript"):
        monkeypatch.setattr(spandrel.ModelLoader, name, refuse)
    torch.save(compact(), tmp_path / "compact.pt")
    assert load_restorer(tmp_path / "compact.pt").scale == 2


def test_rejects_unusable_weights(tmp_path: Path) -> None:
    state = RRDBNet(4, features=8, blocks=1, growth=4).state_dict()
    cases: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "nan": (
            {**state, "conv_hr.bias": torch.full((8,), torch.nan)},
            "conv_hr.bias must be finite",
        ),
        "integers": ({**state, "conv_hr.bias": torch.zeros(8, dtype=torch.int32)}, "must be floating-point"),
        "shape": ({**state, "conv_hr.bias": torch.zeros(9)}, r"must have shape \(8,\)"),
        "other": ({"layer.weight": torch.zeros(3)}, "an architecture unknown to spandrel, with layer.weight"),
        "none": ({**state, "conv_first.weight": torch.zeros(0, 3, 3, 3)}, "4 non-empty dimensions"),
        "five": (
            RRDBNet(4, features=8, blocks=1, growth=4, in_channels=5, out_channels=5).state_dict(),
            "3 channels to 3, or 1 to 1, this one maps 5 to 5",
        ),
    }
    for name, (changed, message) in cases.items():
        file = tmp_path / f"{name}.safetensors"
        save_file(changed, file)
        with pytest.raises(ValueError, match=message) as raised:
            load_restorer(file)
        assert str(raised.value).startswith(str(file))
        assert "\n" not in str(raised.value)


def test_rejects_contents_larger_than_the_file(tmp_path: Path) -> None:
    """An expanded tensor: one stored number that claims four gigabytes."""
    torch.save({"conv_first.weight": torch.zeros(1).expand(1 << 20, 1 << 10)}, tmp_path / "stride.pth")
    with pytest.raises(ValueError, match=r"stride\.pth: contents must have at most .* bytes, .* was 4,294,967,296"):
        load_restorer(tmp_path / "stride.pth")


def test_rejects_invalid_arguments(tmp_path: Path) -> None:
    file = weights(tmp_path / "G.safetensors")
    with pytest.raises(ValueError, match=r"G\.safetensors: weights must be for scale 2, are for scale 4"):
        load_restorer(file, scale=2)
    with pytest.raises(ValueError, match="scale must be given for bicubic"):
        load_restorer("bicubic")
    with pytest.raises(ValueError, match="scale must be at least 1, was 0"):
        load_restorer("bicubic", scale=0)
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16, was 'int8'"):
        load_restorer(file, precision="int8")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth: no such file of weights"):
        load_restorer(tmp_path / "absent.pth")
    for device in ("gpu", "cuda:99", "meta"):
        with pytest.raises(ValueError, match=f"device must be .*was '{device}'"):
            load_restorer(file, device=device)
    assert find_device("auto").type in {"cuda", "mps", "cpu"}
    restorer = load_restorer(file)
    with pytest.raises(TypeError, match=r"lr must be a floating-point tensor, was torch\.uint8"):
        restorer.restore(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"lr must have shape .*was \(1, 4, 4, 4\)"):
        restorer.restore(torch.zeros(1, 4, 4, 4))
