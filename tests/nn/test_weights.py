"""Reading weight files: all ESRGAN-family naming schemes load, nothing is unpickled, sizes are inferred."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spandrel import ModelLoader
from state_dicts import assert_equal, small_generator
from torch import Tensor

from andfast.nn import VGGDiscriminator
from andfast.nn.weights import generator_from_weights, read_metadata, read_weights, save_weights


def first_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of ESRGAN's first release (RRDB_ESRGAN_x4.pth as published in 2018)."""
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("body."))
    top = {
        "conv_first": "model.0",
        "conv_body": f"model.1.sub.{blocks}",
        "conv_up1": "model.3",
        "conv_up2": "model.6",
    }
    top |= {"conv_hr": "model.8", "conv_last": "model.10"}
    renamed = {}
    for name, tensor in state.items():
        layer, kind = name.rsplit(".", 1)
        if layer.startswith("body."):
            _, i, rdb, conv = layer.split(".")
            renamed[f"model.1.sub.{i}.{rdb.upper()}.{conv}.0.{kind}"] = tensor
        else:
            renamed[f"{top[layer]}.{kind}"] = tensor
    return renamed


def bsrgan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of ESRGAN's second release, BSRGAN and RealSR."""
    renamed = {}
    for name, tensor in state.items():
        new = re.sub(r"^body\.(\d+)\.rdb(\d)", r"RRDB_trunk.\1.RDB\2", name)
        for old, replacement in (("conv_body", "trunk_conv"), ("conv_up", "upconv"), ("conv_hr", "HRconv")):
            new = new.replace(old, replacement)
        renamed[new] = tensor
    return renamed


# ---------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("rename", [dict, first_release, bsrgan])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors"])
def test_loads_all_naming_schemes(rename: object, suffix: str, tmp_path: Path) -> None:
    network = small_generator()
    state = network.state_dict()
    file = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(rename(state), file)  # type: ignore[operator]
    assert_equal(read_weights(file), state)
    x = torch.rand(1, 3, 6, 6)
    assert torch.equal(generator_from_weights(file)(x), network(x))


def test_first_release_matches_spandrel(tmp_path: Path) -> None:
    network = small_generator(2, features=16, growth=32)
    file = tmp_path / "old.pth"
    torch.save(first_release(network.state_dict()), file)
    assert "model.1.sub.0.RDB1.conv1.0.weight" in torch.load(file, weights_only=True)
    x = torch.rand(1, 3, 8, 8)
    theirs = ModelLoader(device="cpu").load_from_file(file).model(x)
    torch.testing.assert_close(generator_from_weights(file)(x), theirs, rtol=1e-5, atol=1e-6)


def test_loads_legacy_and_zip_formats(tmp_path: Path) -> None:
    state = small_generator().state_dict()
    for zipped in (False, True):
        torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
        assert_equal(read_weights(tmp_path / "weights.pth"), state)


def test_params_ema_is_preferred(tmp_path: Path) -> None:
    ema, plain = (small_generator(features=size).state_dict() for size in (8, 6))
    file = tmp_path / "weights.pth"
    torch.save({"iteration": 5, "params": plain, "params_ema": ema}, file)
    assert_equal(read_weights(file), ema)
    torch.save({"params": plain, "state_dict": ema}, file)
    assert_equal(read_weights(file), plain)
    torch.save({"state_dict": plain}, file)
    assert_equal(read_weights(file), plain)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_are_stripped(prefix: str, tmp_path: Path) -> None:
    state = small_generator().state_dict()
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "a.pth")
    assert_equal(read_weights(tmp_path / "a.pth"), state)
    torch.save({prefix + name: value for name, value in first_release(state).items()}, tmp_path / "b.pth")
    assert_equal(read_weights(tmp_path / "b.pth"), state)
    torch.save(
        {name.replace("body.0.", "body.0._orig_mod."): value for name, value in state.items()}, tmp_path / "c.pth"
    )
    assert_equal(read_weights(tmp_path / "c.pth"), state)


