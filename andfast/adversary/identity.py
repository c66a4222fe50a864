"""Random identity networks in closed form, from which each attack starts (paper, section 3.2).

With slopes of 1 and noise maps of 0 a network is linear, and with kernels that are zero off their centers it acts
pointwise: a product of matrices. All matrices but the last are drawn, and the last one is the
pseudo-inverse of their product M (C, 3), which has full column rank, so pinv(M) = (M^T M)^-1 M^T takes the inverse of a
3x3 matrix per network. Everything is batched on the device in float64, without host synchronization.
"""

import math

import numpy as np
import torch
from torch import Tensor

from andfast.nn.degradation_network import BLOCKS_EACH_SIDE, Theta

IMAGE_CHANNELS = 3
_LAYERS = 2 * BLOCKS_EACH_SIDE


def sample_identity(
    n: int,
    *,
    hr_size: int | tuple[int, int],
    scale: int = 4,
    channels: int = 64,
    noise: str = "full",
    slope: str = "layer",
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    noise_dtype: torch.dtype | None = None,
    batch: tuple[int, int] | None = None,
) -> Theta:
    """Draw n independent networks F whose output is the anti-aliased pooled input.

    Args:
        n: number of networks, 0 or more.
        hr_size: HR's height and width (one number for both), multiples of ``scale``.
        scale: F's pooling factor.
        channels: feature channels of F, at least 3.
        noise: "full" for a noise map per channel, or "single" for one map broadcast over channels.
        slope: "layer" for one negative slope per layer and network, or "channel" for one per channel.
        generator: source of the draw, on ``device``; the device's default generator if None.
        device: of theta; if None, the generator's device, or the CPU without a generator.
        dtype: of theta.
        noise_dtype: of the noises, which an ascent keeps; ``dtype`` if None.
        batch: (offset, total): draw the networks [offset, offset + n) of a batch of ``total``, so that several
            ranks with equal generators draw disjoint parts of one batch.

    Returns:
        Theta of n networks.

    Raises:
        ValueError: an argument is out of range.
    """
    height, width = (hr_size, hr_size) if isinstance(hr_size, int) else hr_size
    offset, total = (0, n) if batch is None else batch
    _check(n, height, width, scale, channels, noise, slope, offset, total)
    if device is None:
        device = generator.device if generator is not None else torch.device("cpu")
    shapes = [(channels, IMAGE_CHANNELS)] + [(channels, channels)] * (_LAYERS - 1)
    # One row of numbers per network, so that a shard of a batch is a slice of the whole draw.
    numbers = sum(math.prod(shape) for shape in shapes)
    draw = torch.randn(total, numbers, generator=generator, device=device, dtype=torch.float64)
    kernels = _identity_kernels(draw[offset : offset + n], shapes, dtype)
    sizes = [(height, width)] * BLOCKS_EACH_SIDE + [(height // scale, width // scale)] * BLOCKS_EACH_SIDE
    maps = channels if noise == "full" else 1
    # Expanded: 22 M values per network take no memory.
    zero = torch.zeros((), device=device, dtype=noise_dtype or dtype)
    slope_shape = (n,) if slope == "layer" else (n, channels)
    return Theta(
        weights=kernels,
        noises=tuple(zero.expand(n, maps, *pixels) for pixels in sizes),
        slopes=tuple(torch.ones(slope_shape, device=device, dtype=dtype) for _ in range(_LAYERS)),
    )


def seeded_generator(device: torch.device, *numbers: int) -> torch.Generator | None:
    """A generator on the device, seeded by a hash of the numbers; None on the meta device, which has no generator."""
    if device.type == "meta":
        return None
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device).manual_seed(seed)


def _check(
    n: int,
    height: int,
    width: int,
    scale: int,
    channels: int,
    noise: str,
    slope: str,
    offset: int,
    total: int,
) -> None:
    if n < 0:
        raise ValueError(f"n must be 0 or more, was {n}")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, was {scale}")
    if height % scale or width % scale or min(height, width) < scale:
        raise ValueError(f"hr_size must be positive multiples of scale {scale}, was {(height, width)}")
    if channels < IMAGE_CHANNELS:
        raise ValueError(f"channels must be at least {IMAGE_CHANNELS}, or no inverse exists, was {channels}")
    if noise not in ("full", "single"):
        raise ValueError(f"noise must be 'full' or 'single', was {noise!r}")
    if slope not in ("layer", "channel"):
        raise ValueError(f"slope must be 'layer' or 'channel', was {slope!r}")
    if not 0 <= offset <= offset + n <= total:
        raise ValueError(f"batch must be (offset, total) with offset + n within total, was {(offset, total)}, n {n}")


def _identity_kernels(draw: Tensor, shapes: list[tuple[int, int]], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The 11 kernels from standard normal numbers (N, per network): ten Xavier-normal centers, and the inverse."""
    kernels = []
    product = None
    for flat, (rows, columns) in zip(draw.split([math.prod(shape) for shape in shapes], 1), shapes, strict=True):
        center = flat.view(-1, rows, columns) * math.sqrt(2 / (rows + columns))  # the fans of a 1x1 convolution
        center = center.to(dtype)  # invert the rounded matrices
        kernels.append(_as_kernel(center))
        product = center.double() if product is None else center.double() @ product
    assert product is not None  # there are ten shapes
    return (*kernels, _as_kernel(_pseudo_inverse(product).to(dtype)))


def _pseudo_inverse(product: Tensor) -> Tensor:
    """(M^T M)^-1 M^T for M (N, C, 3), by the adjugate, which unlike torch.linalg needs no check on the host."""
    gram = product.mT @ product
    a, b, c = gram.unbind(1)  # rows, which are the columns of a symmetric matrix
    adjugate = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], 1)
    determinant = (a * adjugate[:, 0]).sum(1)
    inverse = adjugate / determinant[:, None, None]
    return inverse @ product.mT


def _as_kernel(center: Tensor) -> Tensor:
    """(N, Cout, Cin) matrices as 3x3 kernels that are zero off their center."""
    kernel = center.new_zeros((*center.shape, 3, 3))
    kernel[..., 1, 1] = center
    return kernel
