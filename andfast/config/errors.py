"""The error of an unusable configuration, and text helpers for one-line messages."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """Invalid configuration or command line; the message is one line."""


def one_line(text: str) -> str:
    """Collapse line breaks and runs of blanks."""
    return " ".join(text.split())


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice spelled most like ``word``, however unlike it is."""
    return get_close_matches(word, list(choices), n=1, cutoff=0.0)[0]


def choices_text(choices: Iterable[object]) -> str:
    """``'a', 'b' or 'c'``."""
    *first, last = [repr(choice) for choice in choices]
    return f"{', '.join(first)} or {last}" if first else last
