"""Checks of single values, shared by the groups of settings. Errors name the setting, the rule and the value."""

import math
from collections.abc import Callable


def check_number(name: str, value: float | None, rule: Callable[[float], bool], must_be: str) -> None:
    """Check that a number is finite, below 2**63 and satisfies ``rule``; None, the default, passes.

    Raises:
        ValueError: otherwise.
    """
    if value is None:
        return
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError(f"{name} must be {must_be} and below 2**63, was larger")
    if not (math.isfinite(value) and rule(value)):
        raise ValueError(f"{name} must be {must_be}, was {value}")


def check_at_least(name: str, value: int | None, minimum: int) -> None:
    """Check a lower bound; None passes."""
    check_number(name, value, lambda number: number >= minimum, f"at least {minimum}")


def check_positive(name: str, value: float | None, must_be: str = "a number above 0") -> None:
    """Check that a number is above 0; None passes."""
    check_number(name, value, lambda number: number > 0, must_be)


def check_multiple(name: str, value: int, factor: int, reason: str) -> None:
    """Check divisibility; the error names the nearest multiples."""
    if value % factor:
        below = value // factor * factor
        nearest = f"{below} or {below + factor}" if below else f"{factor}"
        raise ValueError(f"{name} must be divisible by {factor} ({reason}), was {value}; the nearest are {nearest}")
