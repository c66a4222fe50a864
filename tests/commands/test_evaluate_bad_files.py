"""Fuzzing of input files: each either loads, or raises a one-line error that names it."""

import io
import warnings

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from skimage import data

from andfast.evaluate import main
from andfast.evaluation.layouts import PairFiles
from andfast.evaluation.pairs import InvalidPairError, read_pair
from andfast.metrics.lpips import LPIPS
from andfast.metrics.niqe_parameters import read_niqe_parameters

EXAMPLES = 100


def _npz():
    buffer = io.BytesIO()
    np.savez(buffer, mu_pris_param=np.arange(36.0), cov_pris_param=np.eye(36))
    return buffer.getvalue()


def _mat(compressed):
    buffer = io.BytesIO()
    savemat(buffer, {"mu_prisparam": np.arange(36.0), "cov_prisparam": np.eye(36)}, do_compression=compressed)
    return buffer.getvalue()


def _weights():
    buffer = io.BytesIO()
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}, buffer)
    return buffer.getvalue()


def _png():
    buffer = io.BytesIO()
    Image.fromarray(data.chelsea()[:16, :16]).save(buffer, "PNG")
    return buffer.getvalue()


@st.composite
def damaged(draw, whole):
    """A file's bytes with random changes, truncations and insertions."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.sampled_from(["change", "cut", "insert", "zeros"])):
            case "change":
                content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[place:]
            case "insert":
                content[place:place] = draw(st.binary(max_size=16))
            case "zeros":
                content[place : place + 64] = bytes(len(content[place : place + 64]))
    return bytes(content)


def error_message(read, error_type):
    """The message if reading raises ``error_type``, None if it succeeds. Other exceptions propagate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn about damaged files
        try:
            read()
        except error_type as error:
            return str(error)
    return None


def check(message, *names):
    assert message is None or any(name in message for name in names), message
    assert message is None or "\n" not in message, message


@settings(max_examples=EXAMPLES)
@given(content=st.one_of(damaged(_npz()), st.binary(max_size=200)))
def test_niqe_parameters_npz(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bad.npz"
    path.write_bytes(content)
    check(error_message(lambda: read_niqe_parameters(path), ValueError), path.name)


@settings(max_examples=EXAMPLES)
@given(content=st.one_of(damaged(_mat(False)), damaged(_mat(True)), st.binary(max_size=200)))
def test_niqe_parameters_mat(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bad.mat"
    path.write_bytes(content)
    check(error_message(lambda: read_niqe_parameters(path), ValueError), path.name)


@settings(max_examples=40)
@given(content=st.one_of(damaged(_weights()), st.binary(max_size=200)), suffix=st.sampled_from(["pth", "safetensors"]))
def test_lpips_weights(content, suffix, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"bad.{suffix}"
    path.write_bytes(content)
    message = error_message(lambda: LPIPS("squeeze", weights=path), ValueError)
    assert message is not None
    check(message, path.name)


@settings(max_examples=EXAMPLES)
@given(content=st.one_of(damaged(_png()), st.binary(max_size=200)))
def test_images(content, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    Image.fromarray(data.chelsea()[:64, :64]).save(folder / "hr.png")
    (folder / "bad.png").write_bytes(content)
    files = PairFiles("pair", folder / "hr.png", folder / "bad.png")
    # Either unreadable, or readable with another size; the command prefixes the pair's name.
    check(error_message(lambda: read_pair(files, 4), InvalidPairError), "bad.png", "HR must have 4 times LR's size")


def test_unprintable_file_names_are_escaped(tmp_path, capsys):
    """Line breaks and invalid UTF-8 in names of files and folders."""
    folder = tmp_path / "a\nb\udcff"
    for name in ("c\nd", "e\udcfe"):
        for role, side in (("HR", 64), ("LR", 16)):
            (folder / role).mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.chelsea()[:64, :64]).resize((side, side), Image.Resampling.BICUBIC).save(
                folder / role / f"{name}.png"
            )
    (folder / "LR" / "f\ng.png").write_bytes(b"")
    (folder / "HR" / "f\ng.png").write_bytes(b"")
    target, sheet = tmp_path / "scores.json", tmp_path / "sheet.png"
    arguments = ["--data", str(folder), "--outputs", str(folder / "HR"), "--json", str(target), "--sheet", str(sheet)]
    assert main([*arguments, "--images", "--quiet", "--skip-invalid"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["invalid pair f\\ng: HR image f\\ng.png cannot be read: an empty file"]
    assert "c\\nd" in captured.out
    assert "e\\udcfe" in captured.out
    assert target.exists()
    assert sheet.exists()
    (folder / "LR" / "c\nd.png").unlink()
    assert main([*arguments, "--quiet"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3
