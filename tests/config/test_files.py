"""Configuration files: reading, errors and round trips."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from command_lines import config_of, error_of, write_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from andfast.config import yaml_files
from andfast.config.errors import ConfigError
from andfast.config.files import dump, load
from andfast.config.losses import VGG_LAYERS
from andfast.config.resume import differences, digest
from andfast.config.schema import TrainConfig


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
def test_invalid_file_raises(tmp_path: Path, yaml_text: str, texts: list[str]) -> None:
    message = error_of("--config", write_settings(tmp_path, yaml_text))
    for text in texts:
        assert text in message


def test_binary_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"seed: \xff\xfe\n")
    assert "not UTF-8 text (byte 6)" in error_of("--config", str(path))
    path.write_bytes(b"seed: \x01\n")
    assert "not valid YAML" in error_of("--config", str(path))


def test_empty_file_gives_defaults(tmp_path: Path) -> None:
    assert config_of("--config", write_settings(tmp_path, "# nothing\n")) == config_of()


def test_dump_round_trips(tmp_path: Path) -> None:
    config = config_of(
        "--stages", "[net, gan]", "--loss.perceptual_layers", "{conv2_2: 1e-9}", "--init_weights", "null"
    )
    assert load(write_settings(tmp_path, dump(config))) == config
    assert isinstance(load(write_settings(tmp_path, dump(config))).net.betas, tuple)
    with pytest.raises(ConfigError, match="seed must be from 0"):
        load(write_settings(tmp_path, dump(config).replace("seed: 0", "seed: -3")))


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


names = (text | tricky).filter(lambda name: not yaml_files.means_null(name))  # which files must not have


paths = st.lists(names, min_size=1, max_size=3).map("/".join).map(Path)


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    """Valid configurations; settings that are not drawn have their default."""
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
    preset_name = draw(st.sampled_from(["symmetric", "calibrated", "strong", "paper"]))
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
        noise_dtype=draw(st.sampled_from([None, "fp32", "bf16", "fp16"])),
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
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs())
def test_any_configuration_round_trips(tmp_path: Path, config: TrainConfig) -> None:
    config.validate()
    again = load(write_settings(tmp_path, dump(config)))
    assert again == config
    assert dump(again) == dump(config)
    assert digest(again) == digest(config)
    assert differences(config, again) == {}
