"""Settings of the three networks: G, D and F."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from andfast.config.rules import check_at_least

if TYPE_CHECKING:
    from andfast.config.schema import TrainConfig

_RGB: Final = 3


@dataclass
class GeneratorConfig:
    """The restoration network G (RRDBNet)"""

    features: int = 64
    """Channels of the trunk."""
    blocks: int = 23
    """Number of residual-in-residual dense blocks."""
    growth: int = 32
    """Channels that each convolution of a dense block adds."""
    start: Literal["random", "interpolation"] = "random"
    """random: ESRGAN's initialization; interpolation: the same, but G starts as a plain interpolator, for runs of
    minutes (scale 4 only). Ignored with init_weights."""

    def validate(self, config: "TrainConfig") -> None:
        check_at_least("generator.features", self.features, 1)
        check_at_least("generator.blocks", self.blocks, 1)
        check_at_least("generator.growth", self.growth, 1)
        if self.start == "interpolation":
            if config.scale != 4:
                raise ValueError(f"generator.start must be 'random' for scale {config.scale}, was 'interpolation'")
            check_at_least("generator.features", self.features, _RGB)


@dataclass
class DiscriminatorConfig:
    """The discriminator D (stage gan)"""

    kind: Literal["vgg", "unet"] = "vgg"
    """vgg: ESRGAN's, for patches of 128 or 256; unet: Real-ESRGAN's, with spectral norm."""
    features: int = 64
    """Channels of the first layer."""

    def validate(self, _config: "TrainConfig") -> None:
        check_at_least("discriminator.features", self.features, 1)


@dataclass
class DegradationConfig:
    """The degradation network F and its random draws"""

    channels: int = 64
    """Channels of the hidden layers; at least 3, so that F can be the identity."""
    noise: Literal["full", "single"] = "full"
    """full: a noise map per channel of a layer; single: one map shared by all channels."""
    noise_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Storage dtype of noise maps and their gradients in the ascent; null: the precision that F runs in."""
    slope: Literal["layer", "channel"] = "layer"
    """One activation slope per layer, or per channel."""
    padding: Literal["replicate", "zeros"] = "replicate"
    """Padding of F's convolutions; zeros leave colored frames that the adversary exploits."""
    images_per_network: int = 1
    """Number of images that share one F; 0: one F for the whole batch."""
    precision: Literal["fp32", "mixed"] = "fp32"
    """fp32: F runs in fp32 whatever the run's precision; mixed: F follows the run's precision."""
    round_lr: bool = False
    """Round the training pass's LR to 8 bits, as a saved image would be; the ascent's LR is never rounded."""

    def stored_noise_dtype(self, run_precision: str) -> str:
        """``noise_dtype``, or its default: the precision that F runs in."""
        return self.noise_dtype or (run_precision if self.precision == "mixed" else "fp32")

    def validate(self, config: "TrainConfig") -> None:
        check_at_least("degradation.channels", self.channels, _RGB)
        shared = self.images_per_network
        check_at_least("degradation.images_per_network", shared, 0)
        if shared and config.batch_size % shared:
            divisors = [number for number in range(1, config.batch_size + 1) if config.batch_size % number == 0]
            nearest = min(divisors, key=lambda number: abs(number - shared))
            raise ValueError(
                f"degradation.images_per_network must divide batch_size, {config.batch_size}, or be 0, "
                f"was {shared}; the nearest is {nearest}"
            )
