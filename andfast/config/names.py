"""Names of settings: listing them, checking them in files, and suggestions for misspelled ones."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from difflib import SequenceMatcher
from types import NoneType
from typing import Any, Final, get_args, get_origin, get_type_hints

from andfast.config.errors import ConfigError
from andfast.config.renames import outdated
from andfast.config.schema import TrainConfig
from andfast.config.values import describe
from andfast.config.yaml_files import means_null

COMMAND_LINE_ONLY: Final = ("config", "resume", "overwrite", "steps", "help")
"""Options of the command line that are not settings."""


def setting_types(group: type = TrainConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every setting, groups before their members."""
    for name, hint in get_type_hints(group).items():
        yield f"{prefix}{name}", hint
        if is_dataclass(hint):
            yield from setting_types(hint, f"{prefix}{name}.")  # type: ignore[arg-type]


def unknown_name(name: str) -> str:
    """The error message for an unknown setting, with the nearest valid name."""
    if (message := outdated(name)) is not None:
        return message
    if name in COMMAND_LINE_ONLY:
        return f"{name!r} is not a setting, it is given on the command line only: --{name}"
    return f"there is no setting {name!r}; did you mean {nearest_name(name)!r}?"


def nearest_name(name: str) -> str:
    """The setting spelled most like ``name``."""

    def likeness(setting: str) -> float:
        whole = SequenceMatcher(None, name, setting).ratio()
        last = SequenceMatcher(None, name.rpartition(".")[2], setting.rpartition(".")[2]).ratio()
        return max(whole, last - 0.01)  # "lr" means net.lr, "net.lrr" too

    return max((setting for setting, hint in setting_types() if not is_dataclass(hint)), key=likeness)


def check_names(settings: Mapping[Any, Any], source: str, group: type = TrainConfig, prefix: str = "") -> None:
    """Check the names of settings read from YAML.

    Args:
        settings: nested mappings.
        source: prefix of error messages, the name of the file.

    Raises:
        ConfigError: an unknown, renamed or removed setting, a group without settings, or a null that is not allowed.
    """
    hints = get_type_hints(group)
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if key not in hints:
            member = f"{name}.{next(iter(value))}" if isinstance(value, Mapping) and value else name
            raise ConfigError(f"{source}: {outdated(member) or unknown_name(name)}")
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {name} must be a group of settings, was {value!r}")
            check_names(value, source, hints[key], f"{name}.")
        elif value is None and NoneType not in get_args(hints[key]):
            raise ConfigError(f"{source}: {name} must be {describe(hints[key])}, was null")
        elif isinstance(value, str) and NoneType in get_args(hints[key]) and means_null(value):
            raise ConfigError(f"{source}: {name} must not be the text {value!r}, write null or {'./' + value!r}")


def leaves(settings: Mapping[str, Any], group: type = TrainConfig, prefix: str = "") -> dict[str, Any]:
    """Nested settings with checked names as dotted name to value; mappings that are values stay whole."""
    hints = get_type_hints(group)
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if is_dataclass(hints[name]):
            flat |= leaves(value, hints[name], f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def is_mapping(hint: Any) -> bool:
    """Whether a setting of this type is a mapping, whose keys are data."""
    return get_origin(hint) is dict
