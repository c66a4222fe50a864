"""A second definition of the fp8 residual dense block, independent of the op, for its tests.

Nothing is packed, gathered or stored as bits: PyTorch's convolutions, transposed ones for backward, in float64.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def arguments(n: int, features: int, growth: int, height: int, width: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Random x, weights and biases in float32, of about unit size at every layer."""
    x = torch.randn(n, features, height, width)
    shapes = [(growth if k < 4 else features, features + k * growth) for k in range(5)]
    weights = [torch.randn(*shape, 3, 3) / (3 * shape[1] ** 0.5) for shape in shapes]
    return x, weights, [torch.randn(shape[0]) / 3 for shape in shapes]


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    return value.clamp(-largest, largest).to(dtype).double()


def rounded_weight(weight: Tensor, outputs: int) -> Tensor:
    """Quantize to e4m3 with a factor per entry of dimension ``outputs`` that maps its largest value to 448.

    Factors are float32, as in the op.
    """
    reduced = [dim for dim in range(4) if dim != outputs]
    factor = weight.float().abs().amax(reduced, keepdim=True) / 448
    factor = torch.where(factor == 0, 1 / 448, factor)
    return rounded(weight.float() / factor, torch.float8_e4m3fn) * factor.double()


def forward_and_backward(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], grad: Tensor, slope: float, scale: float
) -> tuple[Tensor, Tensor]:
    """The result and the gradient to x, in float64."""
    growth, channels = weights[0].shape[0], x.shape[1]
    wide = [weight.float() for weight in weights]
    wide[4] = wide[4] * scale
    features = [rounded(x.double(), torch.float8_e4m3fn)]
    positive = []
    for k in range(4):
        before = F.conv2d(torch.cat(features, 1), rounded_weight(wide[k], 0), biases[k].double(), padding=1)
        after = F.leaky_relu(before, slope)
        positive.append(after > 0)
        features.append(rounded(after, torch.float8_e4m3fn))
    bias = (biases[4] * scale).double()  # in float32, as in the op
    out = x.double() + F.conv2d(torch.cat(features, 1), rounded_weight(wide[4], 0), bias, padding=1)

    incoming = rounded(grad.double(), torch.float8_e5m2)
    actual: dict[int, Tensor] = {}
    for k in (3, 2, 1, 0, None):
        first = channels + k * growth if k is not None else 0
        read = slice(first, first + (growth if k is not None else channels))
        readers = [j for j in range(4) if k is None or j > k]
        together = torch.cat([wide[4][:, read]] + [wide[j][:, read] for j in readers], 0)
        gradients = torch.cat([incoming] + [actual[j] for j in readers], 1)
        value = F.conv_transpose2d(gradients, rounded_weight(together, 1), padding=1)
        if k is None:
            return out, grad.double() + value
        actual[k] = rounded(torch.where(positive[k], value, value * slope), torch.float8_e5m2)
    raise AssertionError
