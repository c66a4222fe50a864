"""Random residual dense blocks for the tests."""

from collections.abc import Callable

import torch
from torch import Tensor


def make(
    n: int = 2,
    features: int = 4,
    growth: int = 3,
    height: int = 5,
    width: int = 7,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Random arguments that require gradients, of about unit size at every layer."""
    generator = torch.Generator().manual_seed(n + 10 * features + 100 * growth + 1000 * height)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(n, features, height, width)
    weights, biases = [], []
    for k in range(5):
        cin, cout = features + k * growth, growth if k < 4 else features
        weights.append(draw(cout, cin, 3, 3) / (3 * cin**0.5))
        biases.append(draw(cout) / 3)
    return (
        x.to(dtype).requires_grad_(),
        [tensor.to(dtype).requires_grad_() for tensor in weights],
        [tensor.to(dtype).requires_grad_() for tensor in biases],
    )


def flat(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The block with x, five weights and five biases as arguments."""
    return lambda x, *parameters: f(x, parameters[:5], parameters[5:])


def freeze(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach() for tensor in tensors]


def make_float32(
    n: int = 2, features: int = 4, growth: int = 3, height: int = 5, width: int = 7, device: str = "cpu"
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Random arguments in float32, of about unit size at every layer."""
    x = torch.randn(n, features, height, width, device=device)
    shapes = [(growth if k < 4 else features, features + k * growth) for k in range(5)]
    weights = [torch.randn(*shape, 3, 3, device=device) / (3 * shape[1] ** 0.5) for shape in shapes]
    return x, weights, [torch.randn(shape[0], device=device) / 3 for shape in shapes]
