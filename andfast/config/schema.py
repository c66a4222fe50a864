"""Training configuration: the dataclass of a run, with a group of settings per concern.

A field's docstring is its ``--help`` text. Each group checks its own settings in ``validate``. "paper" marks numbers of
the paper's section 4.3; ``docs/method.md`` lists every departure.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from andfast.config.adversary import AdversaryConfig, ReuseConfig
from andfast.config.data import DataConfig, ValidationConfig
from andfast.config.losses import LossConfig
from andfast.config.networks import DegradationConfig, DiscriminatorConfig, GeneratorConfig
from andfast.config.rules import check_at_least, check_number
from andfast.config.stages import STAGES, GanConfig, NetConfig, Stage, StageConfig, validate_stage

__all__ = [
    "STAGES", "AdversaryConfig", "DataConfig", "DegradationConfig", "DiscriminatorConfig", "GanConfig",
    "GeneratorConfig", "LossConfig", "NetConfig", "ReuseConfig", "RunOptions", "Stage", "StageConfig", "TrainConfig",
    "ValidationConfig",
]  # fmt: skip

MAX_SEED: Final = 2**63 - 1


@dataclass
class TrainConfig:
    """Training"""

    output: Path
    """Folder of the run: weights, checkpoints, metrics, images."""
    stages: list[Stage] = field(default_factory=lambda: ["net"])
    """Stages to run, in this order: [net], [gan] (requires init_weights) or [net, gan]."""
    scale: Literal[2, 4] = 4
    """Upscaling factor."""
    seed: int = 0
    """Seed of weights, crops and identity networks; runs with equal seeds on one CPU are bit-identical."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto selects CUDA if available."""
    init_weights: Path | None = None
    """Initial weights of G (.safetensors or .pth, ESRGAN family); required by stages [gan]."""
    batch_size: int = 48
    """HR crops per micro batch and process (paper: 48 in all)."""
    accumulate: int = 1
    """Micro batches per optimizer step; their gradients are averaged."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """bf16 and fp16: autocast over fp32 master weights; fp16 uses loss scaling and needs CUDA."""
    channels_last: bool = True
    """Keep images and convolution weights in the channels_last memory format."""
    ops: Literal["auto", "reference"] = "auto"
    """auto: the fastest implementation of each op on the device; reference: plain PyTorch."""
    compile: bool = False
    """Run G's blocks and D through torch.compile."""
    cuda_graph: bool | None = None
    """Replay whole training steps as CUDA graphs; the first replay is compared with the eager step. null: on on a GPU,
    falling back to eager with a warning if capture fails; true: capture failure is an error."""
    ema_decay: float = 0.999
    """Decay of the exponential moving average of G's weights, which a run validates and saves; 0: off."""
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
    """Steps between checkpoints; one is also written when a stage ends and when a run is stopped."""
    keep_checkpoints: int = 3
    """Number of checkpoints to keep; older ones are deleted once a newer one is on disk."""

    def validate(self) -> None:
        """Check the configuration by itself; :mod:`andfast.config.machine` checks what it needs of the machine.

        Raises:
            ValueError: the first rule that is broken.
        """
        self._validate_stages()
        check_number("seed", self.seed, lambda seed: 0 <= seed <= MAX_SEED, f"from 0 to {MAX_SEED}")
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("accumulate", self.accumulate, 1)
        check_number("ema_decay", self.ema_decay, lambda decay: 0 <= decay < 1, "from 0 to below 1")
        check_at_least("log_every", self.log_every, 1)
        check_at_least("checkpoint_every", self.checkpoint_every, 1)
        check_at_least("keep_checkpoints", self.keep_checkpoints, 1)
        self.reuse.validate(self)
        self.generator.validate(self)
        self.discriminator.validate(self)
        self.degradation.validate(self)
        self.adversary.validate(self)
        self.loss.validate(self)
        self.data.validate(self)
        self.validation.validate(self)

    def _validate_stages(self) -> None:
        if self.stages not in (["net"], ["gan"], ["net", "gan"]):
            raise ValueError(f"stages must be [net], [gan] or [net, gan], was [{', '.join(self.stages)}]")
        if self.stages == ["gan"] and self.init_weights is None:
            raise ValueError(
                "init_weights must name the weights of a trained ANDNet when stages is [gan], was null "
                "(or set stages to [net, gan])"
            )
        validate_stage("net", self.net)
        validate_stage("gan", self.gan)

    def stage(self, name: Stage) -> StageConfig:
        """The settings of a stage."""
        return self.net if name == "net" else self.gan


@dataclass(frozen=True)
class RunOptions:
    """Options of one invocation, which are not settings of the run."""

    resume: bool = False
    """Continue from the newest checkpoint of the run folder."""
    steps: int | None = None
    """End every stage after this many steps in total; None: as configured."""
    overwrite: bool = False
    """Delete an earlier run in the run folder first."""
