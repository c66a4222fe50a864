"""The high-order degradation of Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833), written from the paper.

Two rounds of blur, resize, noise and JPEG; the second JPEG comes before or after the resize to LR's size and a sinc
filter, at random (sections 3.2 to 3.4). Numbers marked "section 4.1" are the paper's; those marked "release" are left
open by its text and follow the configuration published with it.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Range = tuple[float, float]

SHAPES: Final = ("gaussian", "generalized", "plateau")
_RESIZES: Final = ("area", "bilinear", "bicubic")
_POISSON_LEVELS: Final = 255  # photon counts of a white pixel at scale 1


@dataclass(frozen=True)
class Round:
    """Probabilities and ranges of one round; every range is drawn from uniformly.

    Attributes:
        blur: probability of a blur (section 4.1: the second is skipped with probability 0.2).
        sinc: probability that the blur is a sinc filter (section 4.1).
        sigma: standard deviation of blur kernels along each axis, pixels (section 4.1).
        resize: probabilities of enlarging, shrinking, and keeping the size (release).
        factor: smallest and largest resize factor (release).
        gaussian: probability of Gaussian noise; Poisson noise otherwise (section 4.1).
        gaussian_sigma: standard deviation of Gaussian noise, levels of 255 (section 4.1).
        poisson_scale: factor on Poisson noise (section 4.1).
    """

    blur: float = 1.0
    sinc: float = 0.1
    sigma: Range = (0.2, 3.0)
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)
    factor: Range = (0.15, 1.5)
    gaussian: float = 0.5
    gaussian_sigma: Range = (1.0, 30.0)
    poisson_scale: Range = (0.05, 3.0)


def _second_round() -> Round:
    return Round(
        blur=0.8,
        sigma=(0.2, 1.5),
        resize=(0.3, 0.4, 0.3),
        factor=(0.3, 1.2),
        gaussian_sigma=(1.0, 25.0),
        poisson_scale=(0.05, 2.5),
    )


@dataclass(frozen=True)
class HighOrderDegradation:
    """Parameters of the whole pipeline; call it with an image.

    Attributes:
        first, second: the rounds. The first resizes relative to HR, the second relative to LR.
        sizes: kernel sizes, equally probable (section 4.1).
        shapes: probabilities of Gaussian, generalized Gaussian and plateau kernels (section 4.1).
        isotropic: probability that a kernel of each shape is isotropic (release).
        generalized_beta, plateau_beta: shape parameters (section 4.1).
        gray: probability that noise is equal in all channels (section 4.1).
        quality: of JPEG (section 4.1).
        final_sinc: probability of the last sinc filter (section 4.1).
    """

    first: Round = field(default_factory=Round)
    second: Round = field(default_factory=_second_round)
    sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    shapes: tuple[float, float, float] = (0.7, 0.15, 0.15)
    isotropic: tuple[float, float, float] = (9 / 14, 0.8, 0.8)
    generalized_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    gray: float = 0.4
    quality: tuple[int, int] = (30, 95)
    final_sinc: float = 0.8

    @torch.no_grad()
    def __call__(self, hr: Tensor, scale: int, rng: np.random.Generator) -> Tensor:
        """Degrade an image.

        Args:
            hr: (3, H, W) in [0, 1], float32 on the CPU; H and W multiples of ``scale``.
            scale: HR size over LR size.
            rng: source of all random numbers.

        Returns:
            LR, (3, H / scale, W / scale) in [0, 1], rounded to 8 bits.
        """
        height, width = hr.shape[1:]
        lr_size = (height // scale, width // scale)
        x = self._blur(hr, self.first, rng)
        x = self._resize(x, (height, width), self.first, rng)
        x = self._noise(x, self.first, rng)
        x = jpeg(x, self._quality(rng))
        x = self._blur(x, self.second, rng)
        x = self._resize(x, lr_size, self.second, rng)
        x = self._noise(x, self.second, rng)
        mode = str(rng.choice(_RESIZES))
        if rng.random() < 0.5:
            x = self._final_sinc(resize(x, lr_size, mode), rng)
            x = jpeg(x, self._quality(rng))
        else:
            x = jpeg(x, self._quality(rng))
            x = self._final_sinc(resize(x, lr_size, mode), rng)
        return x.clamp(0, 1).mul(255).round().div(255)

    def kernel(self, settings: Round, rng: np.random.Generator) -> Tensor:
        """A random blur kernel of a round, (k, k), float64, of sum 1."""
        size = int(rng.choice(self.sizes))
        if rng.random() < settings.sinc:
            return sinc_kernel(size, self._cutoff(size, rng))
        shape = int(rng.choice(len(SHAPES), p=self.shapes))
        along, across = rng.uniform(*settings.sigma, size=2)
        angle = rng.uniform(-math.pi, math.pi)
        if rng.random() < self.isotropic[shape]:
            across = along
        beta = rng.uniform(*(self.plateau_beta if SHAPES[shape] == "plateau" else self.generalized_beta))
        return blur_kernel(size, (along, across), angle, SHAPES[shape], beta)

    def _blur(self, x: Tensor, settings: Round, rng: np.random.Generator) -> Tensor:
        if rng.random() >= settings.blur:
            return x
        return filter_image(x, self.kernel(settings, rng))

    def _resize(self, x: Tensor, size: tuple[int, int], settings: Round, rng: np.random.Generator) -> Tensor:
        """Resize by a random factor relative to ``size``."""
        smallest, largest = settings.factor
        ranges = ((1.0, largest), (smallest, 1.0), (1.0, 1.0))
        factor = rng.uniform(*ranges[int(rng.choice(3, p=settings.resize))])
        height, width = (max(round(side * factor), 1) for side in size)
        return resize(x, (height, width), str(rng.choice(_RESIZES)))

    def _noise(self, x: Tensor, settings: Round, rng: np.random.Generator) -> Tensor:
        gray = rng.random() < self.gray
        if rng.random() < settings.gaussian:
            x = x + gaussian_noise(x, rng.uniform(*settings.gaussian_sigma) / 255, gray=gray, rng=rng)
        else:
            x = x + poisson_noise(x, gray=gray, rng=rng) * rng.uniform(*settings.poisson_scale)
        return x.clamp(0, 1)

    def _quality(self, rng: np.random.Generator) -> int:
        return int(rng.integers(*self.quality, endpoint=True))

    def _final_sinc(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        if rng.random() >= self.final_sinc:
            return x
        size = int(rng.choice(self.sizes))
        return filter_image(x, sinc_kernel(size, self._cutoff(size, rng)))

    @staticmethod
    def _cutoff(size: int, rng: np.random.Generator) -> float:
        """A cutoff frequency, radians per pixel; small kernels cannot hold the low ones (release)."""
        return float(rng.uniform(math.pi / (3 if size < 13 else 5), math.pi))


def blur_kernel(
    size: int, sigma: tuple[float, float], angle: float, shape: str = "gaussian", beta: float = 1.0
) -> Tensor:
    """A Gaussian, generalized Gaussian or plateau kernel (section 3.2), (size, size), float64, of sum 1.

    Args:
        size: odd.
        sigma: standard deviations along the two axes, pixels.
        angle: of the first axis, radians.
        shape: one of :data:`SHAPES`; with q the squared distance in standard deviations, the values are exp(-q / 2),
            exp(-q ** beta / 2) and 1 / (1 + q ** beta).
        beta: shape parameter; not used by "gaussian".
    """
    y, x = _coordinates(size)
    along = (x * math.cos(angle) + y * math.sin(angle)) / sigma[0]
    across = (y * math.cos(angle) - x * math.sin(angle)) / sigma[1]
    distance = along.square() + across.square()
    if shape != "gaussian":
        distance = distance.pow(beta)
    kernel = 1 / (1 + distance) if shape == "plateau" else torch.exp(-distance / 2)
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """The circular low-pass filter of section 3.4, which rings and overshoots: (size, size), float64, of sum 1.

    Args:
        size: odd.
        cutoff: frequency, radians per pixel.
    """
    y, x = _coordinates(size)
    radius = torch.hypot(x, y)
    # J1(z) / z tends to 1 / 2 at the center.
    values = torch.special.bessel_j1(cutoff * radius) * cutoff / (2 * math.pi * radius.clamp_min(1))
    kernel = torch.where(radius == 0, cutoff**2 / (4 * math.pi), values)
    return kernel / kernel.sum()


def filter_image(x: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel of (3, H, W) with a kernel (k, k), replicating the border."""
    size = kernel.shape[0]
    padded = F.pad(x[None], [size // 2] * 4, mode="replicate")
    weight = kernel.to(x.dtype).expand(x.shape[0], 1, size, size)
    return F.conv2d(padded, weight, groups=x.shape[0])[0]


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize (3, H, W) by "area", "bilinear" or "bicubic" interpolation."""
    if tuple(x.shape[1:]) == size:
        return x
    options = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(x[None], size=size, mode=mode, **options)[0]


def gaussian_noise(x: Tensor, sigma: float, *, gray: bool, rng: np.random.Generator) -> Tensor:
    """Gaussian noise for (3, H, W); ``gray``: equal in all channels."""
    shape = (1 if gray else x.shape[0], *x.shape[1:])
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) * sigma


def poisson_noise(x: Tensor, *, gray: bool, rng: np.random.Generator) -> Tensor:
    """Shot noise for (3, H, W): its variance is proportional to the intensity, that of the mean channel if ``gray``."""
    rate = x.clamp(0, 1)
    if gray:
        rate = rate.mean(0, keepdim=True)
    counts = rng.poisson(rate.double().numpy() * _POISSON_LEVELS)
    return torch.from_numpy(counts).to(x.dtype) / _POISSON_LEVELS - rate


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Compress (3, H, W) in [0, 1] with a JPEG codec, and decompress it; values outside are clamped."""
    from torchvision.io import decode_jpeg, encode_jpeg  # noqa: PLC0415 - takes two seconds

    encoded = encode_jpeg(x.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous(), quality)
    return decode_jpeg(encoded).to(x.dtype) / 255


def _coordinates(size: int) -> tuple[Tensor, Tensor]:
    """Row and column of each tap, (size, size) each, 0 at the center."""
    taps = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(taps, taps, indexing="ij")
    return y, x
