"""Values of settings: parsed by jsonargparse one at a time, so that an error can name the setting and the value."""

import argparse
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, get_args, get_origin

import jsonargparse
import yaml

from andfast.config.errors import ConfigError, choices_text, nearest, one_line

_TYPE_NAMES: Final = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}


def parse_value(name: str, hint: Any, value: object, *, current: object = None, operator: str = "") -> Any:
    """Convert a value from YAML or from the command line to a setting's type.

    Args:
        name: dotted name, for errors.
        hint: type of the setting.
        value: a text, which is read as YAML unless the setting is a text; or any other YAML value.
        current: value so far, for ``operator``.
        operator: "+" to append to a list, ".KEY" to set one item of a mapping.

    Raises:
        ConfigError: ``value`` is not of the type; the message has the nearest valid value of an enumeration.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False, print_config=None)
    parser.add_argument("--value", type=hint, default=current)
    try:
        if hint == list[str] and (texts := _texts(value)) is not None:
            return [*_as_list(current), *texts] if operator == "+" else texts
        if isinstance(value, str):
            result = parser.parse_args([f"--value{operator}={value}"]).value
        else:
            result = parser.parse_object({"value": value}).value
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        text = one_line(str(value))
        raise ConfigError(f"{name} must be {describe(hint)}, was {text!r}{_nearest(hint, text)}") from error
    return dict(result) if get_origin(hint) is dict else result


def _as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _texts(value: object) -> list[str] | None:
    """A list of texts as written, or None: ``[~/a, 2024]`` is two paths, though YAML reads a number in it."""
    if isinstance(value, str):
        try:
            value = yaml.load(value, Loader=yaml.BaseLoader)
        except yaml.YAMLError:
            return None
    if not isinstance(value, list):
        return None
    texts = [str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in value]
    return texts if all(isinstance(text, str) for text in texts) else None


def describe(hint: Any) -> str:
    """The values of a type in words: "an integer or null"."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return choices_text(arguments)
    if isinstance(hint, UnionType):
        return " or ".join("null" if member is NoneType else describe(member) for member in arguments)
    if get_origin(hint) is list:
        items = describe(arguments[0]) if get_origin(arguments[0]) is Literal else "texts"
        return f"a list of {items}, such as [{', '.join(map(str, get_args(arguments[0]))) or 'a, b'}]"
    if get_origin(hint) is tuple:
        return "two numbers, such as [0.9, 0.99]"
    if get_origin(hint) is dict:
        return "names with numbers, such as {conv5_4: 1.0}"
    return _TYPE_NAMES.get(hint, "a group of settings")


def _nearest(hint: Any, text: str) -> str:
    """A suggestion of the nearest value of an enumeration, empty for other types."""
    literal = get_args(hint)[0] if get_origin(hint) is list else hint
    if get_origin(literal) is not Literal:
        return ""
    choices = get_args(literal)
    if all(isinstance(choice, int) for choice in choices):
        try:
            number = float(text)
        except ValueError:
            return ""
        return f"; the nearest is {min(choices, key=lambda choice: abs(choice - number))}"
    return f"; did you mean {nearest(text, map(str, choices))!r}?"
