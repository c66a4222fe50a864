"""The residual dense block in plain PyTorch: the definition, and the reference implementation of the op."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from andfast.functional import layout
from andfast.kernels.residual_dense_block.buffers import ACTIVATIONS, CONVOLUTIONS


def residual_dense_block_reference(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, slope: float = 0.2, scale: float = 0.2
) -> Tensor:
    """The definition, composed of PyTorch ops and differentiated by autograd; tests compare with it."""
    features = [x]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        features.append(F.leaky_relu(F.conv2d(torch.cat(features, 1), weight, bias, padding=1), slope))
    return F.conv2d(torch.cat(features, 1), weights[-1], biases[-1], padding=1) * scale + x


class Needs(NamedTuple):
    """Which gradients backward must return."""

    x: bool
    weights: Sequence[bool]
    biases: Sequence[bool]

    def below(self, k: int) -> bool:
        """Whether the gradient to the input of convolution k is needed."""
        return self.x or any(self.weights[:k]) or any(self.biases[:k])


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    slope: float,
    scale: float,
    keep_features: bool,
) -> tuple[Tensor, Tensor]:
    """Return out, and the features or signs for backward; see ``forward_op`` of the op's module."""
    channels, growth = x.shape[1], weights[0].shape[0]
    features = layout.empty(x, channels + 4 * growth)
    features[:, :channels] = x
    for k in range(ACTIVATIONS):
        end = channels + k * growth
        convolved = F.conv2d(features[:, :end], weights[k], biases[k], padding=1)
        features[:, end : end + growth] = F.leaky_relu_(convolved, slope)
    out = layout.empty(x, channels)
    torch.add(x, F.conv2d(features, weights[-1], biases[-1], padding=1), alpha=scale, out=out)
    if keep_features:
        return out, features
    signs = layout.empty(x, growth, torch.uint8).zero_()
    for k in range(ACTIVATIONS):
        signs += (features[:, channels + k * growth : channels + (k + 1) * growth] > 0).to(torch.uint8) << k
    return out, signs


def backward(
    grad: Tensor, saved: Tensor, weights: Sequence[Tensor], slope: float, scale: float, needs: Needs
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """Return the gradients to x, weights and biases; None for those not needed."""
    channels, growth = weights[-1].shape[0], weights[0].shape[0]
    # The accumulation leaves out the channels of x if their gradient is not needed.
    first = 0 if needs.x else channels
    grad_weights: list[Tensor | None] = [None] * CONVOLUTIONS
    grad_biases: list[Tensor | None] = [None] * CONVOLUTIONS
    total = grad  # after the first iteration: gradient to the features, from channel `first` on
    for k in reversed(range(CONVOLUTIONS)):
        end = channels + k * growth
        if k == ACTIVATIONS:
            grad_output = grad * scale
        else:
            grad_output = total[:, end - first : end - first + growth]
            grad_output = torch.where(_positive(saved, k, end, growth), grad_output, grad_output * slope)

        needs_input, grad_input = needs.below(k), None
        if needs.weights[k]:
            mask = [needs_input and first == 0, True, needs.biases[k]]
            grad_input, grad_weights[k], grad_biases[k] = layout.convolution_backward(
                grad_output, saved[:, :end], weights[k], mask
            )
        elif needs.biases[k]:
            grad_biases[k] = grad_output.sum((0, 2, 3))
        if not needs_input:
            break
        if end > first:
            if grad_input is None:
                # The gradient to the input, without needing the input itself.
                grad_input = F.conv_transpose2d(grad_output, weights[k][:, first:], padding=1)
            if k == ACTIVATIONS:
                total = grad_input
            else:
                total[:, : end - first] += grad_input
    if not needs.x:
        return None, grad_weights, grad_biases
    grad_x = torch.add(total[:, :channels], grad, out=layout.empty(saved, channels, grad.dtype))
    return grad_x, grad_weights, grad_biases


def _positive(saved: Tensor, k: int, start: int, growth: int) -> Tensor:
    """Where x(k+1), features ``start`` to ``start + growth``, is positive."""
    if saved.dtype == torch.uint8:
        return (saved & (1 << k)) != 0
    return saved[:, start : start + growth] > 0
