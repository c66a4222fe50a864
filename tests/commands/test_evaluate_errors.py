"""Errors of the evaluate command: invalid pairs, command lines and files, each in one line."""

import json

import pytest
import torch
from evaluation_cases import make_outputs, make_pairs, photograph, run, save, weights

from andfast.evaluate import main
from andfast.evaluation.pairs import downscale
from andfast.nn import RRDBNet
from andfast.nn.weights import save_weights


@pytest.fixture
def pairs(tmp_path):
    return make_pairs(tmp_path / "pairs")


@pytest.fixture
def outputs(tmp_path):
    return make_outputs(tmp_path / "external")


def test_invalid_pairs_are_reported_before_scoring(pairs, outputs, tmp_path, capsys):
    image = photograph("coffee", 260, 260)
    for name, hr, lr in (
        ("shifted", image[:, :208, :200], downscale(image[:, 3:211, :200], 4)),
        ("size", image[:, :208, :200], downscale(image[:, :208, :200], 4)[:, :-1]),
        ("scale", image[:, :208, :200], downscale(image[:, :208, :200], 2)),
    ):
        save(hr, pairs / "HR" / f"{name}.png")
        save(lr, pairs / "LR" / f"{name}.png")
        save(hr, outputs / f"{name}.png")
    save(image, pairs / "HR" / "alone.png")
    (pairs / "LR" / "damaged.png").write_bytes((pairs / "LR" / "coffee.png").read_bytes()[:500])
    save(image, pairs / "HR" / "damaged.png")
    (outputs / "chelsea_out.png").unlink()
    save(image, outputs / "astronaut_out.png")

    target, sheet = tmp_path / "scores.json", tmp_path / "sheet.png"
    arguments = ("--data", pairs, "--outputs", outputs, "--json", target, "--sheet", sheet)
    code, out, err = run(capsys, *arguments)
    assert code == 1
    *lines, last = err.splitlines()
    assert last == "error: 7 invalid pairs; fix them, or skip them with --skip-invalid"
    reasons = dict(line.removeprefix("invalid pair ").split(": ", 1) for line in lines)
    assert reasons["alone"] == "no LR image (x4) for HR/alone.png"
    assert reasons["shifted"].startswith("LR is shifted relative to HR by -2.9 pixels down")
    assert reasons["size"].startswith("HR must have 4 times LR's size")
    assert reasons["scale"].startswith("HR must have 4 times LR's size")
    assert reasons["damaged"].startswith("LR image damaged.png cannot be read: ")
    assert reasons["chelsea"].startswith("external has no image in ")
    assert reasons["astronaut"] == "external image astronaut_out.png must have HR's size, 200x208, was 260x260"
    assert "PSNR" not in out
    assert not target.exists()
    assert not sheet.exists()

    code, out, err = run(capsys, *arguments, "--skip-invalid")
    assert code == 0
    assert err.splitlines() == lines
    record = json.loads(target.read_text())
    assert [image["name"] for image in record["images"]] == ["coffee"]
    assert record["left_out_pairs"] == reasons

    code, _, err = run(capsys, *arguments, "--max-shift", "inf")
    assert code == 1
    assert "invalid pair shifted" not in err


def test_no_valid_pair(pairs, capsys):
    code, _, err = run(capsys, "--data", pairs, "--compare", "bicubic", "--scale", 2, "--skip-invalid")
    assert code == 1
    assert err.splitlines()[-1] == "error: no valid pair"


