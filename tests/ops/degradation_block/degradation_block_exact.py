"""What the degradation block's kernels are compared with: the reference in float64."""

from typing import Any

import torch
from torch import Tensor

import andfast.functional  # noqa: F401  (registers the ops)

FORWARD = torch.ops.andfast.degradation_block
BACKWARD = torch.ops.andfast.degradation_block_backward


def exact_results(arguments: list[Any], padding: str, grad: Tensor) -> list[Tensor]:
    """Output and gradients to x, weight, slope and noise of the reference in float64."""
    x, weight, slope, noise = (None if one is None else one.detach().double() for one in arguments)
    out, saved = FORWARD(x, weight, slope, noise, padding, True, "reference")
    shape = [0] if noise is None else list(noise.shape)
    wanted = [True, True, True, noise is not None]
    grads = BACKWARD(
        grad.double(), x, weight, slope, saved, shape, torch.float64, padding, wanted, "reference"
    )  # fmt: skip
    return [out, *grads]
