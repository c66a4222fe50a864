"""The command line: precedence, options, help and errors."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import BASE, config_of, error_of, write_settings

from andfast.config.command_line import parse_train
from andfast.config.errors import ConfigError
from andfast.config.files import dump
from andfast.config.losses import VGG_LAYERS
from andfast.config.names import setting_types
from andfast.config.parsing import parse_arguments
from andfast.config.schema import LossConfig, RunOptions, TrainConfig


def test_defaults_are_from_the_paper() -> None:
    config = config_of()
    assert config == TrainConfig(output=Path("runs/x"), data=dataclasses.replace(config.data, train=["photos"]))
    assert (config.batch_size, config.data.patch_size, config.adversary.steps, config.loss.gan) == (
        48,
        256,
        5,
        0.1,
    )
    assert (config.net.steps, config.gan.steps, config.net.lr, config.gan.lr) == (
        1_000_000,
        500_000,
        1e-4,
        1e-4,
    )
    assert set(config.loss.perceptual_layers) <= set(VGG_LAYERS)
    assert len(VGG_LAYERS) == 16


def test_command_line_overrides_file_overrides_default(tmp_path: Path) -> None:
    path = write_settings(tmp_path, "output: from_file\nseed: 3\nnet: {lr: 1e-3}\ndata: {train: [a, b]}\n")
    before, _ = parse_arguments(["--seed", "4", "--config", path, "--output", "there"])
    after, _ = parse_arguments(["--config", path, "--output=there", "--seed=4"])
    assert before == after
    assert (before.seed, before.net.lr, before.data.train, before.output) == (
        4,
        1e-3,
        ["a", "b"],
        Path("there"),
    )
    assert parse_arguments(["--config", path])[0].output == Path("from_file")


def test_mapping_in_a_file_replaces_the_default_and_an_option_adds(tmp_path: Path) -> None:
    path = write_settings(tmp_path, "loss: {perceptual_layers: {conv5_4: 1}}\n")
    assert config_of("--config", path).loss.perceptual_layers == {"conv5_4": 1.0}
    more = config_of("--config", path, "--loss.perceptual_layers.conv1_2", "0.5")
    assert more.loss.perceptual_layers == {"conv5_4": 1.0, "conv1_2": 0.5}
    assert LossConfig().perceptual_layers == config_of().loss.perceptual_layers


def test_plus_appends_to_a_list() -> None:
    assert config_of("--data.train+", "more").data.train == ["photos", "more"]


def test_run_options() -> None:
    assert parse_arguments(BASE)[1] == RunOptions(resume=False, steps=None, overwrite=False)
    assert parse_arguments([*BASE, "--overwrite", "--steps", "7"])[1] == RunOptions(steps=7, overwrite=True)


def test_resume_reads_the_config_of_the_run(tmp_path: Path) -> None:
    first = config_of("--seed", "9", "--output", str(tmp_path))
    (tmp_path / "config.yaml").write_text(dump(first))
    again, options = parse_arguments(["--resume", "--output", str(tmp_path)])
    assert again == first
    assert options.resume
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.yaml").write_text(dump(first))
    assert parse_arguments(["--output", str(moved), "--resume"])[0].output == moved


def test_help_lists_every_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_train(["--config", "nowhere.yaml", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    flat = " ".join(text.split())
    for name, hint in setting_types():
        if not dataclasses.is_dataclass(hint):
            entry = re.search(rf"  --{re.escape(name)}[ ,].*?(?=\n  --|\n\n|\Z)", text, re.DOTALL)
            assert entry, name
            words = " ".join(entry[0].split())
            assert name == "output" or "default: " in words, words
            assert re.search(r"[A-Za-z0-9\])}] .{8,} \(", words.partition("(type")[0] + "("), words
    for option in ("--config FILE", "--resume", "--overwrite", "--steps N"):
        assert option in flat
    assert "Ascent steps per training step (paper: 5). (type: int, default: 5)" in flat


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--sede", "3"], ["'--sede'", "did you mean '--seed'"]),
        (["--lr", "3"], ["'--lr'", "did you mean '--net.lr'"]),
        (["--adversary.prest", "paper"], ["'--adversary.prest'", "'--adversary.preset'"]),
        (["--generator.block=3"], ["'--generator.block'", "'--generator.blocks'"]),
        (["--resum"], ["'--resum'", "'--resume'"]),
        (["--net", "{lrr: 3}"], ["'net.lrr'", "'net.lr'"]),
        (["--net", "nowhere.yaml"], ["net must be settings or a YAML file", "'nowhere.yaml'"]),
        (["junk"], ["unrecognized arguments: junk"]),
        (["--seed"], ["--seed", "expected one argument"]),
        (["--seed", "x"], ["seed must be an integer, was 'x'"]),
        (["--seed", "1.5"], ["seed must be an integer, was '1.5'"]),
        (["--batch_size", "true"], ["batch_size must be an integer, was 'true'"]),
        (["--net.lr", "fast"], ["net.lr must be a number, was 'fast'"]),
        (["--channels_last", "3"], ["channels_last must be true or false, was '3'"]),
        (["--net.betas", "[0.9]"], ["net.betas must be two numbers", "was '[0.9]'"]),
        (["--scale", "5"], ["scale must be 2 or 4, was '5'; the nearest is 4"]),
        (["--scale", "big"], ["scale must be 2 or 4, was 'big'"]),
        (["--adversary.preset", "strog"], ["adversary.preset", "was 'strog'; did you mean 'strong'?"]),
        (["--device", "gpu"], ["device must be 'auto', 'cpu' or 'cuda', was 'gpu'"]),
        (["--stages", "net"], ["stages must be a list of 'net' or 'gan', such as [net, gan], was 'net'"]),
        (["--stages", "[gam]"], ["was '[gam]'; did you mean 'gan'?"]),
        (["--data.include", "x"], ["data.include must be a list of texts, such as [a, b], was 'x'"]),
        (["--loss.perceptual_layers", "3"], ["loss.perceptual_layers must be names with numbers", "was '3'"]),
        (["--adversary.radius_noise", "x"], ["adversary.radius_noise must be a number or null, was 'x'"]),
        (["--validation.crop_border", "x"], ["validation.crop_border must be an integer or null, was 'x'"]),
        (["--steps", "x"], ["--steps", "must be an integer, was 'x'"]),
        (["--steps", "0"], ["--steps must be at least 1, was 0"]),
        (["--resume", "--overwrite"], ["--resume and --overwrite exclude each other"]),
        (["--config", "nowhere.yaml"], ["--config must be a YAML file, 'nowhere.yaml' does not exist"]),
        (["--config", "."], ["--config must be a YAML file, '.' is a folder"]),
        (["--resume", "--output", "nowhere"], ["--resume", "nowhere/config.yaml' does not exist"]),
        (["--init_weights", "nowhere.pth"], ["init_weights must be a weights file, was 'nowhere.pth'"]),
    ],
)
def test_invalid_command_line_raises(arguments: list[str], texts: list[str]) -> None:
    message = error_of(*arguments)
    for text in texts:
        assert text in message


def test_output_and_images_are_required() -> None:
    with pytest.raises(ConfigError, match=r"^--output must be given"):
        parse_arguments([])
    with pytest.raises(ConfigError, match=r"data\.train must name at least one folder with photographs, was \[\]"):
        parse_arguments(["--output", "x"])


def test_error_is_one_line_on_stderr_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [],
        [*BASE, "--sede", "3"],
        [*BASE, "--adversary.radius_noise", "x"],
        [*BASE, "--seed", "a\nb"],
    ):
        with pytest.raises(SystemExit) as caught:
            parse_train(arguments)
        assert caught.value.code == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("python -m andfast.train: error: ")
        assert shown.err.count("\n") == 1


def test_errors_do_not_import_torch() -> None:
    code = (
        "import sys; from andfast.config.command_line import parse_train\n"
        "try: parse_train(['--output', 'x'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("[~/photos]", ["~/photos"]),
        ("[2024]", ["2024"]),
        ("[1.10, 007, yes, 2024-01-02]", ["1.10", "007", "yes", "2024-01-02"]),
        ("['a, b', c]", ["a, b", "c"]),
    ],
)
def test_paths_are_texts_whatever_yaml_reads_in_them(text: str, paths: list[str]) -> None:
    config, _ = parse_arguments([f"--data.train={text}", "--output=x", "--precision=fp32"])
    assert config.data.train == paths


def test_paths_of_a_file_may_be_numbers(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {train: [2024, photos]}\n")
    config, _ = parse_arguments(["--config", str(tmp_path / "config.yaml"), "--output=x", "--precision=fp32"])
    assert config.data.train == ["2024", "photos"]
