"""The command line of ``python -m andfast.train``: help, and errors as one line on stderr."""

import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import jsonargparse

from andfast.config.errors import ConfigError, one_line
from andfast.config.parsing import add_options, parse_arguments
from andfast.config.schema import RunOptions, TrainConfig

PROGRAM: Final = "python -m andfast.train"


def parse_train(argv: Sequence[str] | None = None) -> tuple[TrainConfig, RunOptions]:
    """Parse a command line; None takes ``sys.argv``.

    Raises:
        SystemExit: with status 0 after ``--help``; with status 2 after one line on stderr on an error.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if "-h" in arguments or "--help" in arguments:
        _help_parser().parse_args(["--help"])
    try:
        return parse_arguments(arguments)
    except ConfigError as error:
        fail(str(error))


def fail(message: str, *, status: int = 2) -> NoReturn:
    """End the program with one line on stderr."""
    print(f"{PROGRAM}: error: {one_line(message)}", file=sys.stderr)
    raise SystemExit(status)


def _help_parser() -> jsonargparse.ArgumentParser:
    """A parser that prints every setting with its docstring."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=PROGRAM,
        description="Train blind super-resolution with adversarial neural degradation. Every setting below "
        "can be set in the YAML file, as 'group: {name: value}', or as an option, --group.name value.",
        print_config=None,
    )
    add_options(parser)
    parser.add_class_arguments(TrainConfig)
    return parser
