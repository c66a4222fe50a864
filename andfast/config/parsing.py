"""Reading and writing configurations: YAML files and command lines in, dataclasses out, and back.

jsonargparse does the parsing. Around it: names are checked first, so that an unknown one is refused with the
nearest valid one, and its errors are put into one line each that names the field, what it must be, and what
it was.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, NoReturn, get_args, get_origin, get_type_hints

import jsonargparse

from andfast.config.checks import choices_text, nearest, validate, validate_machine
from andfast.config.renames import original_name, renamed, translate
from andfast.config.schema import RunOptions, TrainConfig
from andfast.config.yaml_files import ConfigError, means_null, one_line, read_yaml, write_yaml

PROGRAM: Final = "python -m andfast.train"
COMMAND_LINE_ONLY: Final = ("config", "resume", "overwrite", "steps", "help")

FREE_ON_RESUME: Final = (
    "output", "device", "channels_last", "compile", "cuda_graph", "reuse.closed_form_first_step", "reuse.hr_features",
    "reuse.cast_weights", "net.steps", "gan.steps", "data.pack", "data.workers", "validation", "log_every",
    "tensorboard", "checkpoint_every", "keep_checkpoints",
)  # fmt: skip
"""Settings, or groups of them, that may change when a run is resumed: what is computed stays the same."""

_DICTS: Final = ("loss.perceptual_layers",)  # their keys are data, not names of settings
_TYPE_NAMES: Final = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}


def parse_train(argv: Sequence[str] | None = None) -> tuple[TrainConfig, RunOptions]:
    """Parse the command line of ``python -m andfast.train``; None takes ``sys.argv``.

    A setting comes from the command line, else from ``--config``, else from its default, whatever the order
    of the arguments. ``--resume`` without ``--config`` takes the run folder's own config.yaml.

    Raises:
        SystemExit: with status 0 after ``--help``, with status 2 after one line on stderr for what is
            unusable.
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
    """As :func:`parse_train`, for use as a library.

    Raises:
        ConfigError: the command line, the file or a value cannot be used.
        SystemExit: after ``--help``.
    """
    if "-h" in argv or "--help" in argv:
        _parser().parse_args(["--help"])
    first, others = _first_look(argv)
    _check_options(others)
    source: Path | None = first.config
    command = others
    if first.resume and source is None and first.output is not None:
        source = first.output / "config.yaml"
        if not source.is_file():
            raise ConfigError(f"--resume must find a run in --output, but {str(source)!r} does not exist")
        command = [*_from_run(source), *others]
    elif source is not None:
        found = read_yaml(source)
        check_names(found, str(source))
        command = [*(["--config", str(source)] if found else []), *others]  # jsonargparse takes no empty file
    if first.output is not None:
        command.append(f"--output={first.output}")
    config = _parse(command)
    steps: int | None = first.steps
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps must be at least 1, was {steps}")
    try:
        validate(config)
        validate_machine(config)
    except ValueError as error:
        raise ConfigError(one_line(str(error))) from error
    return config, RunOptions(resume=first.resume, steps=steps, overwrite=first.overwrite)


def load(path: str | Path) -> TrainConfig:
    """Read the config.yaml that a run has written; old names of settings are translated.

    Raises:
        ConfigError: the file cannot be read, or a name or a value in it is not valid.
    """
    config = _parse(_from_run(path))
    try:
        validate(config)
    except ValueError as error:
        raise ConfigError(one_line(str(error))) from error
    return config


def _from_run(path: str | Path) -> list[str]:
    """Arguments that give jsonargparse the settings of a run's config.yaml."""
    settings = translate(read_yaml(path))
    check_names(settings, str(path))
    return ["--config", write_yaml(settings)] if settings else []


def dump(config: TrainConfig) -> str:
    """The resolved configuration as YAML; :func:`load` reads the same configuration back."""
    return write_yaml(tree(config))


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


def digest(config: TrainConfig) -> str:
    """SHA-256 (hexadecimal) of the settings that decide what is computed, without :data:`FREE_ON_RESUME`."""
    kept = {original_name(name): value for name, value in _leaves(tree(config)).items() if not _free(name)}
    return hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()


