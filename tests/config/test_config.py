"""The configuration: reading, refusing, writing and reading again."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from andfast.config import yaml_files
from andfast.config.command_line import parse_train, read_command_line
from andfast.config.errors import ConfigError
from andfast.config.files import build, dump, load, read_settings
from andfast.config.losses import VGG_LAYERS
from andfast.config.names import setting_types
from andfast.config.renames import RENAMED
from andfast.config.resume import differences, digest
from andfast.config.schema import STAGES, LossConfig, RunOptions, TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"
BASE = ["--output", "runs/x", "--data.train", "[photos]"]


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_command_line([*BASE, *arguments])
    text = str(caught.value)
    assert "\n" not in text
    return text


def config_of(*arguments: str) -> TrainConfig:
    return read_command_line([*BASE, *arguments])[0]


def written(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_are_the_papers() -> None:
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


def test_command_line_beats_file_beats_default_in_any_order(tmp_path: Path) -> None:
    path = written(tmp_path, "output: from_file\nseed: 3\nnet: {lr: 1e-3}\ndata: {train: [a, b]}\n")
    before, _ = read_command_line(["--seed", "4", "--config", path, "--output", "there"])
    after, _ = read_command_line(["--config", path, "--output=there", "--seed=4"])
    assert before == after
    assert (before.seed, before.net.lr, before.data.train, before.output) == (
        4,
        1e-3,
        ["a", "b"],
        Path("there"),
    )
    assert read_command_line(["--config", path])[0].output == Path("from_file")


def test_dictionary_of_a_file_replaces_the_default_and_an_option_adds(tmp_path: Path) -> None:
    path = written(tmp_path, "loss: {perceptual_layers: {conv5_4: 1}}\n")
    assert config_of("--config", path).loss.perceptual_layers == {"conv5_4": 1.0}
    more = config_of("--config", path, "--loss.perceptual_layers.conv1_2", "0.5")
    assert more.loss.perceptual_layers == {"conv5_4": 1.0, "conv1_2": 0.5}
    assert LossConfig().perceptual_layers == config_of().loss.perceptual_layers


def test_lists_can_be_extended() -> None:
    assert config_of("--data.train+", "more").data.train == ["photos", "more"]


def test_run_options() -> None:
    assert read_command_line(BASE)[1] == RunOptions(resume=False, steps=None, overwrite=False)
    assert read_command_line([*BASE, "--overwrite", "--steps", "7"])[1] == RunOptions(steps=7, overwrite=True)


def test_resume_without_config_takes_the_runs_own(tmp_path: Path) -> None:
    first = config_of("--seed", "9", "--output", str(tmp_path))
    (tmp_path / "config.yaml").write_text(dump(first))
    again, options = read_command_line(["--resume", "--output", str(tmp_path)])
    assert again == first
    assert options.resume
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.yaml").write_text(dump(first))
    assert read_command_line(["--output", str(moved), "--resume"])[0].output == moved


def test_every_setting_is_in_the_help_with_its_default_and_its_meaning(
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
def test_command_line_errors(arguments: list[str], texts: list[str]) -> None:
    message = refused(*arguments)
    for text in texts:
        assert text in message


@pytest.mark.parametrize(
    ("yaml_text", "texts"),
    [
        ("sede: 3\n", ["there is no setting 'sede'; did you mean 'seed'?"]),
        ("net: {lrr: 3}\n", ["there is no setting 'net.lrr'; did you mean 'net.lr'?"]),
        ("lr: 3\n", ["there is no setting 'lr'; did you mean 'net.lr'?"]),
        ("1: 3\n", ["there is no setting '1'"]),
        ("resume: true\n", ["'resume' is not a setting, it is given on the command line only: --resume"]),
        ("net: 3\n", ["net must be a group of settings, was 3"]),
        ("data:\n", ["data must be a group of settings, was None"]),
        ("seed: 1\nseed: 2\n", ["line 2", "'seed' is given twice"]),
        ("net:\n  lr: 1\n  lr: 2\n", ["line 3", "'lr' is given twice"]),
        ("seed: many\n", ["seed must be an integer, was 'many'"]),
        ("net: {steps: 1.5}\n", ["net.steps must be an integer, was '1.5'"]),
        ("adversary: {preset: paprika}\n", ["adversary.preset", "was 'paprika'; did you mean 'paper'?"]),
        ("output: [a\nb: c\n", ["line 2: not valid YAML"]),
        ("a\tb: [\n", ["not valid YAML"]),
        ("- a\n- b\n", ["must hold settings", "was a list"]),
        ("just words\n", ["must hold settings", "was a str"]),
        ("seed: !!python/object/apply:os.getcwd []\n", ["line 1: not valid YAML", "tag"]),
        ("seed: !mine 3\n", ["line 1: not valid YAML", "tag"]),
        ("seed: 2024-99-99\n", ["not valid YAML", "month must be in 1..12"]),
        ("data: &x {train: [*x]}\n", ["not valid YAML"]),
        ("init_weights: 'null'\n", ["init_weights must not be the text 'null', write null or './null'"]),
        ("validation: {lr: '#a'}\n", ["validation.lr must not be the text '#a'"]),
    ],
)
def test_file_errors_name_the_file(tmp_path: Path, yaml_text: str, texts: list[str]) -> None:
    message = refused("--config", written(tmp_path, yaml_text))
    for text in texts:
        assert text in message


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"seed: \xff\xfe\n")
    assert "not UTF-8 text (byte 6)" in refused("--config", str(path))
    path.write_bytes(b"seed: \x01\n")
    assert "not valid YAML" in refused("--config", str(path))


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert config_of("--config", written(tmp_path, "# nothing\n")) == config_of()


def test_output_and_photographs_are_required() -> None:
    with pytest.raises(ConfigError, match=r"^--output must be given"):
        read_command_line([])
    with pytest.raises(ConfigError, match=r"data\.train must name at least one folder with photographs, was \[\]"):
        read_command_line(["--output", "x"])


GAN = ["--stages", "[net, gan]"]


def test_an_error_is_one_line_on_stderr_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_configuration_errors_do_not_wait_for_torch() -> None:
    code = (
        "import sys; from andfast.config.command_line import parse_train\n"
        "try: parse_train(['--output', 'x'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_presets_are_valid(path: Path) -> None:
    build({"output": "runs/x"} | read_settings(path)).validate()


def preset(name: str) -> TrainConfig:
    return build(read_settings(CONFIGS / f"{name}.yaml") | {"output": "x"})


def test_presets_carry_the_papers_numbers() -> None:
    for scale in (2, 4):
        net, gan = preset(f"andnet_x{scale}"), preset(f"andgan_x{scale}")
        for config in (net, gan):
            assert config.scale == scale
            assert (config.batch_size, config.data.patch_size, config.accumulate) == (48, 256, 1)
            assert (config.adversary.steps, config.adversary.step_size) == (5, 6 / 20)
            assert (config.generator.features, config.generator.blocks, config.generator.growth) == (
                64,
                23,
                32,
            )
            assert config.degradation.channels == 64
        assert net.stages == ["net"]
        assert gan.stages == ["gan"]
        assert (net.net.steps, net.net.lr) == (10**6, 1e-4)
        assert (gan.gan.steps, gan.gan.lr, gan.loss.gan, gan.loss.gan_kind) == (
            5 * 10**5,
            1e-4,
            0.1,
            "vanilla",
        )
        assert gan.init_weights == Path(f"runs/andnet_x{scale}/weights/andnet.safetensors")


def test_the_demo_shrinks_widths_and_not_the_method() -> None:
    demo, full = preset("demo"), TrainConfig(output=Path("x"))
    assert demo.stages == ["net", "gan"]
    assert (demo.adversary.preset, demo.adversary.steps, demo.adversary.step_size) == ("calibrated", 5, None)
    radii = (demo.adversary.radius_convolution, demo.adversary.radius_noise, demo.adversary.radius_slope)
    assert all(radius is not None and radius > 0 for radius in radii)  # all three groups take part
    assert full.adversary.preset == "calibrated"
    assert dataclasses.replace(demo.degradation, channels=64) == full.degradation
    assert not set(demo.data.include) & set(demo.validation.include)


def test_dump_is_read_back(tmp_path: Path) -> None:
    config = config_of(*GAN, "--loss.perceptual_layers", "{conv2_2: 1e-9}", "--init_weights", "null")
    assert load(written(tmp_path, dump(config))) == config
    assert isinstance(load(written(tmp_path, dump(config))).net.betas, tuple)
    with pytest.raises(ConfigError, match="seed must be from 0"):
        load(written(tmp_path, dump(config).replace("seed: 0", "seed: -3")))


number = st.floats(1e-300, 1e300)
fraction = st.floats(0, 1, exclude_max=True)
count = st.integers(1, 2**40)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
tricky = st.sampled_from(
    [
        "null", "~", "yes", "on", "1e3", "-1.5", ".5", "0x1f", "1_000", ".inf", "nan", "2024-01-01",
        "12:30:45", "", " ", "#a", "a: b", "[a]", "{b}", "'", '"', "é", "!x", "&a", "*a", "| b", "> c", "- d",
        "? e", "%f", "@g", "`h", "=", "<<", "\n", "\x85", "\ufeff",
    ]
)  # fmt: skip
texts = st.lists(text | tricky, min_size=1, max_size=3)
names = (text | tricky).filter(lambda name: not yaml_files.means_null(name))  # such a one is refused in a file
paths = st.lists(names, min_size=1, max_size=3).map("/".join).map(Path)


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    """Valid configurations of every kind; what is not drawn is the default."""
    stage: st.SearchStrategy[dict[str, Any]] = st.builds(
        dict, steps=count, lr=number, betas=st.tuples(fraction, fraction)
    )
    base = TrainConfig(output=draw(paths))
    layers = st.dictionaries(st.sampled_from(VGG_LAYERS), number, min_size=1)

    def change(group: str, **values: Any) -> None:
        setattr(base, group, dataclasses.replace(getattr(base, group), **values))

    change("net", **draw(stage))
    change("gan", **draw(stage))
    change(
        "data",
        train=draw(texts),
        include=draw(texts),
        pack=draw(st.none() | paths),
        workers=draw(st.integers(0, 99)),
    )
    change(
        "loss",
        perceptual_layers=draw(layers),
        vgg_weights=draw((text | tricky).filter(bool)),
        gan=draw(number),
    )
    change("validation", hr=draw(texts)[:1], lr=draw(st.none() | names), exclude=draw(texts))
    preset_name = draw(st.sampled_from(["calibrated", "strong", "paper"]))
    radius = draw(st.none() | number)
    change(
        "adversary",
        preset=preset_name,
        **{"radius_joint" if preset_name == "paper" else "radius_noise": radius},
    )
    change(
        "degradation",
        channels=draw(st.integers(3, 99)),
        round_lr=draw(st.booleans()),
        noise_dtype=draw(st.sampled_from(["fp32", "bf16", "fp16"])),
    )
    return dataclasses.replace(
        base,
        stages=draw(st.sampled_from([["net"], ["net", "gan"]])),
        seed=draw(st.integers(0, 2**63 - 1)),
        init_weights=draw(st.none() | paths),
        ema_decay=draw(fraction),
        compile=draw(st.booleans()),
    )


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs())
def test_any_configuration_is_read_back(tmp_path: Path, config: TrainConfig) -> None:
    config.validate()
    again = load(written(tmp_path, dump(config)))
    assert again == config
    assert dump(again) == dump(config)
    assert digest(again) == digest(config)
    assert differences(config, again) == {}


def test_digest_and_differences_see_what_matters_and_nothing_else() -> None:
    config = config_of()
    free = config_of("--output=y", "--data.workers=1", "--net.steps=7", "--validation.every=3", "--log_every=1")
    assert digest(free) == digest(config)
    assert differences(config, free) == {}
    other = config_of("--net.lr=1", "--batch_size=24", "--loss.perceptual_layers={conv5_4: 1}")
    assert digest(other) != digest(config)
    assert differences(config, other) == {
        "batch_size": (48, 24),
        "loss.perceptual_layers": (config.loss.perceptual_layers, {"conv5_4": 1.0}),
        "net.lr": (1e-4, 1.0),
    }


def test_stages_are_ordered() -> None:
    assert STAGES == ("net", "gan")


@pytest.mark.parametrize(
    ("old", "new"),
    [("sharing.identity_pass", "reuse.closed_form_first_step"), ("sharing.hr_features", "reuse.hr_features")],
)
def test_old_name_raises_with_the_new_one(old: str, new: str, tmp_path: Path) -> None:
    assert refused(f"--{old}=false") == f"{old} was renamed to {new}"
    group, _, name = old.partition(".")
    path = written(tmp_path, f"{group}: {{{name}: false}}\n")
    assert refused("--config", path) == f"{path}: {old} was renamed to {new}"


def test_old_name_of_a_group_raises_with_the_new_one(tmp_path: Path) -> None:
    path = written(tmp_path, "sharing: {}\n")
    assert refused("--config", path) == f"{path}: sharing was renamed to reuse"


def test_new_names_of_renamed_settings_exist() -> None:
    names = {name for name, _ in setting_types()}
    assert set(RENAMED.values()) <= names
    assert not set(RENAMED) & names


def test_resume_translates_old_names(tmp_path: Path) -> None:
    config = config_of("--reuse.closed_form_first_step=false", "--adversary.chunk_size=3", "--reuse.cast_weights=false")
    text = dump(dataclasses.replace(config, output=tmp_path))
    for new, old in (
        ("reuse:", "sharing:"),
        ("closed_form_first_step", "identity_pass"),
        ("chunk_size", "images_at_once"),
    ):
        assert new in text
        text = text.replace(new, old)
    (tmp_path / "config.yaml").write_text(text)
    resumed, _ = read_command_line(["--output", str(tmp_path), "--resume"])
    assert resumed == load(tmp_path / "config.yaml") == dataclasses.replace(config, output=tmp_path)
