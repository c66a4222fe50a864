"""What a training run can be told: dataclasses, one field a setting, each with its meaning, unit and default.

A field's docstring is its ``--help`` text. Parsing is in :mod:`andfast.config.parsing`, the rules that values
must keep in :mod:`andfast.config.checks`. "paper" marks numbers of the paper's section 4.3;
``docs/method.md`` lists every departure.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

Stage = Literal["net", "gan"]
"""``net`` trains ANDNet with L1 only; ``gan`` trains ANDGAN with content and GAN loss."""
STAGES: Final[tuple[Stage, ...]] = ("net", "gan")
"""The stages in the order in which they run."""


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
    """random: ESRGAN's initialisation; interpolation: it too, but a plain interpolator at the first step, for
    runs of minutes (scale 4 only). Without effect where init_weights are given."""


@dataclass
class DiscriminatorConfig:
    """The discriminator D (stage gan)"""

    kind: Literal["vgg", "unet"] = "vgg"
    """vgg: ESRGAN's, for patches of 128 or 256; unet: Real-ESRGAN's, with spectral norm."""
    features: int = 64
    """Channels of the first layer."""


@dataclass
class DegradationConfig:
    """The degradation network F and what is drawn for it"""

    channels: int = 64
    """Channels of the hidden layers; 3 or more, so that F can be the identity."""
    noise: Literal["full", "single"] = "full"
    """full: a noise map for every channel of a layer; single: one map that all channels share."""
    noise_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """How the ascent stores noise maps and their gradients; a half type moves half the bytes (docs/kernels.md)."""
    slope: Literal["layer", "channel"] = "layer"
    """One activation slope for a layer, or for every channel of it."""
    padding: Literal["replicate", "zeros"] = "replicate"
    """Border of F's convolutions; zeros leave coloured frames that the adversary exploits."""
    images_per_network: int = 1
    """Images that share one F: 1 gives every image its own, 0 one F for the whole batch."""
    precision: Literal["fp32", "mixed"] = "fp32"
    """fp32 runs F in fp32 whatever the run's precision; mixed follows the run's precision."""
    round_lr: bool = False
    """Round the training pass's LR to 8 bits, as a file would; the ascent's LR never is."""


@dataclass
class AdversaryConfig:
    """The inner ascent on F's parameters"""

    preset: Literal["calibrated", "strong", "paper"] = "calibrated"
    """calibrated: three balls of about 30 dB each; strong: of 25 dB; paper: the literal joint ball, 20."""
    steps: int = 5
    """Ascent passes for every training step (paper: 5)."""
    precision: Literal["same", "fp8"] = "same"
    """same: the ascent has the run's precision; fp8: in it G's dense blocks multiply 8-bit numbers, which takes a GPU
    of compute capability 8.9 or newer (docs/kernels.md has the strength)."""
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
    """Images whose worst cases are searched together, by which a step's memory goes; 0: a whole micro batch; null: 24
    (with cuda_graph 8) of 256x256, more of smaller ones, in stage net, where it changes nothing but rounding, and all
    in stage gan, where D would see batches of so many."""


def _perceptual_layers() -> dict[str, float]:
    return {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}


@dataclass
class LossConfig:
    """The losses; stage net uses L1 only"""

    l1: float = 1.0
    """Weight of the L1 loss."""
    perceptual: float = 1.0
    """Weight of the VGG19 perceptual loss (stage gan); 0 switches it off."""
    perceptual_layers: dict[str, float] = field(default_factory=_perceptual_layers)
    """VGG19 layers, before activation, and their weights c_j; given in a file, they replace the default."""
    perceptual_criterion: Literal["l1", "l2"] = "l1"
    """Distance of the features; the paper's equation 2 writes l2, ESRGAN's code takes l1."""
    vgg_weights: str = "torchvision"
    """torchvision, the path of a weights file, or random (smoke runs only: the loss then means nothing)."""
    gan: float = 0.1
    """Weight lambda of the GAN loss (paper: 0.1); 0 switches it off."""
    gan_kind: Literal["vanilla", "relativistic", "least_squares"] = "vanilla"
    """Form of the GAN loss (paper, equation 3: vanilla)."""


@dataclass
class NetConfig:
    """Stage net (ANDNet)"""

    steps: int = 1_000_000
    """Training steps (paper: 1,000,000)."""
    lr: float = 1e-4
    """Adam's learning rate (paper: 1e-4)."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's betas."""


@dataclass
class GanConfig:
    """Stage gan (ANDGAN)"""

    steps: int = 500_000
    """Training steps (paper: 500,000)."""
    lr: float = 1e-4
    """Adam's learning rate of G and D (paper: 1e-4)."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's betas of G and D."""