def differences(earlier: TrainConfig, now: TrainConfig) -> dict[str, tuple[object, object]]:
    """Settings outside :data:`FREE_ON_RESUME` that differ: dotted name to (earlier value, value now)."""
    before, after = _leaves(tree(earlier)), _leaves(tree(now))
    names = [name for name in {**before, **after} if not _free(name) and before.get(name) != after.get(name)]
    return {name: (before.get(name), after.get(name)) for name in names}


def check_names(found: Mapping[Any, Any], where: str, group: type = TrainConfig, prefix: str = "") -> None:
    """Refuse names that are no settings.

    Raises:
        ConfigError: an unknown name, with the nearest valid one, or a group that holds no settings.
    """
    hints = get_type_hints(group)
    for key, value in found.items():
        name = f"{prefix}{key}"
        if key not in hints:
            inner = f"{name}.{next(iter(value))}" if isinstance(value, Mapping) and value else name
            raise ConfigError(f"{where}: {renamed(inner) or _unknown(name)}")
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {name} must be a group of settings, was {value!r}")
            check_names(value, where, hints[key], f"{name}.")
        elif value is None and NoneType not in get_args(hints[key]):
            raise ConfigError(f"{where}: {name} must be {_describe(hints[key])}, was null")
        elif isinstance(value, str) and NoneType in get_args(hints[key]) and means_null(value):
            raise ConfigError(f"{where}: {name} must not be the text {value!r}, write null or {'./' + value!r}")


