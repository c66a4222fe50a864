"""Settings of the attack and of what a step reuses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from andfast.config.rules import check_at_least, check_number, check_positive

if TYPE_CHECKING:
    from andfast.config.schema import TrainConfig


@dataclass
class AdversaryConfig:
    """The inner ascent on F's parameters"""

    preset: Literal["calibrated", "strong", "paper"] = "calibrated"
    """calibrated: three balls of about 30 dB each; strong: of 25 dB; paper: the literal joint ball, 20."""
    steps: int = 5
    """Ascent steps per training step (paper: 5)."""
    precision: Literal["same", "fp8"] = "same"
    """same: the run's precision; fp8: 8-bit operands in G's dense blocks during the ascent; needs a GPU of compute
    capability 8.9 or newer (docs/kernels/residual_dense_block_fp8.md has the strength)."""
    step_size: float | None = None
    """Length of an ascent step as a fraction of the radius; null: the preset's, 0.3 (paper: 6 of 20)."""
    radius_convolution: float | None = None
    """Radius of the convolutions' ball; null: the preset's; not with preset paper."""
    radius_noise: float | None = None
    """Radius of the noises' ball; null: the preset's; not with preset paper."""
    radius_slope: float | None = None
    """Radius of the slopes' ball; null: the preset's; not with preset paper."""
    radius_joint: float | None = None
    """Radius of the joint ball; null: the preset's, 20; only with preset paper."""
    chunk_size: int | None = None
    """Number of images attacked per chunk; bounds peak memory. 0: a whole micro batch; null: in stage net 24 images of
    256x256 and more of smaller ones, with the same result up to rounding; in stage gan a whole
    micro batch, since D's batch statistics depend on it."""

    def validate(self, config: "TrainConfig") -> None:
        check_at_least("adversary.steps", self.steps, 1)
        if self.precision == "fp8" and config.precision == "fp32":
            raise ValueError(
                "adversary.precision must be 'same' with precision 'fp32', was 'fp8': 8-bit products are for runs in "
                "'bf16' or 'fp16'"
            )
        check_positive("adversary.step_size", self.step_size, "a number above 0 or null")
        check_at_least("adversary.chunk_size", self.chunk_size, 0)
        self._validate_radii()

    def _validate_radii(self) -> None:
        """Either a joint ball (preset paper), or one per group of parameters."""
        separate = {
            "adversary.radius_convolution": self.radius_convolution,
            "adversary.radius_noise": self.radius_noise,
            "adversary.radius_slope": self.radius_slope,
        }
        for name, radius in separate.items():
            check_number(name, radius, lambda radius: radius >= 0, "a number of at least 0 or null")
        if all(radius == 0 for radius in separate.values()):
            raise ValueError("adversary.radius_convolution, radius_noise or radius_slope must be above 0, all were 0")
        check_positive("adversary.radius_joint", self.radius_joint, "a number above 0 or null")
        if self.preset != "paper" and self.radius_joint is not None:
            raise ValueError(
                f"adversary.radius_joint must be null with adversary.preset {self.preset!r}, which has a "
                f"ball for each group, was {self.radius_joint}; set adversary.preset to 'paper' or use "
                "adversary.radius_convolution, radius_noise and radius_slope"
            )
        for name, radius in separate.items():
            if self.preset == "paper" and radius is not None:
                raise ValueError(
                    f"{name} must be null with adversary.preset 'paper', which has one joint ball, was {radius}; "
                    "use adversary.radius_joint"
                )


@dataclass
class ReuseConfig:
    """Results computed once per step and reused; the same up to rounding"""

    closed_form_first_step: bool = True
    """Compute the first ascent step, which starts at identity networks, in closed form, without a convolution."""
    hr_features: bool = True
    """Compute HR's VGG features (and logits, where the GAN loss needs them) once per step."""
    cast_weights: bool = True
    """Under bf16 and fp16, cast G's weights once for all ascent steps."""
    discriminator_pass: bool | None = None
    """Run D once over SR, for G's loss and for D's; null: on where it changes only rounding, that is, with
    discriminator.kind vgg and without compile. With the U-Net, spectral norm would be one power iteration ahead in G's
    loss."""

    def validate(self, config: "TrainConfig") -> None:
        if self.discriminator_pass and config.compile:
            raise ValueError(
                "reuse.discriminator_pass must be false or null with compile, was true: "
                "a compiled D cannot go backward twice"
            )
