"""Settings of the training images and of validation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from andfast.config.errors import choices_text
from andfast.config.rules import check_at_least, check_multiple

if TYPE_CHECKING:
    from andfast.config.schema import TrainConfig

VGG_DISCRIMINATOR_SIZES: Final = (128, 256)
_UNET_FACTOR: Final = 8  # three halvings, each undone by a doubling
_GENERATOR_FACTOR: Final = 4  # x2 unshuffles LR by 2, so HR must divide by 4 at either scale
_SSIM_WINDOW: Final = 11
_NIQE_BLOCK: Final = 96
_LPIPS_SIZE: Final = 31


@dataclass
class DataConfig:
    """The training images"""

    train: list[str] = field(default_factory=list)
    """Folders of images, searched recursively; package:NAME/FOLDER is a folder of an installed package."""
    include: list[str] = field(default_factory=list)
    """Use only files whose name or relative path matches one of these patterns (*, ?, []); empty: all files."""
    exclude: list[str] = field(default_factory=list)
    """Skip files whose name or relative path matches one of these patterns."""
    pack: Path | None = None
    """Folder of the packed images, which runs can share; null: OUTPUT/data."""
    patch_size: int = 256
    """Side of the HR crops in pixels (paper: 256)."""
    workers: int = 4
    """Data loading processes; 0: load in the main process. The number does not change the results."""

    def validate(self, config: "TrainConfig") -> None:
        if not self.train:
            raise ValueError("data.train must name at least one folder with photographs, was []")
        check_at_least("data.patch_size", self.patch_size, 1)
        check_multiple("data.patch_size", self.patch_size, _GENERATOR_FACTOR, f"scale {config.scale}")
        check_at_least("data.workers", self.workers, 0)
        if "gan" in config.stages:
            self._validate_gan_patch_size(config)

    def _validate_gan_patch_size(self, config: "TrainConfig") -> None:
        """The patch sizes that D and the VGG loss accept."""
        size = self.patch_size
        if config.discriminator.kind == "vgg" and size not in VGG_DISCRIMINATOR_SIZES:
            nearest = min(VGG_DISCRIMINATOR_SIZES, key=lambda allowed: abs(allowed - size))
            raise ValueError(
                f"data.patch_size must be {choices_text(VGG_DISCRIMINATOR_SIZES)} with discriminator.kind 'vgg', "
                f"was {size}; the nearest is {nearest} (discriminator.kind 'unet' takes multiples of {_UNET_FACTOR})"
            )
        if config.discriminator.kind == "unet":
            check_multiple("data.patch_size", size, _UNET_FACTOR, "discriminator.kind 'unet'")
        if size < (minimum := config.loss.min_patch_size):
            deepest = max(config.loss.perceptual_layers)
            raise ValueError(f"data.patch_size must be at least {minimum} for VGG layer {deepest}, was {size}")


@dataclass
class ValidationConfig:
    """Validation on held-out images; off while hr is empty"""

    hr: list[str] = field(default_factory=list)
    """Folders of held-out HR images, as data.train."""
    lr: str | None = None
    """Folder of their LR versions under the same names; null: LR is HR pooled by the clean degradation."""
    include: list[str] = field(default_factory=list)
    """As data.include."""
    exclude: list[str] = field(default_factory=list)
    """As data.exclude."""
    every: int = 5000
    """Steps between validations."""
    crops: int = 16
    """Number of fixed crops to measure, spread over the images."""
    crop_size: int = 256
    """Side of these crops in HR pixels."""
    crop_border: int | None = None
    """HR pixels cut off each side before PSNR and SSIM; null: the scale, as is customary."""
    best_by: Literal["psnr", "niqe", "lpips"] | None = None
    """Score that chooses the best weights: psnr (RGB), niqe or lpips; null: psnr in stage net, niqe in stage gan,
    unless crops are too small for it."""
    niqe_parameters: Path | None = None
    """NIQE's pristine model (.npz or the authors' .mat); null: fitted to training photographs."""
    lpips_weights: Path | None = None
    """torchvision's AlexNet weights for best_by lpips; null: torch.hub's cache, or downloaded."""
    sheet: int = 6
    """Rows of the sample sheet; 0: no sheet."""

    def validate(self, config: "TrainConfig") -> None:
        if self.lr is not None and len(self.hr) != 1:
            raise ValueError(
                "validation.hr must be one folder when validation.lr names the folder of its LR versions, "
                f"was [{', '.join(self.hr)}]"
            )
        check_at_least("validation.every", self.every, 1)
        check_at_least("validation.crops", self.crops, 1)
        check_at_least("validation.crop_border", self.crop_border, 0)
        check_at_least("validation.sheet", self.sheet, 0)
        check_multiple("validation.crop_size", self.crop_size, _GENERATOR_FACTOR, f"scale {config.scale}")
        border = self.border(config.scale)
        if self.crop_size - 2 * border < _SSIM_WINDOW:
            raise ValueError(
                f"validation.crop_size must be at least {_SSIM_WINDOW + 2 * border} (SSIM's window and the "
                f"border of {border} on each side), was {self.crop_size}"
            )
        self._validate_best_by(config)

    def _validate_best_by(self, config: "TrainConfig") -> None:
        if self.best_by is not None and not self.hr:
            raise ValueError(f"validation.best_by must be null without validation.hr, was {self.best_by!r}")
        if self.niqe_parameters is not None and self.best_by not in (None, "niqe"):
            raise ValueError(
                f"validation.niqe_parameters must be null with validation.best_by {self.best_by!r}, "
                f"was {str(self.niqe_parameters)!r}"
            )
        if self.lpips_weights is not None and self.best_by != "lpips":
            shown = "null" if self.best_by is None else repr(self.best_by)
            raise ValueError(
                f"validation.lpips_weights must be null with validation.best_by {shown}, "
                f"was {str(self.lpips_weights)!r}"
            )
        if self.best_by == "niqe" and self.lr is None and not self.holds_niqe_blocks(config.scale):
            raise ValueError(
                f"validation.crop_size must be at least {self.min_crop_size_for_niqe(config.scale)} with "
                f"validation.best_by 'niqe' (two blocks of {_NIQE_BLOCK} and the border), was {self.crop_size}"
            )
        smallest = _LPIPS_SIZE + 2 * self.border(config.scale)
        if self.best_by == "lpips" and self.lr is None and self.crop_size < smallest:
            raise ValueError(
                f"validation.crop_size must be at least {smallest} with validation.best_by 'lpips', "
                f"was {self.crop_size}"
            )

    def holds_niqe_blocks(self, scale: int) -> bool:
        """Whether crops hold two blocks of NIQE, for which it is defined."""
        return self.crop_size >= self.min_crop_size_for_niqe(scale)

    def min_crop_size_for_niqe(self, scale: int) -> int:
        """Smallest square crop that holds two blocks of NIQE within its border."""
        return 2 * _NIQE_BLOCK + 2 * self.border(scale)

    def border(self, scale: int) -> int:
        """HR pixels to cut off each side: ``crop_border``, or by default the scale."""
        return scale if self.crop_border is None else self.crop_border
