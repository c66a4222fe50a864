"""Training configurations from arguments: options and settings, ``--NAME VALUE`` or ``--NAME=VALUE``."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, get_origin

import yaml

from andfast.config.errors import ConfigError, nearest, one_line
from andfast.config.files import Override, build, read_run_settings, read_settings
from andfast.config.machine import validate_machine
from andfast.config.names import COMMAND_LINE_ONLY, check_names, is_mapping, leaves, setting_types, unknown_name
from andfast.config.schema import RunOptions, TrainConfig
from andfast.config.yaml_files import read_yaml


def parse_arguments(argv: Sequence[str]) -> tuple[TrainConfig, RunOptions]:
    """Read a configuration and the run's options from arguments.

    Settings in the arguments take precedence over those in ``--config``, whatever their order; all others have their
    defaults. ``--resume`` without ``--config`` reads the run folder's config.yaml.

    Raises:
        ConfigError: an argument, a file or a value is invalid.
    """
    options, arguments = _parse_options(argv)
    overrides = list(_overrides(arguments))
    settings: dict[str, Any] = {}
    if options.config is not None:
        settings = read_settings(options.config)
    elif options.resume and options.output is not None:
        source = options.output / "config.yaml"
        if not source.is_file():
            raise ConfigError(f"--resume must find a run in --output, but {str(source)!r} does not exist")
        settings = read_run_settings(source)
    if options.output is not None:
        settings["output"] = str(options.output)
    config = build(settings, overrides)
    if options.steps is not None and options.steps < 1:
        raise ConfigError(f"--steps must be at least 1, was {options.steps}")
    try:
        config.validate()
        validate_machine(config)
    except ValueError as error:
        raise ConfigError(one_line(str(error))) from error
    return config, RunOptions(resume=options.resume, steps=options.steps, overwrite=options.overwrite)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that are not settings."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings, see configs/")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in OUTPUT")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in OUTPUT first")
    parser.add_argument("--steps", type=int, metavar="N", help="end every stage after N steps in total")


def _parse_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the options that are not settings, and ``--output``; return the other arguments in their order."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_options(parser)
    parser.add_argument("--output", type=Path)
    try:
        options, arguments = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        reason = one_line(error.message)
        if error.argument_name == "--steps" and "invalid int" in reason:
            reason = f"must be an integer, was {reason.rpartition(': ')[2]}"
        raise ConfigError(f"{error.argument_name}: {reason}") from error
    if options.resume and options.overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: one continues a run, the other deletes it")
    return options, arguments


def _overrides(arguments: Sequence[str]) -> Iterator[Override]:
    """Settings given as ``--NAME VALUE`` or ``--NAME=VALUE``; those of ``--GROUP`` one by one."""
    types = dict(setting_types())
    remaining = iter(arguments)
    for argument in remaining:
        if not argument.startswith("--"):
            raise ConfigError(f"unrecognized arguments: {argument}")
        option, has_value, value = argument[2:].partition("=")
        name, operator = _setting_of(option, types)
        if not has_value:
            value = next(remaining, "--")
            if value.startswith("-") and not _is_number(value):
                raise ConfigError(f"--{option}: expected one argument")
        if is_dataclass(types[name]):
            group = _read_group(name, value)
            yield from (Override(*item) for item in leaves({name: group}).items())
        else:
            yield Override(name, value, operator)


def _setting_of(option: str, types: dict[str, Any]) -> tuple[str, str]:
    """Name and operator of an option: ``data.train+``, ``loss.perceptual_layers.conv1_2``."""
    if option in types:
        return option, ""
    if get_origin(types.get(option.removesuffix("+"))) is list:
        return option.removesuffix("+"), "+"
    group, _, key = option.rpartition(".")
    if key and is_mapping(types.get(group)):
        return group, f".{key}"
    close = nearest(option, COMMAND_LINE_ONLY)
    if "." not in option and SequenceMatcher(None, option, close).ratio() > 0.7:
        raise ConfigError(f"there is no option '--{option}'; did you mean '--{close}'?")
    raise ConfigError(unknown_name(option).replace(" setting '", " option '--").replace("mean '", "mean '--"))


def _read_group(name: str, value: str) -> dict[str, Any]:
    """The settings of a group, given as a YAML mapping or as the path of a file with one."""
    try:
        group = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        group = None
    if isinstance(group, str) and Path(value).is_file():
        group = read_yaml(value)
    if not isinstance(group, dict):
        raise ConfigError(f"{name} must be settings or a YAML file with them, was {value!r}")
    check_names({name: group}, f"--{name}")
    return group


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
