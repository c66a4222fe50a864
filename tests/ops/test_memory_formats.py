"""The rule of :mod:`andfast.functional.layout`, for all ops that take images."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from andfast.functional import blur_pool, degradation_block, residual_dense_block, upsampled_convolution
from andfast.functional.layout import memory_format

CHANNELS, GROWTH = 6, 4


def dense_block(x: Tensor) -> Tensor:
    widths = [(GROWTH, CHANNELS + k * GROWTH) for k in range(4)] + [(CHANNELS, CHANNELS + 4 * GROWTH)]
    weights = [torch.rand(c_out, c_in, 3, 3, dtype=x.dtype) for c_out, c_in in widths]
    return residual_dense_block(x, weights, [torch.rand(c_out, dtype=x.dtype) for c_out, _ in widths])


OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "blur_pool": lambda x: blur_pool(x, 2),
    "degradation_block": lambda x: degradation_block(x, torch.rand(5, CHANNELS, 3, 3), 0.5),
    "residual_dense_block": dense_block,
    "upsampled_convolution": lambda x: upsampled_convolution(x, torch.rand(5, CHANNELS, 3, 3), torch.rand(5)),
}
LAYOUTS: dict[str, tuple[Callable[[], Tensor], torch.memory_format]] = {
    "contiguous": (lambda: torch.rand(2, CHANNELS, 8, 4), torch.contiguous_format),
    "channels_last": (lambda: torch.rand(2, 8, 4, CHANNELS).permute(0, 3, 1, 2), torch.channels_last),
    "channels of channels_last": (
        lambda: torch.rand(2, 8, 4, CHANNELS + 3).permute(0, 3, 1, 2)[:, 1:-2],
        torch.channels_last,
    ),
    "pixels of channels_last": (
        lambda: torch.rand(2, 8, 9, CHANNELS).permute(0, 3, 1, 2)[..., 2:6],
        torch.channels_last,
    ),
    "transposed": (lambda: torch.rand(2, CHANNELS, 4, 8).transpose(2, 3), torch.contiguous_format),
    "no images": (lambda: torch.rand(0, 8, 4, CHANNELS).permute(0, 3, 1, 2), torch.channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_result_and_gradient_have_the_memory_format_of_x(op: str, layout: str) -> None:
    make, expected = LAYOUTS[layout]
    x = make()
    assert memory_format(x) == expected
    leaf = x.detach().requires_grad_()
    out = OPS[op](leaf)
    assert out.is_contiguous(memory_format=expected)
    assert memory_format(out) == expected
    (grad,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
    assert memory_format(grad) == expected


def test_slice_of_one_channel_counts_as_contiguous() -> None:
    x = torch.rand(2, 8, 4, CHANNELS).permute(0, 3, 1, 2)[:, 1:2]
    assert memory_format(x) == torch.contiguous_format
    assert blur_pool(x, 2).is_contiguous()


@pytest.mark.parametrize("op", OPS)
def test_gradient_format_for_incoming_gradient_of_another_format(op: str) -> None:
    x = torch.rand(2, CHANNELS, 8, 4).requires_grad_()
    out = OPS[op](x)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out).contiguous(memory_format=torch.channels_last))
    assert memory_format(grad) == (torch.channels_last if op == "blur_pool" else torch.contiguous_format)
