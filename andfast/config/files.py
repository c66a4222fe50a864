"""Configurations in files: the config.yaml of a run, presets, and building the dataclasses from their settings."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from andfast.config.errors import ConfigError, one_line
from andfast.config.names import check_names, leaves, setting_types
from andfast.config.renames import translate
from andfast.config.schema import TrainConfig
from andfast.config.values import parse_value
from andfast.config.yaml_files import parse_yaml, read_yaml, write_yaml


class Override(NamedTuple):
    """A setting from the command line; see :func:`andfast.config.values.parse_value` for ``operator``."""

    name: str
    value: object
    operator: str = ""


def load(path: str | Path) -> TrainConfig:
    """Read and validate the config.yaml that a run has written; old names of settings are translated.

    Raises:
        ConfigError: the file cannot be read, or a name or a value in it is invalid.
    """
    config = build(read_run_settings(path))
    try:
        config.validate()
    except ValueError as error:
        raise ConfigError(one_line(str(error))) from error
    return config


def loads(text: str, source: str) -> TrainConfig:
    """As :func:`load`, from the text of a file; ``source`` names it in errors."""
    settings = translate(parse_yaml(text, source))
    check_names(settings, source)
    return build(settings)


def dump(config: TrainConfig) -> str:
    """The resolved configuration as YAML, from which :func:`load` reads an equal one."""
    return write_yaml(tree(config))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a file, as nested mappings with checked names.

    Raises:
        ConfigError: the file cannot be read, or a name in it is invalid.
    """
    settings = read_yaml(path)
    check_names(settings, str(path))
    return settings


def read_run_settings(path: str | Path) -> dict[str, Any]:
    """As :func:`read_settings`, but old names of settings are translated."""
    settings = translate(read_yaml(path))
    check_names(settings, str(path))
    return settings


def build(settings: Mapping[str, Any], overrides: Iterable[Override] = ()) -> TrainConfig:
    """Build a configuration, without validating it.

    Args:
        settings: nested mappings with checked names.
        overrides: settings of the command line, which are applied in their order.

    Raises:
        ConfigError: a value is not of its setting's type, or ``output`` is missing.
    """
    types = dict(setting_types())
    values = {name: parse_value(name, types[name], value) for name, value in leaves(settings).items()}
    for name, value, operator in overrides:
        current = values.get(name, _defaults().get(name)) if operator else None
        values[name] = parse_value(name, types[name], value, current=current, operator=operator)
    if "output" not in values:
        raise ConfigError("--output must be given: the folder of the run")
    config: TrainConfig = _construct(TrainConfig, values, "")
    return config


def tree(config: object) -> dict[str, Any]:
    """A configuration dataclass as nested dictionaries of plain values; paths become text, tuples lists."""

    def plain(value: object) -> object:
        if is_dataclass(value):
            return tree(value)
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return dict(value) if isinstance(value, Mapping) else value

    return {field.name: plain(getattr(config, field.name)) for field in fields(config)}  # type: ignore[arg-type]


def _defaults() -> dict[str, Any]:
    return leaves(tree(TrainConfig(output=Path())))


def _construct(group: Any, values: Mapping[str, Any], prefix: str) -> Any:
    hints = get_type_hints(group)
    arguments = {}
    for field in fields(group):
        name = f"{prefix}{field.name}"
        if is_dataclass(hints[field.name]):
            arguments[field.name] = _construct(hints[field.name], values, f"{name}.")
        elif name in values:
            arguments[field.name] = values[name]
    return group(**arguments)
