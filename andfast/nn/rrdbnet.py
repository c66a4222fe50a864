"""RRDBNet, ESRGAN's generator and the paper's restoration network G (section 4.1).

Parameters have BasicSR's names and shapes, so every ESRGAN tool loads the weights::

    conv_first -> body.{i}.rdb{1..3}.conv{1..5} -> conv_body (+ conv_first's) -> [nearest x2 -> conv_up{1,2}]
    -> conv_hr -> conv_last

The network always upsamples by 4; for scales 2 and 1 the input is first pixel-unshuffled by 2 and 4, as in BasicSR and
Real-ESRGAN.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.functional import dense_blocks_cuda, dispatch, residual_dense_block, upsampled_convolution
from andfast.functional.frozen_dense_blocks import DTYPES, frozen_dense_blocks, pack_dense_blocks
from andfast.functional.residual_dense_block import NAME as DENSE_BLOCK

SCALES: Final = (1, 2, 4)
NEGATIVE_SLOPE: Final = 0.2
RESIDUAL_SCALE: Final = 0.2
INITIAL_GAIN: Final = 0.1
_UPSAMPLING: Final = 4
_BLOCKS: Final = 3  # of an RRDB


class RRDBNet(nn.Module):
    """Residual-in-residual dense network: (N, in_channels, H, W) to (N, out_channels, H * scale, W * scale).

    Initialization follows BasicSR: Kaiming-normal times 0.1 with zero biases in the dense blocks, PyTorch's default
    elsewhere.

    Args:
        scale: 1, 2 or 4.
        in_channels: channels of the input image.
        out_channels: channels of the output image.
        features: channels between the blocks (BasicSR's ``num_feat``).
        blocks: number of RRDBs (``num_block``).
        growth: channels added by each convolution of a dense block (``num_grow_ch``).
        impl: implementation of :func:`andfast.functional.residual_dense_block` and
            :func:`andfast.functional.upsampled_convolution`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        scale: int = 4,
        *,
        in_channels: int = 3,
        out_channels: int = 3,
        features: int = 64,
        blocks: int = 23,
        growth: int = 32,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(map(str, SCALES))}, was {scale!r}")
        sizes = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "features": features,
            "growth": growth,
        }
        for name, size in {**sizes, "blocks": blocks}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, was {size}")
        self.scale, self.impl = scale, impl
        self.in_channels = in_channels
        self.features, self.blocks, self.growth = features, blocks, growth
        self.unshuffle = _UPSAMPLING // scale
        self.conv_first = Convolution(in_channels * self.unshuffle**2, features, impl=impl)
        self.body = nn.Sequential(*(_RRDB(features, growth, impl) for _ in range(blocks)))
        self.conv_body = Convolution(features, features, impl=impl)
        self.conv_up1 = Convolution(features, features, factor=2, slope=NEGATIVE_SLOPE, impl=impl)
        self.conv_up2 = Convolution(features, features, factor=2, slope=NEGATIVE_SLOPE, impl=impl)
        self.conv_hr = Convolution(features, features, slope=NEGATIVE_SLOPE, impl=impl)
        self.conv_last = Convolution(features, out_channels, impl=impl)

    def forward(self, x: Tensor, body: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Restore images.

        Args:
            x: (N, in_channels, H, W), RGB in [0, 1]; H and W divisible by 2 for scale 2, by 4 for scale 1.
            body: replacement for ``self.body``, such as the result of :meth:`frozen_body`, which is the default where
                no gradient to the body's weights is needed.

        Raises:
            ValueError: x has the wrong number of dimensions or channels, or a size that is not divisible.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must have shape (N, {self.in_channels}, H, W), was {tuple(x.shape)}")
        if x.shape[2] % self.unshuffle or x.shape[3] % self.unshuffle:
            raise ValueError(
                f"x must have H and W divisible by {self.unshuffle} for scale {self.scale}, was {tuple(x.shape)}"
            )
        if self.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.unshuffle)
        features = self.conv_first(x)
        if body is None:
            body = self._body_for(features)
        features = features + self.conv_body(body(features))
        out: Tensor = self.conv_last(self.conv_hr(self.conv_up2(self.conv_up1(features))))
        return out

    def frozen_body(self, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """All dense blocks as one op, with their weights packed now for features of this dtype on this device.

        None where ``impl`` resolves to neither "cuda" nor "triton". No gradient reaches the weights.
        """
        no_cuda = dense_blocks_cuda.unsuited(self.features, self.growth)
        impl = dispatch.resolve(DENSE_BLOCK, self.impl, device.type, dtype, no_cuda)
        if impl not in DTYPES:
            return None
        layers = [
            layer
            for rrdb in self.body
            for block in rrdb.children()
            for layer in cast(_ResidualDenseBlock, block).convolutions()
        ]
        packed = pack_dense_blocks(
            [layer.weight for layer in layers],
            [_bias(layer) for layer in layers],
            dtype,
            blocks_per_group=_BLOCKS,
            slope=NEGATIVE_SLOPE,
            scale=RESIDUAL_SCALE,
            outer_scale=RESIDUAL_SCALE,
            impl=impl,
        )
        return partial(frozen_dense_blocks, packed=packed)

    def _body_for(self, features: Tensor) -> Callable[[Tensor], Tensor]:
        """:meth:`frozen_body` if there is one and the pass needs no gradient to its weights; else ``self.body``."""
        if features.device.type != "cuda" and self.impl not in DTYPES:  # saves the CPU a look at all parameters
            return self.body
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.body.parameters()):
            return self.body
        body = self.frozen_body(features.device, features.dtype)
        return self.body if body is None else body