def test_mmagic_generator_is_extracted_ema_first(tmp_path: Path) -> None:
    ema, plain = small_generator(), small_generator(features=6)
    state = {f"generator.{name}": value for name, value in plain.state_dict().items()}
    state |= {"discriminator.conv.weight": torch.zeros(1), "step_counter": torch.tensor([3])}
    torch.save({"meta": {"epoch": 2}, "state_dict": state}, tmp_path / "plain.pth")
    assert_equal(read_weights(tmp_path / "plain.pth"), plain.state_dict())
    for module in ("", "module."):  # mmediting 0.x, and the averaged model of mmengine
        averaged = {f"generator_ema.{module}{name}": value for name, value in ema.state_dict().items()}
        if module:
            averaged["generator_ema.steps"] = torch.tensor(7)
        torch.save({"meta": {}, "state_dict": {**state, **averaged}}, tmp_path / "ema.pth")
        x = torch.rand(1, 3, 6, 6)
        assert torch.equal(generator_from_weights(tmp_path / "ema.pth")(x), ema(x))


def test_rejects_names_that_collide_without_prefixes(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: names must differ without their prefixes, a occurs twice"):
        read_weights(tmp_path / "w.pth")


def test_other_networks_keep_their_names(tmp_path: Path) -> None:
    state = VGGDiscriminator(128, features=2).state_dict()
    save_weights(tmp_path / "d.safetensors", state)
    assert_equal(read_weights(tmp_path / "d.safetensors"), state)


class Malicious:
    """Unpickling this creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("zipped", [False, True])
def test_rejects_malicious_pickles(zipped: bool, tmp_path: Path) -> None:
    trace = tmp_path / "was_here"
    content = {"params": {"conv_first.weight": Malicious(trace)}}
    file = tmp_path / "evil.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    message = r"evil\.pth: weights must contain only tensors, contains \w+\.mkdir, which loading would run"
    with pytest.raises(ValueError, match=message) as info:
        read_weights(file)
    assert "\n" not in str(info.value)
    assert not trace.exists()
    file.write_bytes(pickle.dumps(Malicious(trace), protocol=2))
    with pytest.raises(ValueError, match=r"evil\.pth: "):
        read_weights(file)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_rejects_truncated_files(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    state = small_generator(features=2, blocks=1, growth=1).state_dict()
    (save_file if suffix == ".safetensors" else torch.save)(state, file)
    whole = file.read_bytes()
    for size in [*range(0, 64, 7), *range(64, len(whole) - 1, len(whole) // 20)]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"weights{suffix}: not a (whole|readable)") as info:
            read_weights(file)
        assert "\n" not in str(info.value)
    file.write_bytes(b"404: not found" * 10)
    with pytest.raises(ValueError, match=rf"weights{suffix}: not a (whole|readable)"):
        read_weights(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n<!DOCTYPE html><html>404: not found</html>", r"was a web page \(a failed download\?\)"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "was a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "was a Git LFS pointer"),
    ],
)
def test_names_web_pages_and_lfs_pointers(suffix: str, content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights{suffix}: weights must be a checkpoint, {reason}"):
        read_weights(file)


def test_rejects_truncated_legacy_files(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(small_generator(features=2, blocks=1, growth=1).state_dict(), file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    for size in range(0, len(whole) - 1, len(whole) // 20):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"weights\.pth: not a readable"):
            read_weights(file)


@pytest.mark.parametrize(
    ("content", "was"),
    [
        ([torch.zeros(1)], "was list"),
        (torch.zeros(3), "was Tensor"),
        ({}, "was empty"),
        ({"params": {}}, "was empty"),
        ({"epoch": 3, "conv_first.weight": torch.zeros(1)}, "its entry 'epoch' was int"),
        ({3: torch.zeros(1)}, "its entry 3 was Tensor"),
    ],
)
def test_rejects_other_contents(content: object, was: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=rf"weights\.pth: must contain a state dict .*{was}"):
        read_weights(tmp_path / "weights.pth")


def test_rejects_missing_files_folders_and_suffixes(tmp_path: Path) -> None:
    for read in (read_weights, read_metadata, generator_from_weights):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: no such file"):
            read(tmp_path / "nowhere.pth")
        with pytest.raises(ValueError, match="must be a file"):
            read(tmp_path)
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights\.onnx: weights must end in \.safetensors, \.pth.*was '\.onnx'"):
        read_weights(tmp_path / "weights.onnx")


# -------------------------------------------------------------------------------------------------- generator


@pytest.mark.parametrize(("scale", "features", "blocks", "growth"), [(1, 8, 1, 4), (2, 5, 2, 3), (4, 4, 11, 2)])
def test_infers_sizes(scale: int, features: int, blocks: int, growth: int, tmp_path: Path) -> None:
    network = small_generator(scale, features=features, blocks=blocks, growth=growth)
    save_weights(tmp_path / "g.safetensors", network)
    before = torch.get_rng_state()
    for source in (tmp_path / "g.safetensors", network.state_dict()):
        loaded = generator_from_weights(source, scale=scale)
        assert loaded.scale == scale
        assert_equal(loaded.state_dict(), network.state_dict())
        x = torch.rand(1, 3, 4, 8, generator=torch.Generator())
        assert torch.equal(loaded(x), network(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_generator_does_not_share_memory_and_is_fp32() -> None:
    state = small_generator().half().state_dict()
    loaded = generator_from_weights(state)
    assert all(tensor.dtype == torch.float32 and tensor.requires_grad for tensor in loaded.parameters())
    with torch.no_grad():
        loaded.conv_first.weight.zero_()
    assert state["conv_first.weight"].any()


def test_impl_is_passed_on() -> None:
    with pytest.raises(RuntimeError, match="impl='triton'"):
        generator_from_weights(small_generator().state_dict(), impl="triton")(torch.rand(1, 3, 4, 4))


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "conv_up2.weight", "conv_up2.bias"), "missing conv_up2.bias, conv_up2.weight$"),
        (
            lambda s: without(s, "conv_first.weight"),
            "missing conv_first.weight; unexpected body.0.* and 65 more$",
        ),
        (
            lambda s: {**s, "extra.weight": torch.zeros(1)},
            "not the weights of an RRDBNet: unexpected extra.weight$",
        ),
        (lambda s: {**s, "body.7.rdb1.conv1.weight": torch.zeros(1)}, "missing body.2.* unexpected body.7"),
        (
            lambda s: {**s, "conv_hr.weight": torch.zeros(8, 9, 3, 3)},
            r"conv_hr.weight must have shape \(8, 8, 3, 3\)",
        ),
        (
            lambda s: {**s, "conv_first.weight": torch.zeros(8, 5, 3, 3)},
            r"must have 48 \(scale 1\), .* input channels, was 5",
        ),
        (lambda s: {**s, "conv_first.weight": torch.zeros(8)}, "conv_first.weight must have 4 non-empty dimensions"),
        (
            lambda _: VGGDiscriminator(128, features=2).state_dict(),
            "not the weights of an RRDBNet: missing conv_first",
        ),
    ],
)
def test_rejects_other_architectures(change: object, message: str, tmp_path: Path) -> None:
    state = change(small_generator().state_dict())  # type: ignore[operator]
    torch.save(state, tmp_path / "g.pth")
    for source, name in ((tmp_path / "g.pth", "g.pth"), (state, "the state dict")):
        with pytest.raises(ValueError, match=message) as info:
            generator_from_weights(source)
        assert name in str(info.value)
        assert "\n" not in str(info.value)


def test_rejects_wrong_scale(tmp_path: Path) -> None:
    save_weights(tmp_path / "x2.safetensors", small_generator(2))
    with pytest.raises(ValueError, match=r"x2\.safetensors: weights must be for scale 4, are for scale 2"):
        generator_from_weights(tmp_path / "x2.safetensors", scale=4)


def test_rejects_first_release_for_other_scales(tmp_path: Path) -> None:
    """An x8 model of the first release has three upsampling layers, which BasicSR's RRDBNet never has."""
    state = first_release(small_generator().state_dict())
    top = {"model.8": "model.9", "model.10": "model.11"}
    renamed = {
        top.get(name.rsplit(".", 1)[0], name.rsplit(".", 1)[0]) + "." + name.rsplit(".", 1)[1]: value
        for name, value in state.items()
    }
    renamed |= {"model.13.weight": torch.zeros(3, 8, 3, 3), "model.13.bias": torch.zeros(3)}
    torch.save(renamed, tmp_path / "x8.pth")
    with pytest.raises(ValueError, match=r"x8\.pth: an ESRGAN of the first release must have 2 upsampling.* had 3"):
        read_weights(tmp_path / "x8.pth")
