"""Real-ESRGAN's U-Net discriminator with spectral normalization (Wang et al., 2021): one logit per pixel."""

from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

NEGATIVE_SLOPE: Final = 0.2
NORMALIZED: Final = tuple(f"conv{i}" for i in range(1, 9))
_MULTIPLE: Final = 8  # three stride-2 convolutions

NAMES: Final = {
    f"{layer}.{old}": f"{layer}.parametrizations.weight.{new}"
    for layer in NORMALIZED
    for old, new in (("weight_orig", "original"), ("weight_u", "0._u"), ("weight_v", "0._v"))
}
"""BasicSR's names of the normalized kernels and singular vectors, to those of torch's parametrizations."""


class UNetDiscriminator(nn.Module):
    """Three downsampling and three bilinear upsampling stages with skip connections; spectral norm on the inner layers.

    State dicts use the names of BasicSR's ``UNetDiscriminatorSN`` (``conv1.weight_orig``, ``conv1.weight_u``,
    ``conv1.weight_v``), so Real-ESRGAN's netD files load directly; loading also accepts the names of torch's
    parametrizations.

    In training mode each forward pass performs one power iteration, which updates u and v.

    Args:
        in_channels: channels of the input image.
        features: channels at full resolution.
        skip_connection: add the encoder's features in the decoder.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, in_channels: int = 3, features: int = 64, skip_connection: bool = True) -> None:
        super().__init__()
        for name, number in (("in_channels", in_channels), ("features", features)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, was {number}")
        self.in_channels = in_channels
        self.skip_connection = skip_connection
        self.conv0 = nn.Conv2d(in_channels, features, 3, padding=1)
        self.conv1 = _conv4x4_stride2(features, features * 2)
        self.conv2 = _conv4x4_stride2(features * 2, features * 4)
        self.conv3 = _conv4x4_stride2(features * 4, features * 8)
        self.conv4 = _conv3x3(features * 8, features * 4)
        self.conv5 = _conv3x3(features * 4, features * 2)
        self.conv6 = _conv3x3(features * 2, features)
        self.conv7 = _conv3x3(features, features)
        self.conv8 = _conv3x3(features, features)
        self.conv9 = nn.Conv2d(features, 1, 3, padding=1)
        self.register_load_state_dict_pre_hook(_to_parametrizations)
        self.register_state_dict_post_hook(_to_basicsr)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 1, H, W) of images (N, in_channels, H, W), RGB in [0, 1], H and W divisible by 8.

        Raises:
            ValueError: x has the wrong number of dimensions or channels, or a size that is not divisible.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must have shape (N, {self.in_channels}, H, W), was {tuple(x.shape)}")
        if x.shape[2] % _MULTIPLE or x.shape[3] % _MULTIPLE:
            raise ValueError(f"x must have H and W divisible by {_MULTIPLE}, was {tuple(x.shape)}")
        full = _activate(self.conv0(x))
        half = _activate(self.conv1(full))
        quarter = _activate(self.conv2(half))
        up = _activate(self.conv3(quarter))
        for convolution, skip in ((self.conv4, quarter), (self.conv5, half), (self.conv6, full)):
            up = _activate(convolution(F.interpolate(up, scale_factor=2, mode="bilinear", align_corners=False)))
            if self.skip_connection:
                up = up + skip
        logits: Tensor = self.conv9(_activate(self.conv8(_activate(self.conv7(up)))))
        return logits


def _conv4x4_stride2(cin: int, cout: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(cin, cout, 4, stride=2, padding=1, bias=False))


def _conv3x3(cin: int, cout: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(cin, cout, 3, padding=1, bias=False))


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, NEGATIVE_SLOPE, inplace=True)


def _to_parametrizations(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Pre-hook of load_state_dict: rename BasicSR's names to the parametrizations' (in load_state_dict's copy)."""
    for old, new in NAMES.items():
        if prefix + old in state:
            state[prefix + new] = state.pop(prefix + old)


def _to_basicsr(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    """Post-hook of state_dict: rename the parametrizations' names to BasicSR's."""
    for old, new in NAMES.items():
        state[prefix + old] = state.pop(prefix + new)