def setting_types(group: type = TrainConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All settings: dotted name and type, groups before their members."""
    for name, hint in get_type_hints(group).items():
        yield f"{prefix}{name}", hint
        if is_dataclass(hint):
            yield from setting_types(hint, f"{prefix}{name}.")  # type: ignore[arg-type]


def _unknown(name: str) -> str:
    """The error for an unknown setting."""
    if (message := renamed(name)) is not None:
        return message
    if name in COMMAND_LINE_ONLY:
        return f"{name!r} is not a setting, it is given on the command line only: --{name}"
    known = [setting for setting, hint in setting_types() if not is_dataclass(hint)]

    def likeness(setting: str) -> float:
        whole = SequenceMatcher(None, name, setting).ratio()
        last = SequenceMatcher(None, name.rpartition(".")[2], setting.rpartition(".")[2]).ratio()
        return max(whole, last - 0.01)  # "lr" means net.lr, "net.lrr" too

    return f"there is no setting {name!r}; did you mean {max(known, key=likeness)!r}?"


def _first_look(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Take the options that are no settings, and ``--output``; the others are left for jsonargparse."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_options(parser)
    parser.add_argument("--output", type=Path)
    try:
        first, others = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        what = one_line(error.message)
        if error.argument_name == "--steps" and "invalid int" in what:
            what = f"must be an integer, was {what.rpartition(': ')[2]}"
        raise ConfigError(f"{error.argument_name}: {what}") from error
    if first.resume and first.overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: one goes on with a run, one deletes it")
    return first, others


def _add_options(parser: Any) -> None:
    """The options that are no settings."""
    config = {"action": "config"} if isinstance(parser, jsonargparse.ArgumentParser) else {"type": Path}
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings, see configs/", **config)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in OUTPUT")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in OUTPUT first")
    parser.add_argument("--steps", type=int, metavar="N", help="end every stage after N steps in all")


def _check_options(arguments: Sequence[str]) -> None:
    """Refuse unknown options before jsonargparse sees them."""
    known = {name for name, _ in setting_types()} | set(COMMAND_LINE_ONLY)
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name = argument[2:].partition("=")[0].removesuffix("+")
        if name not in known and not name.startswith(tuple(f"{setting}." for setting in _DICTS)):
            if name.rpartition(".")[2] == name:
                option = nearest(name, COMMAND_LINE_ONLY)
                if SequenceMatcher(None, name, option).ratio() > 0.7:
                    raise ConfigError(f"there is no option '--{name}'; did you mean '--{option}'?")
            raise ConfigError(_unknown(name).replace(" setting '", " option '--").replace("mean '", "mean '--"))


def _parser() -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=PROGRAM,
        description="Train blind super-resolution with adversarial neural degradation. Every setting below "
        "can be set in the YAML file, as 'group: {name: value}', or as an option, --group.name value.",
        exit_on_error=False,
        allow_abbrev=False,
        print_config=None,
    )
    _add_options(parser)
    parser.add_class_arguments(TrainConfig)
    return parser


def _parse(command: Sequence[str]) -> TrainConfig:
    """Let jsonargparse read files and options; names have been checked."""
    parser = _parser()
    try:
        found = parser.instantiate(parser.parse_args(list(command)))
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_explain(str(error))) from error
    config = TrainConfig(**{field.name: getattr(found, field.name) for field in fields(TrainConfig)})
    return replace(config, loss=replace(config.loss, perceptual_layers=dict(config.loss.perceptual_layers)))


def _explain(message: str) -> str:
    """An error of jsonargparse in one line: field, what it must be, what it was, the nearest valid value."""
    if "are required: output" in message or 'Key "output" is required' in message:
        return "--output must be given: the folder of the run"
    group = re.search(r"Group '(.*)' does not accept (?:nested key|option) '(.*?)'", message)
    if group:
        return _unknown(f"{group[1]}.{group[2].removeprefix(group[1] + '.')}")
    unloadable = re.search(r'^Parser key "(.+?)":\s*Unable to load config [\'"](.*?)[\'"]', message, re.DOTALL)
    if unloadable:
        return f"{unloadable[1]} must be settings or a YAML file with them, was {unloadable[2]!r}"
    value = re.search(r'^Parser key "(.+?)":.*(?:Got|Given) value: (.*)$', message, re.DOTALL)
    types = dict(setting_types())
    other = re.search(r'^Parser key "(.+?)":\s*(.*)$', message, re.DOTALL)
    if value is None and other is not None and other[1] in types:
        return f"{other[1]} must be {_describe(types[other[1]])}: {one_line(other[2])}"
    if value is None or value[1] not in types:
        return one_line(message)
    name, text, hint = value[1], one_line(value[2]), types[value[1]]
    return f"{name} must be {_describe(hint)}, was {text!r}{_nearest_value(hint, text)}"


def _describe(hint: Any) -> str:
    """What a value of a type is, in words."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return choices_text(arguments)
    if isinstance(hint, UnionType):
        return " or ".join("null" if one is NoneType else _describe(one) for one in arguments)
    if get_origin(hint) is list:
        inner = _describe(arguments[0]) if get_origin(arguments[0]) is Literal else "texts"
        return f"a list of {inner}, such as [{', '.join(map(str, get_args(arguments[0]))) or 'a, b'}]"
    if get_origin(hint) is tuple:
        return "two numbers, such as [0.9, 0.99]"
    if get_origin(hint) is dict:
        return "names with numbers, such as {conv5_4: 1.0}"
    return _TYPE_NAMES.get(hint, "a group of settings")


def _nearest_value(hint: Any, text: str) -> str:
    """A hint at the nearest valid value of an enumeration."""
    choices = get_args(get_args(hint)[0]) if get_origin(hint) is list else get_args(hint)
    if get_origin(hint) is list and get_origin(get_args(hint)[0]) is not Literal:
        return ""
    if get_origin(hint) not in (Literal, list):
        return ""
    if all(isinstance(choice, int) for choice in choices):
        try:
            number = float(text)
        except ValueError:
            return ""
        return f"; the nearest is {min(choices, key=lambda choice: abs(choice - number))}"
    return f"; did you mean {nearest(text, map(str, choices))!r}?"


def _leaves(group: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in group.items():
        dotted = f"{prefix}{name}"
        found |= (
            _leaves(value, f"{dotted}.") if isinstance(value, Mapping) and dotted not in _DICTS else {dotted: value}
        )
    return found


def _free(name: str) -> bool:
    return name in FREE_ON_RESUME or name.partition(".")[0] in FREE_ON_RESUME
