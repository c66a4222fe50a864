"""References and inputs for tests of the degradation block's kernels."""

from typing import Any

import torch
from torch import Tensor

import andfast.functional  # noqa: F401  (registers the ops)

FORWARD = torch.ops.andfast.degradation_block
BACKWARD = torch.ops.andfast.degradation_block_backward


def exact_results(arguments: list[Any], padding: str, grad: Tensor) -> list[Tensor]:
    """Output and gradients to x, weight, slope and noise of the reference in float64."""
    x, weight, slope, noise = (None if tensor is None else tensor.detach().double() for tensor in arguments)
    out, saved = FORWARD(x, weight, slope, noise, padding, True, "reference")
    shape = [0] if noise is None else list(noise.shape)
    needs_grad = [True, True, True, noise is not None]
    grads = BACKWARD(
        grad.double(), x, weight, slope, saved, shape, torch.float64, padding, needs_grad, "reference"
    )  # fmt: skip
    return [out, *grads]


def inputs_clear_of_zero(
    n: int, c_in: int, c_out: int, height: int, width: int, device: str = "cuda"
) -> tuple[Tensor, Tensor]:
    """x and per-image weights whose pre-activations are near 2 or -2.

    The gradient jumps where a pre-activation is 0. Of 4 million normally distributed ones, about one has a different
    sign in fp32 and float64, which alone is a relative error of 5e-4 in the gradients to x and weight.
    """

    def signs(*shape: int) -> Tensor:
        return torch.where(torch.rand(shape, device=device) < 0.5, 1.0, -1.0)

    x = torch.randn(n, c_in, height, width, device=device)
    x[:, 0] = 2 * signs(n, height, width)
    weight = torch.randn(n, c_out, c_in, 3, 3, device=device) / (18 * c_in**0.5)
    weight[:, :, 0, 1, 1] = signs(n, c_out)
    return x, weight
