"""Types of command line arguments, for argparse: each refuses what it is not in a line that says what it must be."""

import argparse
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least that."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, was {value}")
        return value

    number.__name__ = "whole number"  # what argparse calls a value that int() refuses
    return number


def positive(text: str) -> float:
    """A number above 0, which may be infinite."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, was {text}")
    return value


positive.__name__ = "number"
