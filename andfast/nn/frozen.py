"""Networks that only serve: no gradient to their parameters, and no trace of having run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
    before = [one.clone() for one in buffers]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.no_grad():
            for one, old in zip(buffers, before, strict=True):
                one.copy_(old)
