"""Argument checks shared by the ops: each error names the argument, what it must be, and what it was."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def shape(tensor: Tensor) -> str:
    """The shape of a tensor as text, such as "(2, 3, 8, 8)"."""
    return str(tuple(tensor.shape))


def tensor(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, was {type(value).__name__}")


def images(name: str, value: Tensor) -> None:
    """Raise unless ``value`` is a floating-point tensor (N, C, H, W)."""
    tensor(name, value)
    if value.dim() != 4:
        raise ValueError(f"{name} must have shape (N, C, H, W), was {shape(value)}")
    floating(name, value)


def floating(name: str, value: Tensor) -> None:
    """Raise TypeError for integer, boolean and complex tensors."""
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, was {value.dtype}")


def like(name: str, value: Tensor, expected_name: str, expected: Tensor, *, dtype: bool = True) -> None:
    """Raise unless ``value`` has the device, and with ``dtype`` the dtype, of ``expected``."""
    if value.device != expected.device:
        raise ValueError(f"{name} must be on the device of {expected_name}, {expected.device}, was on {value.device}")
    if dtype and value.dtype != expected.dtype:
        raise TypeError(f"{name} must have the dtype of {expected_name}, {expected.dtype}, was {value.dtype}")


def no_gradient(name: str, value: Tensor) -> None:
    """Raise ValueError if ``value`` requires a gradient, which is not computed."""
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} must not require a gradient (detach it): it is a target, and gets none")


def has_shape(name: str, value: Tensor, *allowed: Sequence[int], meaning: str) -> None:
    """Raise ValueError unless the shape is one of ``allowed``; ``meaning`` names them in symbols."""
    if not any(tuple(value.shape) == tuple(sizes) for sizes in allowed):
        shapes = " or ".join(str(tuple(sizes)) for sizes in allowed)
        raise ValueError(f"{name} must have shape {meaning}, here {shapes}, was {shape(value)}")


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, was {value!r}")


def positive_int(name: str, value: object) -> None:
    """Raise unless ``value`` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, was {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, was {value}")


def not_negative(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number of at least 0."""
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, was {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and 0 or more, was {value}")


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of the active autocast region for this device type, or None outside of one."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):  # meta tensors have no autocast
        return torch.get_autocast_dtype(device_type)
    return None