@pytest.mark.parametrize("prefix", ["a", "a_b"])
def test_outputs_match_the_longest_name(prefix, tmp_path, capsys):
    for name in ("a", "a_b", "a_10"):
        save(photograph("coffee"), tmp_path / "pairs" / "HR" / f"{name}.png")
        save(downscale(photograph("coffee"), 4), tmp_path / "pairs" / "LR" / f"{name}.png")
        save(photograph("coffee"), tmp_path / "out" / f"{name}_x4.png")
    assert run(capsys, "--data", tmp_path / "pairs", "--outputs", tmp_path / "out")[0] == 0
    save(photograph("coffee"), tmp_path / "out" / f"{prefix}_again.png")
    code, _, err = run(capsys, "--data", tmp_path / "pairs", "--outputs", tmp_path / "out")
    assert code == 1
    assert f"invalid pair {prefix}: out has multiple images" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data DIR is required"),
        (["--data", "DATA"], "one of --weights, --outputs, --compare is required"),
        (["--data", "DATA", "--compare", "bicubic", "--metrics", "niqe"], "niqe requires --niqe-parameters"),
        (["--data", "DATA", "--compare", "bicubic", "--metrics", "vmaf"], "invalid choice: 'vmaf'"),
        (["--data", "DATA", "--compare", "bicubic", "--scale", "0"], "must be at least 1, was 0"),
        (["--data", "DATA", "--compare", "bicubic", "--max-shift", "-1"], "must be above 0, was -1"),
        (["--data", "DATA", "--compare", "bicubic", "--sheet", "s.jpg"], "--sheet must end in .png, was s.jpg"),
        (["--data", "DATA", "--outputs", "nowhere"], "--outputs must be an existing folder of images, was nowhere"),
        (["--fit-niqe", "DATA"], "--fit-niqe requires --niqe-parameters"),
    ],
)
def test_command_line_errors_exit_with_code_2(arguments, message, pairs, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(pairs) if argument == "DATA" else argument for argument in arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_are_one_line_and_exit_with_code_1(pairs, outputs, tmp_path, capsys):
    wrong_scale, damaged = weights(tmp_path / "x2.safetensors", scale=2), tmp_path / "damaged.pth"
    damaged.write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")
    (tmp_path / "empty").mkdir()
    bicubic = ("--data", pairs, "--compare", "bicubic")
    for arguments, message in (
        (("--data", tmp_path / "nowhere", "--compare", "bicubic"), "data must be an existing folder of pairs"),
        (("--data", outputs, "--compare", "bicubic"), "no pairs found"),
        (("--data", pairs, "--compare", "nowhere.pth"), "nowhere.pth"),
        (("--data", pairs, "--weights", damaged), "damaged.pth"),
        (("--data", pairs, "--weights", wrong_scale, "--scale", 4), "weights must be for scale 4, was 2"),
        (("--data", pairs, "--outputs", tmp_path / "empty"), "empty contains none"),
        ((*bicubic, "--json", tmp_path / "no" / "scores.json"), "--json must be in an existing folder"),
        ((*bicubic, "--sheet", tmp_path / "no" / "sheet.png"), "--sheet must be in an existing folder"),
        ((*bicubic, "--json", tmp_path), "--json must be a file, was the folder"),
        ((*bicubic, "--layout", "super"), "no pairs found (super: SCENE"),
        ((*bicubic, "--metrics", "niqe", "--niqe-parameters", damaged), "must end in .npz or .mat"),
        ((*bicubic, "--metrics", "lpips", "--lpips-weights", damaged), "cannot be read as a file of weights"),
        ((*bicubic, "--device", "abacus"), "device must be"),
        (("--data", pairs, "--weights", weights(tmp_path / "n.safetensors"), "--tile", 8), "tile must be at least 64"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 1, arguments
        assert len(err.splitlines()) == 1, err
        assert err.startswith("error: "), err
        assert message in err


def test_unwritable_outputs_are_found_before_the_work(pairs, tmp_path, capsys, monkeypatch):
    def fail(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("andfast.files.tempfile.TemporaryFile", fail)
    for option, name in (("--json", "s.json"), ("--sheet", "s.png")):
        code, out, err = run(capsys, "--data", pairs, "--weights", "bicubic", option, tmp_path / name)
        assert code == 1
        assert err == f"error: {option} must be in a writable folder, was {tmp_path / name}: Read-only file system\n"
        assert not out
    code, _, err = run(capsys, "--fit-niqe", pairs / "HR", "--niqe-parameters", tmp_path / "n.npz")
    assert code == 1
    assert "--niqe-parameters must be in a writable folder" in err


def test_non_finite_output_is_an_error(pairs, tmp_path, capsys):
    torch.manual_seed(0)
    network = RRDBNet(scale=4, features=8, blocks=1, growth=4)
    with torch.no_grad():
        network.conv_last.weight.fill_(3e38)
    save_weights(tmp_path / "inf.safetensors", network)
    code, _, err = run(
        capsys, "--data", pairs, "--weights", tmp_path / "inf.safetensors", "--json", tmp_path / "s.json"
    )
    assert code == 1
    assert err == "error: inf: output must be finite, was NaN or infinite for astronaut\n"
    assert not (tmp_path / "s.json").exists()


def test_interrupt_writes_nothing(pairs, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("andfast.evaluation.run.check_shift", interrupt)
    code, _, err = run(capsys, "--data", pairs, "--compare", "bicubic", "--json", tmp_path / "s.json")
    assert (code, err) == (130, "interrupted: no partial results were written\n")
    assert not (tmp_path / "s.json").exists()
