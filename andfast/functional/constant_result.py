"""A decorator for functions that torch.compile must not trace."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def constant_result(function: Callable[P, R]) -> Callable[P, R]:
    """Let torch.compile take the function's result as a constant.

    :func:`torch.compiler.assume_constant_result` does the same, and imports the compiler: a second at the start of
    every command.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
