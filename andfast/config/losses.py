"""Settings of the losses."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from andfast.config.errors import nearest
from andfast.config.rules import check_number, check_positive

if TYPE_CHECKING:
    from andfast.config.schema import TrainConfig

VGG_LAYERS: Final = tuple(
    f"conv{block}_{layer}" for block, layers in enumerate((2, 2, 4, 4, 4), start=1) for layer in range(1, layers + 1)
)
"""The convolutions of VGG19, in order."""
VGG_WEIGHTS: Final = ("torchvision", "random")
"""Names that ``loss.vgg_weights`` accepts besides paths."""


def _perceptual_layers() -> dict[str, float]:
    return {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}


@dataclass
class LossConfig:
    """The losses; stage net uses L1 only"""

    l1: float = 1.0
    """Weight of the L1 loss."""
    perceptual: float = 1.0
    """Weight of the VGG19 perceptual loss (stage gan); 0: off."""
    perceptual_layers: dict[str, float] = field(default_factory=_perceptual_layers)
    """VGG19 layers, before activation, and their weights c_j; layers given in a file replace the default."""
    perceptual_criterion: Literal["l1", "l2"] = "l1"
    """Distance between features; the paper's equation 2 uses l2, ESRGAN's code l1."""
    vgg_weights: str = "torchvision"
    """torchvision, the path of a weights file, or random (smoke runs only: the loss is then meaningless)."""
    gan: float = 0.1
    """Weight lambda of the GAN loss (paper: 0.1); 0: off."""
    gan_kind: Literal["vanilla", "relativistic", "least_squares"] = "vanilla"
    """Form of the GAN loss (paper, equation 3: vanilla)."""

    def validate(self, config: "TrainConfig") -> None:
        for name, weight in (("l1", self.l1), ("perceptual", self.perceptual), ("gan", self.gan)):
            check_number(f"loss.{name}", weight, lambda weight: weight >= 0, "a number of at least 0")
        if "net" in config.stages and self.l1 == 0:
            raise ValueError("loss.l1 must be above 0 for stage net, which has no other loss, was 0")
        if "gan" in config.stages and self.l1 == self.perceptual == 0:
            raise ValueError("loss.l1 or loss.perceptual must be above 0 for stage gan, both were 0")
        if self.perceptual > 0 and not self.perceptual_layers:
            raise ValueError(
                "loss.perceptual_layers must name at least one layer while loss.perceptual is above 0, was {}"
            )
        for layer, weight in self.perceptual_layers.items():
            if layer not in VGG_LAYERS:
                raise ValueError(
                    f"loss.perceptual_layers must name convolutions of VGG19, conv1_1 to conv5_4, was {layer!r}; "
                    f"did you mean {nearest(layer, VGG_LAYERS)!r}?"
                )
            check_positive(f"loss.perceptual_layers.{layer}", weight)
        if not self.vgg_weights:
            raise ValueError("loss.vgg_weights must be 'torchvision', 'random' or the path of a weights file, was ''")

    @property
    def min_patch_size(self) -> int:
        """Smallest patch that the deepest VGG layer accepts: blocks are separated by poolings of 2."""
        return 2 ** (int(max(self.perceptual_layers)[4]) - 1) if self.perceptual > 0 else 1
