"""Anti-aliased average pooling as a module."""

from collections.abc import Sequence

from torch import Tensor, nn

from andfast.functional import blur_pool


class BlurPool(nn.Module):
    """Anti-aliased average pooling by an integer factor, see :func:`andfast.functional.blur_pool`.

    It has no parameters and no state dict entries.

    Args:
        factor: 2, 3 or 4.
        filter: "binomial", or the taps of a symmetric filter with sum 1.
        impl: implementation, see :mod:`andfast.functional`.
    """

    def __init__(self, factor: int, *, filter: str | Sequence[float] | Tensor = "binomial", impl: str = "auto") -> None:
        super().__init__()
        self.factor = factor
        self.filter = tuple(filter.tolist()) if isinstance(filter, Tensor) else filter
        self.impl = impl

    def forward(self, x: Tensor) -> Tensor:
        """Pool (N, C, H, W), H and W divisible by the factor, to (N, C, H / factor, W / factor)."""
        return blur_pool(x, self.factor, filter=self.filter, impl=self.impl)

    def extra_repr(self) -> str:
        return f"factor={self.factor}, filter={self.filter!r}, impl={self.impl!r}"
