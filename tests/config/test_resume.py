"""Settings on resume: digests, differences and old names."""

import dataclasses
from pathlib import Path

import pytest
from command_lines import config_of, error_of, write_settings

from andfast.config.errors import ConfigError
from andfast.config.files import dump, load
from andfast.config.names import setting_types
from andfast.config.parsing import parse_arguments
from andfast.config.renames import REMOVED, RENAMED
from andfast.config.resume import CHANGEABLE_ON_RESUME, differences, digest
from andfast.training.build import NOISE_DTYPES, build_attack_settings


def test_digest_and_differences_ignore_free_settings() -> None:
    config = config_of()
    free = config_of("--output=y", "--data.workers=1", "--net.steps=7", "--validation.every=3", "--log_every=1")
    assert digest(free) == digest(config)
    assert differences(config, free) == {}
    changed = config_of("--net.lr=1", "--batch_size=24", "--loss.perceptual_layers={conv5_4: 1}")
    assert digest(changed) != digest(config)
    assert differences(config, changed) == {
        "batch_size": (48, 24),
        "loss.perceptual_layers": (config.loss.perceptual_layers, {"conv5_4": 1.0}),
        "net.lr": (1e-4, 1.0),
    }


def test_steps_are_free_unless_the_schedule_ends_with_them() -> None:
    """A cosine schedule ends at the last step, so that another number of steps changes the rates to come."""
    constant, cosine = config_of("--net.steps=10"), config_of("--net.steps=10", "--net.lr_schedule=cosine")
    assert differences(constant, config_of("--net.steps=20")) == {}
    changed = differences(cosine, config_of("--net.steps=20", "--net.lr_schedule=cosine", "--gan.steps=3"))
    assert changed == {"net.steps": (10, 20)}
    assert set(changed) | set(differences(constant, cosine)) <= set(CHANGEABLE_ON_RESUME)


def test_digest_is_that_of_version_0_1() -> None:
    """Settings that were added later leave it as it was, unless they are set."""
    config = config_of("--seed=3", "--adversary.preset=calibrated")  # the default then
    assert digest(config) == "c03bede6b3e182b358b2a0f9b5b880185cbbc3f7b3cbc507bd1108076066bfdd"
    assert digest(config_of("--seed=3", "--adversary.strategy=random")) != digest(config)


@pytest.mark.parametrize(
    ("old", "new"),
    [("sharing.identity_pass", "reuse.closed_form_first_step"), ("sharing.hr_features", "reuse.hr_features")],
)
def test_old_name_raises_with_the_new_one(old: str, new: str, tmp_path: Path) -> None:
    assert error_of(f"--{old}=false") == f"{old} was renamed to {new}"
    group, _, name = old.partition(".")
    path = write_settings(tmp_path, f"{group}: {{{name}: false}}\n")
    assert error_of("--config", path) == f"{path}: {old} was renamed to {new}"


def test_old_name_of_a_group_raises_with_the_new_one(tmp_path: Path) -> None:
    path = write_settings(tmp_path, "sharing: {}\n")
    assert error_of("--config", path) == f"{path}: sharing was renamed to reuse"


def test_new_names_of_renamed_settings_exist() -> None:
    names = {name for name, _ in setting_types()}
    assert set(RENAMED.values()) <= names
    assert not (set(RENAMED) | set(REMOVED)) & names


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
    resumed, _ = parse_arguments(["--output", str(tmp_path), "--resume"])
    assert resumed == load(tmp_path / "config.yaml") == dataclasses.replace(config, output=tmp_path)


def with_precision(text: str, value: str) -> str:
    """The config.yaml of a run when adversary.precision was a setting."""
    assert text.count("adversary:\n") == 1
    return text.replace("adversary:\n", f"adversary:\n  precision: {value}\n")


def test_run_with_a_removed_setting_resumes(tmp_path: Path) -> None:
    config = dataclasses.replace(config_of("--adversary.chunk_size=3"), output=tmp_path)
    (tmp_path / "config.yaml").write_text(with_precision(dump(config), "same"))
    resumed, _ = parse_arguments(["--output", str(tmp_path), "--resume"])
    assert resumed == load(tmp_path / "config.yaml") == config


def test_removed_setting_raises_with_the_reason(tmp_path: Path) -> None:
    message = "adversary.precision was removed: fp8 was not faster than bf16 by count"
    assert error_of("--adversary.precision=fp8").startswith(message)
    path = write_settings(tmp_path, "adversary: {precision: same}\n")
    assert error_of("--config", path).startswith(f"{path}: {message}")
    (tmp_path / "config.yaml").write_text(with_precision(dump(config_of()), "fp8"))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "config.yaml")


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "fp32"), ("mixed", "bf16")])
def test_default_noise_dtype_follows_f_and_resumes_runs_that_stored_it(precision: str, expected: str) -> None:
    default = config_of(f"--degradation.precision={precision}")
    explicit, changed = (
        config_of(f"--degradation.precision={precision}", f"--degradation.noise_dtype={dtype}")
        for dtype in (expected, "fp16")
    )
    assert build_attack_settings(default, "net").noise_dtype == NOISE_DTYPES[expected]
    assert digest(explicit) == digest(default) != digest(changed)
    assert differences(explicit, default) == {}
    assert differences(changed, default) == {"degradation.noise_dtype": ("fp16", expected)}
