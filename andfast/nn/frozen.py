"""Networks that only serve: no gradient to their parameters, and no trace of having run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Inside, the modules' parameters require no gradient; afterwards, their buffers are as they were.

    With frozen parameters autograd neither computes weight gradients nor keeps the activations that these would need.
    Restoring the buffers means that batch statistics and spectral norms, which a forward pass in training mode moves,
    stay those of the training passes. The training mode itself is left as it is.

    Args:
        modules: any number of modules; None is passed over.
    """
    present = [module for module in modules if module is not None]
    parameters = [one for module in present for one in module.parameters() if one.requires_grad]
    buffers = [one for module in present for one in module.buffers()]
    before = copies(buffers)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        put_back(buffers, before)


@torch.no_grad()
def copies(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies in the same memory formats, in ``dtype`` if given; a few launches however many there are."""
    made = [torch.empty_like(one, dtype=dtype) for one in tensors]
    put_back(made, tensors)
    return made


@torch.no_grad()
def put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors, in place."""
    if tensors:  # torch refuses empty lists
        torch._foreach_copy_(list(tensors), list(values))
