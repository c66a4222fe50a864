"""Settings of the attack and of what a step reuses."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Literal

from andfast.config.errors import choices_text
from andfast.config.rules import check_at_least, check_number, check_positive

if TYPE_CHECKING:
    from andfast.config.schema import TrainConfig


Strategy = Literal[
    "pgd", "fast", "none", "bicubic", "noise", "random", "style", "pgd_random_start", "fast_random_start", "synthetic"
]
"""Ways to make LR from HR; the rows of the paper's table 2 and what is compared with them."""
WITH_BALL: Final[tuple[Strategy, ...]] = ("pgd", "fast", "random", "style", "pgd_random_start", "fast_random_start")
"""Strategies that move F's parameters within the ball."""
WITH_ASCENT: Final[tuple[Strategy, ...]] = ("pgd", "fast", "noise", "style", "pgd_random_start", "fast_random_start")
"""Strategies that ascend."""
FAST: Final[tuple[Strategy, ...]] = ("fast", "fast_random_start")
"""Strategies with a number and length of steps of their own."""
WITH_STEPS: Final = tuple(strategy for strategy in WITH_ASCENT if strategy not in FAST)
"""Strategies whose number and length of steps are set."""
WITH_POINT: Final[tuple[Strategy, ...]] = ("random", "pgd_random_start", "fast_random_start")
"""Strategies that draw a random point."""
WITH_TARGET: Final[tuple[Strategy, ...]] = ("pgd", "fast", *WITH_POINT)
"""Strategies whose LR comes nearer to the clean LR the smaller the radii; that of style is another picture."""
DEFAULT_STEPS: Final = 5