@dataclass
class DataConfig:
    """The training photographs"""

    train: list[str] = field(default_factory=list)
    """Folders with photographs, searched in depth; package:NAME/FOLDER is one inside an installed package."""
    include: list[str] = field(default_factory=list)
    """Take only files whose name or relative path matches one of these patterns (*, ?, []); empty: all."""
    exclude: list[str] = field(default_factory=list)
    """Leave out files whose name or relative path matches one of these patterns."""
    pack: Path | None = None
    """Folder of the packed images, which runs can share; null: OUTPUT/data."""
    patch_size: int = 256
    """Side of the HR crops in pixels (paper: 256)."""
    workers: int = 4
    """Processes that cut crops; 0: the main process does. They do not change the results."""


@dataclass
class ValidationConfig:
    """Validation on held-out photographs; off while hr is empty"""

    hr: list[str] = field(default_factory=list)
    """Folders with held-out HR photographs, as data.train."""
    lr: str | None = None
    """Folder with their LR versions under the same names; null: LR is made from HR by the clean pooling."""
    include: list[str] = field(default_factory=list)
    """As data.include."""
    exclude: list[str] = field(default_factory=list)
    """As data.exclude."""
    every: int = 5000
    """Steps between validations."""
    crops: int = 16
    """Number of fixed crops that are measured, spread over the photographs."""
    crop_size: int = 256
    """Side of these crops in HR pixels."""
    crop_border: int | None = None
    """HR pixels cut off each side before PSNR and SSIM; null: as many as the scale, the field's habit."""
    sheet: int = 6
    """Rows of the sample sheet; 0: none."""


@dataclass
class ReuseConfig:
    """What a step computes once and uses again; without effect on the results but for rounding"""

    closed_form_first_step: bool = True
    """The first ascent pass, at the identity networks, takes F's output and gradients in closed form, without a
    convolution."""
    hr_features: bool = True
    """HR's VGG features (and logits, where the GAN loss needs them) once a step, not in every pass."""
    cast_weights: bool = True
    """Under bf16 and fp16, cast G's weights once for all ascent passes, not in every pass."""
    discriminator_pass: bool | None = None
    """One pass of D over SR for G's loss and for D's; null: where it changes nothing but rounding, which is with
    discriminator.kind vgg and without compile. The U-Net's spectral norm would be one power iteration further in G's
    loss."""


@dataclass
class TrainConfig:
    """Training"""

    output: Path
    """Folder of the run: weights, checkpoints, metrics, pictures."""
    stages: list[Stage] = field(default_factory=lambda: ["net"])
    """Stages to run, in this order: [net], [gan] (then init_weights is required) or [net, gan]."""
    scale: Literal[2, 4] = 4
    """Upscaling factor."""
    seed: int = 0
    """Seed of weights, crops and identity networks; two runs with one seed on one CPU are bit-identical."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a GPU."""
    init_weights: Path | None = None
    """Weights that G starts from (.safetensors or .pth, ESRGAN family); stages [gan] requires them."""
    batch_size: int = 48
    """HR crops in a micro batch, for each process (paper: 48 in all)."""
    accumulate: int = 1
    """Micro batches whose gradients are summed before an optimizer step."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """bf16 and fp16 are autocast over fp32 master weights; fp16 scales its losses and needs CUDA."""
    channels_last: bool = True
    """Keep images and convolution weights in the channels_last memory format."""
    ops: Literal["auto", "reference"] = "auto"
    """auto takes the fastest implementation of each op that the device has; reference takes plain PyTorch."""
    compile: bool = False
    """Run G's blocks and D through torch.compile."""
    cuda_graph: bool | None = None
    """Replay the ascent as CUDA graphs, which keep its memory to themselves. A replay is compared with the ascent when
    it is recorded. null: in stage net on a GPU, and without them, which is said, where that fails; true: or fail."""
    ema_decay: float = 0.999
    """Decay of the moving average of G's weights, which is what gets saved; 0 switches it off."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    net: NetConfig = field(default_factory=NetConfig)
    gan: GanConfig = field(default_factory=GanConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reuse: ReuseConfig = field(default_factory=ReuseConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log_every: int = 100
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Write TensorBoard events as well."""
    checkpoint_every: int = 5000
    """Steps between checkpoints; every stage's end and an interrupt write one too."""
    keep_checkpoints: int = 3
    """Number of checkpoints to keep; older ones are deleted once a newer one is safe."""


StageConfig = NetConfig | GanConfig
"""What one stage is told; both kinds have ``steps``, ``lr`` and ``betas``."""


@dataclass(frozen=True)
class RunOptions:
    """What is told on the command line only."""

    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""
    steps: int | None = None
    """End every stage after this many steps in all; None: the configuration's."""
    overwrite: bool = False
    """Delete an earlier run in the run folder first."""