class Convolution(nn.Conv2d):
    """3x3 convolution with optional nearest upsampling before and leaky ReLU after it.

    With frozen weights, backward saves only the signs of the output (nothing without activation), where PyTorch's
    convolution saves its input.

    Args:
        in_channels, out_channels: number of channels.
        factor: upsampling factor; 1 for none.
        slope: negative slope of the leaky ReLU; 1 for none.
        impl: implementation of :func:`andfast.functional.upsampled_convolution`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, factor: int = 1, slope: float = 1.0, impl: str = "auto"
    ) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.factor, self.slope, self.impl = factor, slope, impl

    def forward(self, x: Tensor) -> Tensor:
        bias = _bias(self)
        return upsampled_convolution(x, self.weight, bias, factor=self.factor, slope=self.slope, impl=self.impl)


class _RRDB(nn.Module):
    """Residual-in-residual dense block: x + 0.2 * (three dense blocks)(x)."""

    def __init__(self, features: int, growth: int, impl: str) -> None:
        super().__init__()
        self.rdb1 = _ResidualDenseBlock(features, growth, impl)
        self.rdb2 = _ResidualDenseBlock(features, growth, impl)
        self.rdb3 = _ResidualDenseBlock(features, growth, impl)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=RESIDUAL_SCALE)


class _ResidualDenseBlock(nn.Module):
    """Parameters of a dense block, computed by :func:`andfast.functional.residual_dense_block`."""

    def __init__(self, features: int, growth: int, impl: str) -> None:
        super().__init__()
        self.impl = impl
        self.conv1 = _convolution(features, growth)
        self.conv2 = _convolution(features + growth, growth)
        self.conv3 = _convolution(features + 2 * growth, growth)
        self.conv4 = _convolution(features + 3 * growth, growth)
        self.conv5 = _convolution(features + 4 * growth, features)
        for convolution in self.convolutions():
            nn.init.kaiming_normal_(convolution.weight)
            nn.init.zeros_(_bias(convolution))
            with torch.no_grad():
                convolution.weight.mul_(INITIAL_GAIN)

    def convolutions(self) -> tuple[nn.Conv2d, ...]:
        return self.conv1, self.conv2, self.conv3, self.conv4, self.conv5

    def forward(self, x: Tensor) -> Tensor:
        convolutions = self.convolutions()
        return residual_dense_block(
            x,
            [convolution.weight for convolution in convolutions],
            [_bias(convolution) for convolution in convolutions],
            slope=NEGATIVE_SLOPE,
            scale=RESIDUAL_SCALE,
            impl=self.impl,
        )


def _convolution(cin: int, cout: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1)


def _bias(convolution: nn.Conv2d) -> Tensor:
    """The convolution's bias, which is never None here."""
    return cast(Tensor, convolution.bias)
