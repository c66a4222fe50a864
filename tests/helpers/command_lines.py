"""Configurations and errors of command lines."""

from pathlib import Path

import pytest

from andfast.config.errors import ConfigError
from andfast.config.parsing import parse_arguments
from andfast.config.schema import TrainConfig

BASE = ["--output", "runs/x", "--data.train", "[photos]"]


def config_of(*arguments: str) -> TrainConfig:
    return parse_arguments([*BASE, *arguments])[0]


def error_of(*arguments: str) -> str:
    """The one-line message of an invalid command line."""
    with pytest.raises(ConfigError) as caught:
        parse_arguments([*BASE, *arguments])
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_settings(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)
