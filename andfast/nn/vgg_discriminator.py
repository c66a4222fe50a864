"""ESRGAN's VGG-style discriminator (Wang et al., 2018): one logit per image of a fixed size."""

from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

SIZES: Final = (128, 256)
NEGATIVE_SLOPE: Final = 0.2
_LAST_SIZE: Final = 4
_HIDDEN: Final = 100


class VGGDiscriminator(nn.Module):
    """Stages of two convolutions with batch normalization that downsample the image to 4x4, then two linear layers.

    Parameters have the names and shapes of BasicSR's ``VGGStyleDiscriminator``: stage i has ``conv{i}_0`` (3x3) and
    ``conv{i}_1`` (4x4, stride 2), followed by ``bn{i}_0`` (except in the first stage) and ``bn{i}_1``.

    In training mode each forward pass updates the running statistics and couples the images of the batch.

    Args:
        size: image height and width, 128 or 256.
        in_channels: channels of the input image.
        features: channels of the first stage, doubled per stage up to 8 times.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, size: int = 256, *, in_channels: int = 3, features: int = 64) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(map(str, SIZES))}, was {size!r}")
        for name, number in (("in_channels", in_channels), ("features", features)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, was {number}")
        self.size = size
        self.in_channels = in_channels
        self.stages = (size // _LAST_SIZE).bit_length() - 1
        previous = in_channels
        for stage in range(self.stages):
            channels = features * min(2**stage, 8)
            self.add_module(f"conv{stage}_0", nn.Conv2d(previous, channels, 3, padding=1, bias=stage == 0))
            if stage > 0:  # no normalization of the first layer's output
                self.add_module(f"bn{stage}_0", nn.BatchNorm2d(channels))
            self.add_module(f"conv{stage}_1", nn.Conv2d(channels, channels, 4, stride=2, padding=1, bias=False))
            self.add_module(f"bn{stage}_1", nn.BatchNorm2d(channels))
            previous = channels
        self.linear1 = nn.Linear(previous * _LAST_SIZE**2, _HIDDEN)
        self.linear2 = nn.Linear(_HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 1), positive for real, of images (N, in_channels, size, size), RGB in [0, 1].

        Raises:
            ValueError: x has another shape.
        """
        if x.dim() != 4 or tuple(x.shape[1:]) != (self.in_channels, self.size, self.size):
            expected = f"(N, {self.in_channels}, {self.size}, {self.size})"
            raise ValueError(
                f"x must have shape {expected} for a discriminator of size {self.size}, was {tuple(x.shape)}"
            )
        for stage in range(self.stages):
            x = self.get_submodule(f"conv{stage}_0")(x)
            if stage > 0:
                x = self.get_submodule(f"bn{stage}_0")(x)
            x = F.leaky_relu(x, NEGATIVE_SLOPE, inplace=True)
            x = self.get_submodule(f"bn{stage}_1")(self.get_submodule(f"conv{stage}_1")(x))
            x = F.leaky_relu(x, NEGATIVE_SLOPE, inplace=True)
        hidden = F.leaky_relu(self.linear1(x.flatten(1)), NEGATIVE_SLOPE, inplace=True)
        logits: Tensor = self.linear2(hidden)
        return logits