@dataclass
class AdversaryConfig:
    """The adversary: how LR is made from HR, and the inner ascent on F's parameters"""

    strategy: Strategy = "pgd"
    """pgd: complete AND, ascent from identity networks; fast: the same by a pass over each quarter of a picture;
    none: no adversary, LR by clean pooling; bicubic: the same by antialiased bicubic; noise: ascent on noise added to
    the clean LR; random: a random point of the ball, no ascent; style: ascent from F with random kernels, not
    identities (fails, as in the paper); pgd_random_start and fast_random_start: pgd and fast around a random point;
    synthetic: Real-ESRGAN's high-order pipeline (docs/method.md)."""
    random_scale: float | dict[str, float] | None = None
    """Factor on the radii for the random point, or factors by name of the ball's parts, such as {noise: 10}, and 0 for
    parts without; only with strategies random, pgd_random_start and fast_random_start. null: 1."""
    lr_noise_radius: float | None = None
    """Radius of strategy noise, in levels of 255: root mean square (l2) or largest value (linf); null: 8."""
    lr_noise_norm: Literal["l2", "linf"] | None = None
    """Norm of the ball of strategy noise; null: l2."""
    preset: Literal["symmetric", "calibrated", "strong", "paper"] = "symmetric"
    """symmetric: balls for kernel, rest and noise, without color, brightness and shift; calibrated: three balls of
    about 30 dB each; strong: of 25 dB; paper: the literal joint ball, 20."""
    steps: int = DEFAULT_STEPS
    """Ascent steps per training step (paper: 5)."""
    step_size: float | None = None
    """Length of an ascent step as a fraction of the radius; null: the preset's, 0.3 (paper: 6 of 20)."""
    radius_convolution: float | None = None
    """Radius of the convolutions' ball; null: the preset's; only with presets calibrated and strong."""
    radius_color: float | None = None
    """Radius of the sums of the convolutions' kernels; null: the preset's, 0; only with preset symmetric."""
    radius_kernel: float | None = None
    """Radius of one kernel per layer for all channels; null: the preset's; only with preset symmetric."""
    radius_rest: float | None = None
    """Radius of what remains of the convolutions; null: the preset's; only with preset symmetric."""
    radius_noise: float | None = None
    """Radius of the noises' ball; null: the preset's; not with preset paper."""
    radius_slope: float | None = None
    """Radius of the slopes' ball; null: the preset's; not with preset paper."""
    radius_joint: float | None = None
    """Radius of the joint ball; null: the preset's, 20; only with preset paper."""
    symmetric_kernels: bool | None = None
    """Keep the changes of kernel and rest point-symmetric, so that they shift no picture; null: true with preset
    symmetric, the only one that has these parts."""
    zero_mean_noise: bool | None = None
    """Keep the mean of each noise map at zero; null: the preset's, true with preset symmetric, else false."""
    image_radius: Literal["fixed", "uniform"] | None = None
    """Radii per image: as they are, or times a factor that is uniform in (0, 1); null: the preset's, uniform with
    preset symmetric, else fixed."""
    target_psnr: float | None = None
    """dB, from 10 to 60: keep the mean PSNR of adversarial LR against clean LR here by a common factor on all radii,
    adjusted every 10 steps; only with strategies pgd, fast and those with a random point. null: radii stay."""
    chunk_size: int | None = None
    """Number of images attacked per chunk; bounds peak memory. 0: a whole micro batch; null: in stage net 24 images of
    256x256 and more of smaller ones, with the same result up to rounding; in stage gan a whole
    micro batch, since D's batch statistics depend on it."""

    def validate(self, config: "TrainConfig") -> None:
        check_at_least("adversary.steps", self.steps, 1)
        check_positive("adversary.step_size", self.step_size, "a number above 0 or null")
        check_at_least("adversary.chunk_size", self.chunk_size, 0)
        must_be = "a number from 10 to 60 (dB) or null"
        check_number("adversary.target_psnr", self.target_psnr, lambda target: 10 <= target <= 60, must_be)
        self._validate_radii()
        self._validate_strategy()

    def _validate_strategy(self) -> None:
        """Settings that the strategy does not use must have their defaults."""
        self._validate_random_scale()
        check_positive("adversary.lr_noise_radius", self.lr_noise_radius, "a number above 0 or null")
        radii = [field.name for field in fields(self) if field.name.startswith("radius_")]
        users: dict[str, tuple[Strategy, ...]] = {
            "random_scale": WITH_POINT,
            "lr_noise_radius": ("noise",),
            "lr_noise_norm": ("noise",),
            "step_size": WITH_STEPS,
            "target_psnr": WITH_TARGET,
            **dict.fromkeys((*radii, "symmetric_kernels", "zero_mean_noise", "image_radius"), WITH_BALL),
        }
        for name, strategies in users.items():
            value = getattr(self, name)
            if value is not None and self.strategy not in strategies:
                raise ValueError(
                    f"adversary.{name} must be null with adversary.strategy {self.strategy!r}, which does not use it, "
                    f"was {str(value).lower() if isinstance(value, bool) else value}; {choices_text(strategies)} would"
                )
        if self.steps != DEFAULT_STEPS and self.strategy not in WITH_STEPS:
            reason = "has a number of its own" if self.strategy in FAST else "has no ascent"
            raise ValueError(
                f"adversary.steps must be {DEFAULT_STEPS}, its default, with adversary.strategy {self.strategy!r}, "
                f"which {reason}, was {self.steps}"
            )

    def _validate_random_scale(self) -> None:
        """One factor, or one for each part of the ball that the random point leaves."""
        name, scale = "adversary.random_scale", self.random_scale
        if not isinstance(scale, dict):
            check_positive(name, scale, "a number above 0, factors by name or null")
            return
        if self.preset == "paper":
            raise ValueError(f"{name} must be one number with adversary.preset 'paper', a joint ball, was {scale}")
        parts = self._radius_names
        if not scale or not set(scale) <= set(parts):
            raise ValueError(
                f"{name} must name parts of the ball of adversary.preset {self.preset!r}, {_listed(*parts)}, was "
                f"{scale}"
            )
        for part, factor in scale.items():
            check_number(f"{name}.{part}", factor, lambda factor: factor >= 0, "a number of at least 0")
        if not any(scale.values()):
            raise ValueError(f"{name} must have a factor above 0, was {scale}")

    @property
    def _radius_names(self) -> tuple[str, ...]:
        """Parts of a ball that is not joint, as :attr:`andfast.adversary.Ball.names`."""
        convolution = ("color", "kernel", "rest") if self.preset == "symmetric" else ("convolution",)
        return (*convolution, "noise", "slope")

    def _validate_radii(self) -> None:
        """Either a joint ball (preset paper), or one per group of parameters; symmetric has three of convolutions."""
        allowed = tuple(f"radius_{name}" for name in self._radius_names)
        radii: dict[str, float | None] = {
            name: getattr(self, f"radius_{name}")
            for name in ("convolution", "color", "kernel", "rest", "noise", "slope")
        }
        for name, radius in radii.items():
            must_be = "a number of at least 0 or null"
            check_number(f"adversary.radius_{name}", radius, lambda radius: radius >= 0, must_be)
        check_positive("adversary.radius_joint", self.radius_joint, "a number above 0 or null")
        if self.preset != "paper" and self.radius_joint is not None:
            raise ValueError(
                f"adversary.radius_joint must be null with adversary.preset {self.preset!r}, which has a "
                f"ball for each group, was {self.radius_joint}; set adversary.preset to 'paper' or use "
                f"{_listed('adversary.' + allowed[0], *allowed[1:])}"
            )
        for name, radius in radii.items():
            if radius is not None and self.preset == "paper":
                raise ValueError(
                    f"adversary.radius_{name} must be null with adversary.preset 'paper', which has one joint ball, "
                    f"was {radius}; use adversary.radius_joint"
                )
            if radius is not None and f"radius_{name}" not in allowed:
                raise ValueError(
                    f"adversary.radius_{name} must be null with adversary.preset {self.preset!r}, was {radius}; use "
                    f"{_listed('adversary.' + allowed[0], *allowed[1:])}"
                )
        zero_by_default = {"radius_color", "radius_slope"} if self.preset == "symmetric" else set()
        if all(getattr(self, name) == 0 or (name in zero_by_default and not getattr(self, name)) for name in allowed):
            raise ValueError(
                f"{_listed('adversary.' + allowed[0], *allowed[1:], word='or')} must be above 0, all were 0"
            )
        if self.preset != "symmetric" and self.symmetric_kernels is not None:
            raise ValueError(
                f"adversary.symmetric_kernels must be null with adversary.preset {self.preset!r}, which has one ball "
                f"for whole convolutions, was {str(self.symmetric_kernels).lower()}; set adversary.preset to "
                "'symmetric'"
            )


def _listed(*names: str, word: str = "and") -> str:
    """Names in words: "a, b and c"."""
    return f"{', '.join(names[:-1])} {word} {names[-1]}"


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
