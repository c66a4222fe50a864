"""The U-Net discriminator with spectral normalisation of Real-ESRGAN (2021): one logit a pixel."""

from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

NEGATIVE_SLOPE: Final = 0.2
NORMALISED: Final = tuple(f"conv{i}" for i in range(1, 9))
_HALVINGS: Final = 3
_MULTIPLE: Final = 2**_HALVINGS

NAMES: Final = {
    f"{layer}.{old}": f"{layer}.parametrizations.weight.{new}"
    for layer in NORMALISED
    for old, new in (("weight_orig", "original"), ("weight_u", "0._u"), ("weight_v", "0._v"))
}
"""Names of the normalised kernels and their singular vectors: BasicSR's to the parametrizations'."""


class UNetDiscriminator(nn.Module):
    """Three halvings, three bilinear doublings with skip connections, spectral norm on all but first and last
    layer.

    State dicts come out, and go in, with the names of BasicSR's ``UNetDiscriminatorSN``
    (``conv1.weight_orig``, ``conv1.weight_u``, ``conv1.weight_v``), so Real-ESRGAN's netD files load as they
    are; PyTorch's own names of the parametrizations are accepted too.

    In training mode every forward pass does one step of the power iteration, which moves u and v.

    Args:
        in_channels: Channels of the images.
        features: Channels at full size.
        skip_connection: Whether the way up adds the features of the way down.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(self, *, in_channels: int = 3, features: int = 64, skip_connection: bool = True) -> None:
        super().__init__()
        for name, number in (("in_channels", in_channels), ("features", features)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, was {number}")
        self.in_channels = in_channels
        self.skip_connection = skip_connection
        self.conv0 = nn.Conv2d(in_channels, features, 3, padding=1)
        self.conv1 = _halving(features, features * 2)
        self.conv2 = _halving(features * 2, features * 4)
        self.conv3 = _halving(features * 4, features * 8)
        self.conv4 = _keeping(features * 8, features * 4)
        self.conv5 = _keeping(features * 4, features * 2)
        self.conv6 = _keeping(features * 2, features)
        self.conv7 = _keeping(features, features)
        self.conv8 = _keeping(features, features)
        self.conv9 = nn.Conv2d(features, 1, 3, padding=1)
        self.register_load_state_dict_pre_hook(_to_parametrizations)
        self.register_state_dict_post_hook(_to_basicsr)

    def forward(self, x: Tensor) -> Tensor:
        """Judge images (N, in_channels, H, W), RGB in [0, 1], H and W divisible by 8; returns logits (N, 1,
        H, W).

        Raises:
            ValueError: x has another number of dimensions or channels, or a size that does not divide.
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


def _halving(cin: int, cout: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(cin, cout, 4, stride=2, padding=1, bias=False))


def _keeping(cin: int, cout: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(cin, cout, 3, padding=1, bias=False))


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, NEGATIVE_SLOPE, inplace=True)


def _to_parametrizations(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before loading: BasicSR's names to those of the parametrizations (in load_state_dict's own copy)."""
    for old, new in NAMES.items():
        if prefix + old in state:
            state[prefix + new] = state.pop(prefix + old)


def _to_basicsr(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    """After ``state_dict()``: the names of the parametrizations to BasicSR's."""
    for old, new in NAMES.items():
        state[prefix + old] = state.pop(prefix + new)
