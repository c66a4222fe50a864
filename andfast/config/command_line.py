"""The command line of ``python -m andfast.train``: options and settings in, a validated configuration out."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Final, NoReturn, get_origin

import jsonargparse
import yaml

from andfast.config.errors import ConfigError, nearest, one_line
from andfast.config.files import Override, build, read_run_settings, read_settings
from andfast.config.machine import validate_machine
from andfast.config.names import COMMAND_LINE_ONLY, check_names, is_mapping, leaves, setting_types, unknown_name
from andfast.config.schema import RunOptions, TrainConfig
from andfast.config.yaml_files import read_yaml

PROGRAM: Final = "python -m andfast.train"


def parse_train(argv: Sequence[str] | None = None) -> tuple[TrainConfig, RunOptions]:
    """Parse a command line; None takes ``sys.argv``.

    Raises:
        SystemExit: with status 0 after ``--help``; with status 2 after one line on stderr on an error.
    """
    try:
        return read_command_line(sys.argv[1:] if argv is None else list(argv))
    except ConfigError as error:
        fail(str(error))


def fail(message: str, *, status: int = 2) -> NoReturn:
    """End the program with one line on stderr."""
    print(f"{PROGRAM}: error: {one_line(message)}", file=sys.stderr)
    raise SystemExit(status)


def read_command_line(argv: Sequence[str]) -> tuple[TrainConfig, RunOptions]:
    """As :func:`parse_train`, but errors are raised.

    A setting comes from the command line, else from ``--config``, else it has its default, whatever the order of the
    arguments. ``--resume`` without ``--config`` reads the run folder's config.yaml.

    Raises:
        ConfigError: the command line, a file or a value is invalid.
        SystemExit: after ``--help``.
    """
    if "-h" in argv or "--help" in argv:
        _help_parser().parse_args(["--help"])
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


def _parse_options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the options that are not settings, and ``--output``; return the other arguments in their order."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_options(parser)
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


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that are not settings."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings, see configs/")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in OUTPUT")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in OUTPUT first")
    parser.add_argument("--steps", type=int, metavar="N", help="end every stage after N steps in total")


def _help_parser() -> jsonargparse.ArgumentParser:
    """A parser that prints every setting with its docstring."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=PROGRAM,
        description="Train blind super-resolution with adversarial neural degradation. Every setting below "
        "can be set in the YAML file, as 'group: {name: value}', or as an option, --group.name value.",
        print_config=None,
    )
    _add_options(parser)
    parser.add_class_arguments(TrainConfig)
    return parser


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
