"""Which settings may change when a run is resumed, and how a checkpoint recognizes the settings of its run."""

import hashlib
from collections.abc import Mapping
from typing import Final

from andfast.config.files import tree
from andfast.config.names import leaves
from andfast.config.renames import REMOVED, original_name
from andfast.config.schema import STAGES, Stage, TrainConfig

FREE_ON_RESUME: Final = (
    "output", "device", "channels_last", "compile", "cuda_graph", "reuse.closed_form_first_step", "reuse.hr_features",
    "reuse.cast_weights", "net.steps", "gan.steps", "data.pack", "data.workers", "validation", "log_every",
    "tensorboard", "checkpoint_every", "keep_checkpoints",
)  # fmt: skip
"""Settings, or groups of them, that may change on resume: they do not change what is computed."""
CHANGEABLE_ON_RESUME: Final = tuple(
    f"{stage}.{name}"
    for stage in STAGES
    for name in ("lr", "lr_schedule", "lr_milestones", "lr_gamma", "lr_warmup", "steps")
)
"""Settings that change the steps to come and may change on resume; the run's record and log name the change.

A stage's steps do so with a cosine schedule only, which ends with them."""
_DIGESTED: Final = (
    "accumulate", "adversary.images_at_once", "adversary.precision", "adversary.preset", "adversary.radius_convolution",
    "adversary.radius_joint", "adversary.radius_noise", "adversary.radius_slope", "adversary.step_size",
    "adversary.steps", "batch_size", "data.exclude", "data.include", "data.patch_size", "data.train",
    "degradation.channels", "degradation.images_per_network", "degradation.noise", "degradation.noise_dtype",
    "degradation.padding", "degradation.precision", "degradation.round_lr", "degradation.slope",
    "discriminator.features", "discriminator.kind", "ema_decay", "gan.betas", "gan.lr", "generator.blocks",
    "generator.features", "generator.growth", "generator.start", "init_weights", "loss.gan", "loss.gan_kind", "loss.l1",
    "loss.perceptual", "loss.perceptual_criterion", "loss.perceptual_layers", "loss.vgg_weights", "net.betas", "net.lr",
    "ops", "precision", "scale", "seed", "sharing.discriminator_pass", "stages",
)  # fmt: skip
"""Settings of version 0.1, under their original names. Digests leave out later ones at their defaults."""
SPLIT_OF_BATCH: Final = ("batch_size", "accumulate")
"""Settings that may change together with the number of processes, if their product stays."""


def digest(config: TrainConfig) -> str:
    """SHA-256 (hexadecimal) of all settings but :data:`FREE_ON_RESUME`, as version 0.1 computed it."""
    defaults = _settings(TrainConfig(output=config.output))
    bound = {
        original: value
        for name, value in _settings(config).items()
        if not _is_free(name) and ((original := original_name(name)) in _DIGESTED or value != defaults[name])
    }
    bound |= {name: value for name, (value, _) in REMOVED.items() if name in _DIGESTED}
    return hashlib.sha256(repr(sorted(bound.items())).encode()).hexdigest()


def differences(earlier: TrainConfig, now: TrainConfig) -> dict[str, tuple[object, object]]:
    """Settings that differ and change the result: dotted name to (earlier value, value now)."""
    before, after = _settings(earlier), _settings(now)
    return {
        name: (before.get(name), after.get(name))
        for name in {**before, **after}
        if not (_is_free(name) and not _sets_cosine(name, earlier, now)) and before.get(name) != after.get(name)
    }


def described(changes: Mapping[str, tuple[object, object]]) -> str:
    """Differences in one line: "net.lr was 0.001, is 0.0005"."""
    return "; ".join(f"{name} was {before}, is {now}" for name, (before, now) in changes.items())


def _settings(config: TrainConfig) -> dict[str, object]:
    """All settings by dotted name; defaults that depend on other settings are resolved, so that older runs resume."""
    noise_dtype = config.degradation.stored_noise_dtype(config.precision)
    return leaves(tree(config)) | {"degradation.noise_dtype": noise_dtype}


def _sets_cosine(name: str, *configs: TrainConfig) -> bool:
    """Whether a setting is the number of steps of a stage with a cosine schedule."""
    stages: dict[str, Stage] = {f"{stage}.steps": stage for stage in STAGES}
    return name in stages and any(config.stage(stages[name]).lr_schedule == "cosine" for config in configs)


def _is_free(name: str) -> bool:
    return name in FREE_ON_RESUME or name.partition(".")[0] in FREE_ON_RESUME
