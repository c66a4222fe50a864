"""Random arguments of upsampled_convolution for its tests."""

import torch
from torch import Tensor

FACTORS = [1, 2]


def make(
    n: int = 2, c_in: int = 4, c_out: int = 11, height: int = 5, width: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Random x, weight and bias that require gradients; results are of about unit size."""
    generator = torch.Generator().manual_seed(n + 10 * c_in + 100 * c_out + 1000 * height)
    shapes = (n, c_in, height, width), (c_out, c_in, 3, 3), (c_out,)
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    weight /= 3 * c_in**0.5
    return tuple(tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias / 3))  # type: ignore[return-value]
