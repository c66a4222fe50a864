"""Argument checks shared by the ops: each error names the argument, what it must be, and what it was."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def shape(tensor: Tensor) -> str:
    """A tensor's shape as people write it, "(2, 3, 8, 8)"."""
    return str(tuple(tensor.shape))


def tensor(name: str, value: object) -> None:
    """Refuse what is not a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, was {type(value).__name__}")


def images(name: str, value: Tensor) -> None:
    """Refuse what is not a floating-point (N, C, H, W) tensor."""
    tensor(name, value)
    if value.dim() != 4:
        raise ValueError(f"{name} must have shape (N, C, H, W), was {shape(value)}")
    floating(name, value)


def floating(name: str, value: Tensor) -> None:
    """Refuse integer, boolean and complex tensors."""
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, was {value.dtype}")


def like(name: str, value: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    """Refuse a tensor whose device, or dtype, differs from another's."""
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, was on {value.device}")
    if dtype and value.dtype != other.dtype:
        raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}, was {value.dtype}")


def no_gradient(name: str, value: Tensor) -> None:
    """Refuse a tensor that asks for a gradient where none is computed."""
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} must not require a gradient (detach it): it is a target, and gets none")


def has_shape(name: str, value: Tensor, *allowed: Sequence[int], meaning: str) -> None:
    """Refuse a tensor whose shape is none of those allowed; ``meaning`` names them in symbols."""
    if not any(tuple(value.shape) == tuple(one) for one in allowed):
        sizes = " or ".join(str(tuple(one)) for one in allowed)
        raise ValueError(f"{name} must have shape {meaning}, here {sizes}, was {shape(value)}")


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a string that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, was {value!r}")


def not_negative(name: str, value: object) -> None:
    """Refuse what is not a finite number of 0 or more."""
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, was {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and 0 or more, was {value}")


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that an active autocast region asks for on this device type, or None outside of one."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):  # there is no autocast for meta tensors
        return torch.get_autocast_dtype(device_type)
    return None
