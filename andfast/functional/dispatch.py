"""Registry of each op's implementations, and selection among them.

Every op of :mod:`andfast.functional` registers its implementations here, fastest first, optionally with another order
per compute capability. ``impl="auto"`` selects the first that supports the tensors' device, dtype and channels; an
explicit name that cannot run raises with the reason. Nothing falls back silently.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import torch

from andfast.functional.constant_result import constant_result

IMPLEMENTATIONS: Final = ("auto", "reference", "triton", "cuda", "cpp")
"""Valid values of an op's ``impl`` argument."""

WhyNot = Callable[[str], str | None]
"""Maps a device type ("cpu", "cuda", ...) to why an implementation cannot run there, or to None if it can."""


class Ranking(NamedTuple):
    """The implementations of an op on devices of one major compute capability, fastest first.

    Attributes:
        names: all implementations, for x in bf16 and fp16; other dtypes use the order of registration.
        measured: whether the order was measured on such a device; otherwise it follows from operation counts.
    """

    names: tuple[str, ...]
    measured: bool


_NATIVE: Final = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}
_logger = logging.getLogger(__name__)
_logged: set[tuple[str, str, str]] = set()

_TABLE: dict[str, dict[str, WhyNot]] = {}
_DTYPES: dict[tuple[str, str], tuple[torch.dtype, ...]] = {}
_RANKINGS: dict[str, dict[int, Ranking]] = {}
_MEASURED: dict[str, tuple[int, ...]] = {}
_RANKED_DTYPES = (None, torch.bfloat16, torch.float16)


def register(
    op: str,
    implementations: Mapping[str, WhyNot],
    dtypes: Mapping[str, Sequence[torch.dtype]] | None = None,
    *,
    rankings: Mapping[int, Ranking] | None = None,
    measured: Sequence[int] = (),
) -> None:
    """Register the implementations of ``op``.

    Args:
        op: its name.
        implementations: where each can run, fastest first.
        dtypes: supported dtypes of x, for implementations that do not support all.
        rankings: orders by major compute capability.
        measured: major compute capabilities on which the order of registration was measured.
    """
    unknown = [name for name in implementations if name not in IMPLEMENTATIONS[1:]]
    if unknown:
        raise ValueError(f"implementations of {op} must be among {IMPLEMENTATIONS[1:]}, were {unknown}")
    _TABLE[op] = dict(implementations)
    _DTYPES.update({(op, name): tuple(supported) for name, supported in (dtypes or {}).items()})
    _RANKINGS[op] = dict(rankings or {})
    _MEASURED[op] = tuple(measured)


def everywhere(_device_type: str) -> str | None:
    """The ``WhyNot`` of an implementation that runs on any device."""
    return None


# A constant for torch.compile, which cannot trace queries of devices and packages.
@constant_result
def resolve(
    op: str,
    impl: str,
    device_type: str,
    dtype: torch.dtype | None = None,
    no_cuda: str | None = None,
) -> str:
    """Return the name of the implementation that ``op`` runs with on ``device_type``, for x of ``dtype``.

    ``no_cuda`` is the reason why "cuda" does not support these arguments, or None if it does.

    Raises:
        ValueError: ``impl`` is not a known name, or ``no_cuda`` rules it out.
        TypeError: ``impl`` does not support this dtype.
        RuntimeError: ``impl`` is not available here; the message says why.
    """
    table = _TABLE[op]
    if impl == "auto":
        for name in available(op, device_type, dtype):
            if name != "cuda" or no_cuda is None:
                _log_missing(op, name, device_type, dtype)
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
        *most, last = (str(supported).removeprefix("torch.") for supported in _DTYPES[op, impl])
        raise TypeError(f"x must be {', '.join(most)} or {last} with impl={impl!r}, was {dtype}")
    if impl == "cuda" and no_cuda is not None:
        raise ValueError(f"{no_cuda} with impl='cuda' of {op}")
    return impl


def _log_missing(op: str, used: str, device_type: str, dtype: torch.dtype | None) -> None:
    """Log, once per reason, which implementations written for this device type cannot run here."""
    for name in _NATIVE.get(device_type, ()):
        reason = _TABLE[op][name](device_type) if name in _TABLE[op] and _takes(op, name, dtype) else None
        if reason is not None and (op, name, reason) not in _logged:
            _logged.add((op, name, reason))
            _logger.warning("impl=%r of %s is not available: %s; auto takes %r", name, op, reason, used)


def _takes(op: str, name: str, dtype: torch.dtype | None) -> bool:
    return dtype is None or dtype in _DTYPES.get((op, name), (dtype,))


def chosen(device_type: str, impl: str = "auto") -> dict[str, str]:
    """The implementation of every op that ``impl`` selects on ``device_type``; for logs and summaries."""
    return {op: resolve(op, impl, device_type) for op in sorted(_TABLE)}


def available(op: str, device_type: str, dtype: torch.dtype | None = None) -> tuple[str, ...]:
    """The implementations of ``op`` that can run on ``device_type``, for x of ``dtype``; fastest first."""
    table = _TABLE[op]
    ranking = _ranking(op, device_type) if dtype in _RANKED_DTYPES else None
    names = table if ranking is None else ranking.names
    return tuple(name for name in names if _takes(op, name, dtype) and table[name](device_type) is None)


def basis(op: str, device_type: str) -> str | None:
    """What the order of ``op``'s implementations on this device rests on, if it was not measured on such a device.

    "counts" of operations, or "default order", that of registration; None where it was measured, and where there is
    nothing to choose.
    """
    capability = _capability(device_type)
    if capability is None or len(available(op, device_type)) < 2:
        return None
    ranking = _RANKINGS[op].get(capability)
    if ranking is not None:
        return None if ranking.measured else "counts"
    return None if capability in _MEASURED[op] else "default order"


def _ranking(op: str, device_type: str) -> Ranking | None:
    capability = _capability(device_type)
    return None if capability is None else _RANKINGS[op].get(capability)


def _capability(device_type: str) -> int | None:
    """Major compute capability of the current device; None if it is not a CUDA device."""
    if device_type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability()[0]


def unavailable(device_type: str) -> dict[str, dict[str, str]]:
    """For every op, the implementations that cannot run on ``device_type``, each with its reason."""
    reasons = {
        op: {name: reason for name, why_not in table.items() if (reason := why_not(device_type)) is not None}
        for op, table in sorted(_TABLE.items())
    }
    return {op: by_name for op, by_name in reasons.items() if by_name}
