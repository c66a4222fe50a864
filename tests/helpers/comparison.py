"""Comparison of results with float64 references."""

import torch
from torch import Tensor


def assert_near(actual: Tensor, exact: Tensor, tolerance: float, name: str) -> None:
    """Assert equality where ``exact`` is not finite, elsewhere a relative error (2-norm) of at most ``tolerance``."""
    assert actual.shape == exact.shape, name
    actual, exact = actual.detach().double(), exact.detach().double()
    finite = exact.isfinite()
    torch.testing.assert_close(
        torch.where(finite, 0.0, actual), torch.where(finite, 0.0, exact), equal_nan=True, msg=f"{name}: not finite"
    )
    error = torch.where(finite, actual - exact, 0.0).norm()
    norm = torch.where(finite, exact, 0.0).norm()
    assert error <= tolerance * norm, f"{name}: error {error:.3g} of {norm:.3g}"
