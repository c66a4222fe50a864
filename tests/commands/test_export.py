"""The export command: each format reproduces the network at other sizes than traced; failures leave no file."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from andfast import export as command
from andfast.inference import export as module
from andfast.inference.export import ExportError, check_image, export
from andfast.nn import RRDBNet
from andfast.nn.plain import plain_copy
from andfast.nn.weights import generator_from_weights, read_metadata, read_weights, save_weights

IMAGE = check_image(None)[0]
HAS_ONNX = all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason='needs pip install "andfast[export]"')


def network(scale: int = 4, *, growth: int = 4, features: int = 8) -> RRDBNet:
    torch.manual_seed(scale)
    generator = RRDBNet(scale, features=features, blocks=1, growth=growth).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(2)  # dense blocks contribute too little at initialization for their errors to show
    return generator


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_plain_copy(scale: int) -> None:
    generator = network(scale)
    copy = plain_copy(generator)
    assert list(copy.state_dict()) == list(generator.state_dict())
    assert all(a is not b for a, b in zip(copy.parameters(), generator.parameters(), strict=True))
    x = torch.rand(2, 3, 12, 8)
    torch.testing.assert_close(copy(x), generator(x))
    graph = torch.export.export(copy, (x,)).graph
    assert not [node for node in graph.nodes if "andfast" in str(node.target)]


@pytest.mark.parametrize("growth", [4, 32])
def test_basicsr(tmp_path: Path, growth: int) -> None:
    generator = network(growth=growth)
    checked = export(generator, tmp_path / "g.pth", "basicsr", IMAGE)
    assert [line.partition(":")[0] for line in checked] == ["andfast", "spandrel"][: 1 + (growth == 32)]
    assert files(tmp_path) == ["g.pth"]
    contents = torch.load(tmp_path / "g.pth", weights_only=True)
    assert list(contents) == ["params_ema"]
    assert contents["params_ema"].keys() == generator.state_dict().keys()
    for name, value in generator.state_dict().items():
        assert torch.equal(contents["params_ema"][name], value)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_spandrel_reads_basicsr(tmp_path: Path, scale: int) -> None:
    spandrel = pytest.importorskip("spandrel")
    generator = network(scale, growth=32)
    export(generator, tmp_path / "g.pth", "basicsr", IMAGE)
    model = spandrel.ModelLoader(device="cpu").load_from_file(tmp_path / "g.pth")
    assert model.scale == scale
    lr = torch.rand(1, 3, 16, 20)
    torch.testing.assert_close(model(lr), generator(lr).clamp(0, 1), atol=1e-5, rtol=0)


def test_safetensors_keep_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / "a.safetensors", network(), {"stage": "net", "step": "7"})
    arguments = ["--weights", str(tmp_path / "a.safetensors"), "--format", "safetensors"]
    assert command.main([*arguments, "--output", str(tmp_path / "b.safetensors")]) == 0
    assert read_metadata(tmp_path / "b.safetensors")["step"] == "7"
    text = capsys.readouterr().out
    assert "b.safetensors, compared on " in text
    assert "andfast: differs by at most 0.0e+00 from the model" in text


def test_interpolation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = network(), network()
    with torch.no_grad():
        second.conv_last.weight.mul_(3)
    save_weights(tmp_path / "a.safetensors", first, {"stage": "net"})
    save_weights(tmp_path / "b.safetensors", second)
    arguments = ["--weights", str(tmp_path / "a.safetensors"), "--format", "safetensors", "--quiet", "--overwrite"]
    arguments += ["--output", str(tmp_path / "c.safetensors")]
    mix = ["--interpolate", str(tmp_path / "b.safetensors"), "--share"]
    for share in (0.0, 0.25, 1.0):
        assert command.main([*arguments, *mix, str(share)]) == 0
        mixed = read_weights(tmp_path / "c.safetensors")
        for name, weight in first.state_dict().items():
            expected_weight = weight + share * (second.state_dict()[name] - weight)
            torch.testing.assert_close(mixed[name], expected_weight, rtol=1e-6, atol=1e-7)
    metadata = read_metadata(tmp_path / "c.safetensors")
    assert metadata["stage"] == "net"
    assert metadata["interpolated_with"] == "b.safetensors"
    assert metadata["share"] == "1.0"
    save_weights(tmp_path / "b.safetensors", network(growth=8))
    for share, message in (("1.5", "share must be from 0 to 1, was 1.5"), ("0.5", "body.0.rdb1.conv1.bias has shapes")):
        assert command.main([*arguments, *mix, share]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*arguments, "--share", "0.5"])
    assert "--interpolate and --share require each other" in capsys.readouterr().err


def expected(generator: RRDBNet, lr: torch.Tensor) -> torch.Tensor:
    """The generator on an image padded at the bottom and right to what its pixel-unshuffle divides."""
    bottom, right = (-side % generator.unshuffle for side in lr.shape[2:])
    height, width = (side * generator.scale for side in lr.shape[2:])
    padded = torch.nn.functional.pad(lr, (0, right, 0, bottom), mode="replicate")
    return generator(padded)[:, :, :height, :width].detach()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 4])
def test_torch_export(tmp_path: Path, scale: int) -> None:
    generator = network(scale)
    (checked,) = export(generator, tmp_path / "g.pt2", "torch-export", IMAGE)
    assert checked.startswith("torch.export of torch ")
    assert files(tmp_path) == ["g.pt2"]
    run = torch.export.load(tmp_path / "g.pt2").module()
    for shape in ((1, 3, 5, 7), (5, 3, 18, 51), (2, 3, 8, 12)):
        lr = torch.rand(shape)
        torch.testing.assert_close(run(lr), expected(generator, lr))


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("scale", [2, 4])
def test_onnx(tmp_path: Path, scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx  # noqa: PLC0415

    generator = network(scale)
    (checked,) = export(generator, tmp_path / "g.onnx", "onnx", IMAGE, metadata={"stage": "net"})
    assert checked.startswith("onnx")
    assert files(tmp_path) == ["g.onnx"]
    model = onnx.load(tmp_path / "g.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", module.OPSET)]
    assert {entry.key: entry.value for entry in model.metadata_props}["stage"] == "net"
    (lr_info,), (sr_info,) = model.graph.input, model.graph.output
    assert (lr_info.name, sr_info.name) == ("lr", "sr")
    dims = lr_info.type.tensor_type.shape.dim
    assert dims[1].dim_value == 3
    assert all(dim.dim_param for dim in (dims[0], dims[2], dims[3]))
    assert {node.domain for node in model.graph.node} == {""}

    (reader,) = module._read_onnx(tmp_path / "g.onnx")
    for shape in ((1, 3, 3, 2), (3, 3, 18, 51), (2, 3, 8, 12)):
        lr = torch.rand(shape)
        torch.testing.assert_close(reader.run(lr), expected(generator, lr), atol=1e-5, rtol=1e-5)

    # Without onnxruntime, onnx's reference evaluator is used.
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    (reader,) = module._read_onnx(tmp_path / "g.onnx")
    assert reader.sizes == module._SLOW_SIZES
    assert reader.name.endswith("reference evaluator")
    lr = torch.rand(3, 3, 6, 5)
    torch.testing.assert_close(reader.run(lr), expected(generator, lr), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------ failures


def test_rejects_file_that_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g.pth").write_bytes(b"an earlier file")
    generator = network()

    def write(_generator: RRDBNet, path: Path, _metadata: Any) -> None:
        state = generator.state_dict()
        torch.save({"params_ema": {**state, "conv_last.bias": state["conv_last.bias"] + 0.001}}, path)

    monkeypatch.setitem(module._WRITERS, "basicsr", write)
    with pytest.raises(ExportError, match=r"andfast must differ by at most 0\.0001 from the model, was 0\.\d+"):
        export(generator, tmp_path / "g.pth", "basicsr", IMAGE)
    assert files(tmp_path) == ["g.pth"]
    assert (tmp_path / "g.pth").read_bytes() == b"an earlier file"


def test_rejects_nan(tmp_path: Path) -> None:
    generator = network()
    with torch.no_grad():
        generator.conv_last.bias[0] = torch.nan
    with pytest.raises(ExportError, match="was nan"):
        export(generator, tmp_path / "g.pth", "basicsr", IMAGE)
    assert files(tmp_path) == []


def test_rejects_wrong_output_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        module._READERS, "basicsr", lambda path: [module.Reader("reader", lambda lr: lr, [(1, 48, 64)])]
    )
    with pytest.raises(ExportError, match=r"must have shape \(1, 3, 192, 256\), was \(1, 3, 48, 64\)"):
        export(network(), tmp_path / "g.pth", "basicsr", IMAGE)


def test_missing_onnx_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "g.safetensors", network())
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    arguments = ["--weights", str(tmp_path / "g.safetensors"), "--format", "onnx", "--quiet"]
    assert command.main([*arguments, "--output", str(tmp_path / "g.onnx")]) == 1
    error = 'error: format onnx needs the package onnx: pip install "andfast[export]"\n'
    assert capsys.readouterr().err == error
    assert files(tmp_path) == ["g.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{folder}/g.onnx"], "a file of format basicsr must end in .pth, was 'g.onnx'"),
        (["--output", "{folder}/no/g.pth"], "--output must be in an existing folder, was"),
        (["--output", "{folder}/g.safetensors"], "g.safetensors already exists; --overwrite replaces it"),
        (["--output", "{folder}/g.pth", "--weights", "{folder}/none.pth"], "none.pth: no such file of weights"),
        (["--output", "{folder}/g.pth", "--weights", "{folder}/text.pth"], "text.pth: not a readable file of weights"),
        (["--output", "{folder}/g.pth", "--image", "{folder}/text.pth"], "text.pth: not a PNG, JPEG"),
        (["--output", "{folder}/g.pth", "--image", "{folder}/small.png"], "smaller than the minimum of 64"),
    ],
)
def test_rejects_invalid_input(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "g.safetensors", network())
    (tmp_path / "text.pth").write_text("nothing")
    Image.new("RGB", (40, 80)).save(tmp_path / "small.png")
    before = files(tmp_path)
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    assert command.main(["--weights", str(tmp_path / "g.safetensors"), "--format", "basicsr", "--quiet", *filled]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert files(tmp_path) == before


def test_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / "g.safetensors", network())
    (tmp_path / "g.pth").write_bytes(b"an earlier file")
    arguments = ["--weights", str(tmp_path / "g.safetensors"), "--format", "basicsr", "--quiet", "--overwrite"]
    assert command.main([*arguments, "--output", str(tmp_path / "g.pth")]) == 0
    assert capsys.readouterr().out == ""
    generator_from_weights(tmp_path / "g.pth")


def test_synthetic_image_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setattr(module, "_PHOTOGRAPH", "package:none_of_this_name/astronaut.png")
    image, name = check_image(None)
    assert name.startswith("a synthetic image")
    assert image.shape == (3, 96, 128)
    assert image.min() >= 0
    assert image.max() <= 1
    assert torch.equal(image, check_image(None)[0])
