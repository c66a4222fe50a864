"""Which implementations of an op exist, which of them can run where, and which one a call gets.

Every op of :mod:`andfast.functional` registers its implementations here, fastest first. ``impl="auto"`` takes the first
that can run on the tensors' device and dtype; an explicit name that cannot run raises and says why. Nothing falls back
silently.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch

IMPLEMENTATIONS: Final = ("auto", "reference", "triton", "cuda", "cpp")
"""The names that an op's ``impl`` argument takes."""

WhyNot = Callable[[str], str | None]
"""Maps a device type ("cpu", "cuda", ...) to why an implementation cannot run there, or to None if it can."""

_TABLE: dict[str, dict[str, WhyNot]] = {}
_DTYPES: dict[tuple[str, str], tuple[torch.dtype, ...]] = {}


def register(
    op: str, implementations: Mapping[str, WhyNot], dtypes: Mapping[str, Sequence[torch.dtype]] | None = None
) -> None:
    """Declare the implementations of ``op``, fastest first, and the dtypes of those that do not take every one."""
    unknown = [name for name in implementations if name not in IMPLEMENTATIONS[1:]]
    if unknown:
        raise ValueError(f"implementations of {op} must be among {IMPLEMENTATIONS[1:]}, were {unknown}")
    _TABLE[op] = dict(implementations)
    _DTYPES.update({(op, name): tuple(some) for name, some in (dtypes or {}).items()})


def everywhere(_device_type: str) -> str | None:
    """The ``WhyNot`` of an implementation that runs on any device."""
    return None


# For torch.compile a call with these arguments is a constant: it asks for devices and packages, which cannot be traced.
@torch.compiler.assume_constant_result
def resolve(op: str, impl: str, device_type: str, dtype: torch.dtype | None = None) -> str:
    """Return the name of the implementation that ``op`` runs with on ``device_type``, for x of ``dtype``.

    Raises:
        ValueError: ``impl`` is no implementation's name.
        TypeError: the implementation asked for does not take this dtype.
        RuntimeError: the implementation asked for is not available here; the message says why.
    """
    table = _TABLE[op]
    if impl == "auto":
        for name, why_not in table.items():
            if _takes(op, name, dtype) and why_not(device_type) is None:
                return name
        raise RuntimeError(f"{op} has no implementation for device {device_type!r} and dtype {dtype}")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, was {impl!r}")
    if impl not in table:
        raise RuntimeError(f"impl={impl!r} is not available: {op} has no such implementation, only {', '.join(table)}")
    reason = table[impl](device_type)
    if reason is not None:
        raise RuntimeError(f"impl={impl!r} of {op} is not available: {reason}")
    if not _takes(op, impl, dtype):
        *most, last = (str(one).removeprefix("torch.") for one in _DTYPES[op, impl])
        raise TypeError(f"x must be {', '.join(most)} or {last} with impl={impl!r}, was {dtype}")
    return impl


def _takes(op: str, name: str, dtype: torch.dtype | None) -> bool:
    return dtype is None or dtype in _DTYPES.get((op, name), (dtype,))


def chosen(device_type: str, impl: str = "auto") -> dict[str, str]:
    """The implementation that ``impl`` gives for every op on ``device_type``; for logs and summaries."""
    return {op: resolve(op, impl, device_type) for op in sorted(_TABLE)}


def available(op: str, device_type: str, dtype: torch.dtype | None = None) -> tuple[str, ...]:
    """The implementations of ``op`` that can run on ``device_type``, for x of ``dtype``; fastest first."""
    return tuple(
        name for name, why_not in _TABLE[op].items() if _takes(op, name, dtype) and why_not(device_type) is None
    )


def unavailable(device_type: str) -> dict[str, dict[str, str]]:
    """For every op, the implementations that cannot run on ``device_type``, each with its reason."""
    reasons = {
        op: {name: reason for name, why_not in table.items() if (reason := why_not(device_type)) is not None}
        for op, table in sorted(_TABLE.items())
    }
    return {op: found for op, found in reasons.items() if found}
