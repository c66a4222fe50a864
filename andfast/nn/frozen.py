"""Temporarily freeze networks: no parameter gradients, and buffers restored afterwards."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Context manager that disables the modules' parameter gradients and restores their buffers on exit.

    With frozen parameters autograd neither computes weight gradients nor saves the activations they require. Restoring
    the buffers undoes the updates of batch statistics and spectral norms by forward passes in training mode. The
    training mode is unchanged.

    Args:
        modules: modules; None is ignored.
    """
    present = [module for module in modules if module is not None]
    parameters = [p for module in present for p in module.parameters() if p.requires_grad]
    buffers = [buffer for module in present for buffer in module.buffers()]
    saved = copies(buffers)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        put_back(buffers, saved)


@torch.no_grad()
def copies(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies in the same memory formats, converted to ``dtype`` if not None, in a few launches."""
    result = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    put_back(result, tensors)
    return result


@torch.no_grad()
def put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors in place."""
    if tensors:  # _foreach_copy_ raises on empty lists
        torch._foreach_copy_(list(tensors), list(values))
