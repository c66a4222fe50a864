"""The command on what does not fit: pairs, command lines, files; every error is one line."""

import json

import pytest
import torch
from evaluation_cases import make_outputs, make_pairs, photograph, run, save, weights

from andfast.evaluate import main
from andfast.evaluation.pairs import reduce
from andfast.nn import RRDBNet
from andfast.nn.weights import save_weights


@pytest.fixture
def pairs(tmp_path):
    return make_pairs(tmp_path / "pairs")


@pytest.fixture
def outputs(tmp_path):
    return make_outputs(tmp_path / "theirs")


def test_pairs_that_do_not_fit_are_named_before_anything_runs(pairs, outputs, tmp_path, capsys):
    image = photograph("coffee", 260, 260)
    for name, hr, lr in (
        ("shifted", image[:, :208, :200], reduce(image[:, 3:211, :200], 4)),
        ("size", image[:, :208, :200], reduce(image[:, :208, :200], 4)[:, :-1]),
        ("scale", image[:, :208, :200], reduce(image[:, :208, :200], 2)),
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
    *named, last = err.splitlines()
    assert last == "error: 7 pairs do not fit; correct them, or leave them out with --skip-unfit"
    found = {line.split(": ")[1]: line.split(": ", 2)[2] for line in named}
    assert found["alone"] == "no LR picture (x4) beside HR/alone.png"
    assert found["shifted"].startswith("LR is shifted against HR by -2.9 pixels down")
    assert found["size"].startswith("HR must be 4 times LR's size")
    assert found["scale"].startswith("HR must be 4 times LR's size")
    assert found["damaged"].startswith("LR picture damaged.png cannot be used: ")
    assert found["chelsea"].startswith("theirs has no picture in ")
    assert found["astronaut"].startswith(
        "picture astronaut_out.png of theirs must be of HR's size, 200x208, was 260x260"
    )
    assert "PSNR" not in out
    assert not target.exists()
    assert not sheet.exists()

    code, out, err = run(capsys, *arguments, "--skip-unfit")
    assert code == 0
    assert err.splitlines() == named
    record = json.loads(target.read_text())
    assert [image["name"] for image in record["images"]] == ["coffee"]
    assert record["left_out_pairs"] == found

    code, _, err = run(capsys, *arguments, "--max-shift", "inf")
    assert code == 1
    assert "does not fit: shifted" not in err


def test_no_pair_fits(pairs, capsys):
    code, _, err = run(capsys, "--data", pairs, "--compare", "bicubic", "--scale", 2, "--skip-unfit")
    assert code == 1
    assert err.splitlines()[-1] == "error: no pair fits"


@pytest.mark.parametrize("prefix", ["a", "a_b"])
def test_pictures_whose_names_begin_alike(prefix, tmp_path, capsys):
    for name in ("a", "a_b", "a_10"):
        save(photograph("coffee"), tmp_path / "pairs" / "HR" / f"{name}.png")
        save(reduce(photograph("coffee"), 4), tmp_path / "pairs" / "LR" / f"{name}.png")
        save(photograph("coffee"), tmp_path / "out" / f"{name}_x4.png")
    assert run(capsys, "--data", tmp_path / "pairs", "--outputs", tmp_path / "out")[0] == 0
    save(photograph("coffee"), tmp_path / "out" / f"{prefix}_again.png")
    code, _, err = run(capsys, "--data", tmp_path / "pairs", "--outputs", tmp_path / "out")
    assert code == 1
    assert f"does not fit: {prefix}: out has several pictures" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data DIR is needed"),
        (["--data", "DATA"], "name what to judge: --weights, --outputs or --compare"),
        (["--data", "DATA", "--compare", "bicubic", "--metrics", "niqe"], "niqe needs --niqe-parameters"),
        (["--data", "DATA", "--compare", "bicubic", "--metrics", "vmaf"], "invalid choice: 'vmaf'"),
        (["--data", "DATA", "--compare", "bicubic", "--scale", "0"], "must be at least 1, was 0"),
        (["--data", "DATA", "--compare", "bicubic", "--max-shift", "-1"], "must be above 0, was -1"),
        (["--data", "DATA", "--compare", "bicubic", "--sheet", "s.jpg"], "--sheet writes a .png, was s.jpg"),
        (
            ["--data", "DATA", "--outputs", "nowhere"],
            "--outputs must be a folder of pictures, there is none at nowhere",
        ),
        (["--fit-niqe", "DATA"], "--fit-niqe needs --niqe-parameters"),
    ],
)
def test_wrong_command_lines_end_with_code_2(arguments, message, pairs, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(pairs) if argument == "DATA" else argument for argument in arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_are_one_line_with_code_1(pairs, outputs, tmp_path, capsys):
    wrong_scale, damaged = weights(tmp_path / "x2.safetensors", scale=2), tmp_path / "damaged.pth"
    damaged.write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")
    (tmp_path / "empty").mkdir()
    judged = ("--data", pairs, "--compare", "bicubic")
    for arguments, message in (
        (("--data", tmp_path / "nowhere", "--compare", "bicubic"), "data must be a folder of pairs"),
        (("--data", outputs, "--compare", "bicubic"), "holds no pairs"),
        (("--data", pairs, "--compare", "nowhere.pth"), "nowhere.pth"),
        (("--data", pairs, "--weights", damaged), "damaged.pth"),
        (("--data", pairs, "--weights", wrong_scale, "--scale", 4), "weights must be for scale 4, are for 2"),
        (("--data", pairs, "--outputs", tmp_path / "empty"), "empty holds none"),
        ((*judged, "--json", tmp_path / "no" / "scores.json"), "--json must be in a folder that exists"),
        ((*judged, "--layout", "super"), "holds no pairs (super: SCENE"),
        ((*judged, "--metrics", "niqe", "--niqe-parameters", damaged), "must end in .npz or .mat"),
        ((*judged, "--metrics", "lpips", "--lpips-weights", damaged), "cannot be read as a file of weights"),
        ((*judged, "--device", "abacus"), "device must be"),
        (("--data", pairs, "--weights", weights(tmp_path / "n.safetensors"), "--tile", 8), "tile must be at least 64"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 1, arguments
        assert len(err.splitlines()) == 1, err
        assert err.startswith("error: "), err
        assert message in err


def test_a_network_that_gives_nan_is_an_error(pairs, tmp_path, capsys):
    torch.manual_seed(0)
    network = RRDBNet(scale=4, features=8, blocks=1, growth=4)
    with torch.no_grad():
        network.conv_last.weight.fill_(3e38)
    save_weights(tmp_path / "inf.safetensors", network)
    code, _, err = run(
        capsys, "--data", pairs, "--weights", tmp_path / "inf.safetensors", "--json", tmp_path / "s.json"
    )
    assert code == 1
    assert err == "error: inf gave values that are not finite for astronaut\n"
    assert not (tmp_path / "s.json").exists()


def test_interrupting_writes_nothing(pairs, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("andfast.evaluation.run.check_shift", interrupt)
    code, _, err = run(capsys, "--data", pairs, "--compare", "bicubic", "--json", tmp_path / "s.json")
    assert (code, err) == (130, "interrupted: what was written is complete, the rest is not there\n")
    assert not (tmp_path / "s.json").exists()
