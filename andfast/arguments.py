"""Argument types for argparse with error messages that state the valid range.

Kept apart from ``andfast.checks``, which imports torch: ``andfast.prepare`` starts without it.
"""

import argparse
from collections.abc import Callable


def integer(minimum: int) -> Callable[[str], int]:
    """Argument type of an integer of at least ``minimum``."""

    def number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, was {value}")
        return value

    number.__name__ = "integer"  # the name in argparse's message when int() raises
    return number


def positive(text: str) -> float:
    """Argument type of a number above 0, possibly infinite."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, was {text}")
    return value


positive.__name__ = "number"
