"""Build a stage's networks, objective, attack and training step from a configuration."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from andfast.adversary import PRESETS, Attack, AttackSettings, Ball, ConvolutionRadii, Objective, ReuseOptions
from andfast.adversary.calibration import scaled
from andfast.adversary.strategies import (
    PGD,
    Bicubic,
    CleanPooling,
    FastPGD,
    FastRandomStart,
    LRNoise,
    PGDRandomStart,
    RandomPoint,
    Strategy,
    StyleShift,
    Synthetic,
)
from andfast.config.adversary import WITH_ASCENT, WITH_BALL
from andfast.config.schema import STAGES, AdversaryConfig, DiscriminatorConfig, Stage, TrainConfig
from andfast.losses import GANLoss, PerceptualLoss
from andfast.nn import DegradationNetwork, RRDBNet, UNetDiscriminator, VGGDiscriminator
from andfast.nn.interpolation_start import start_as_interpolation
from andfast.nn.weights import generator_from_weights
from andfast.training.distributed import ProcessGroup
from andfast.training.profiling import Spans
from andfast.training.radius_controller import LARGEST_FACTOR
from andfast.training.step import RankInfo, TrainingStep, unscaled

NOISE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_generator(config: TrainConfig) -> RRDBNet:
    """Build G: loaded from ``init_weights`` if set, otherwise initialized from the global random number generator.

    Raises:
        ValueError: the architecture of the weights is not the configuration's.
    """
    sizes = config.generator
    if config.init_weights is None:
        generator = RRDBNet(
            config.scale, features=sizes.features, blocks=sizes.blocks, growth=sizes.growth, impl=config.ops
        )
        if sizes.start == "interpolation":
            start_as_interpolation(generator)
        return generator
    generator = generator_from_weights(config.init_weights, impl=config.ops)
    architecture = {"scale": config.scale, "features": sizes.features, "blocks": sizes.blocks, "growth": sizes.growth}
    for name, value in architecture.items():
        setting = name if name == "scale" else f"generator.{name}"
        if (loaded := getattr(generator, name)) != value:
            raise ValueError(f"{setting} must be that of init_weights {config.init_weights}, {loaded}, was {value}")
    return generator


def check_weights(config: TrainConfig) -> None:
    """Check ``init_weights`` and the VGG weights of stage gan before a run begins.

    Raises:
        FileNotFoundError, ValueError: weights are missing, unreadable or of another architecture.
    """
    if config.init_weights is not None:
        build_generator(config)
    loss = config.loss
    if "gan" in config.stages and loss.perceptual > 0 and loss.vgg_weights != "random":
        PerceptualLoss(loss.perceptual_layers, weights=loss.vgg_weights)


def build_discriminator(config: DiscriminatorConfig, patch_size: int) -> nn.Module:
    """Build D, initialized from the global random number generator."""
    if config.kind == "vgg":
        return VGGDiscriminator(patch_size, features=config.features)
    return UNetDiscriminator(features=config.features)


CHUNK_SIZE = 24
"""Images of 256x256 per chunk: the ascent then needs no more memory than training, and launches still fill a GPU."""


def captures_step(config: TrainConfig, device: str) -> bool:
    """Whether training steps run as CUDA graphs on this type of device."""
    return device == "cuda" if config.cuda_graph is None else config.cuda_graph


def default_chunk_size(stage: Stage, patch_size: int) -> int:
    """Default number of patches attacked per chunk; 0 for the whole micro batch.

    Stage gan is not chunked: D's batch statistics would be those of a chunk, which is a different loss.
    """
    if stage == "gan":
        return 0
    return max(CHUNK_SIZE * 256**2 // patch_size**2, 1)


def build_attack_settings(config: TrainConfig, stage: Stage) -> AttackSettings:
    """Hyperparameters of the attack: the preset, with the radii and steps that the configuration overrides.

    Args:
        config: of the run.
        stage: "net" or "gan".
    """
    settings = config.adversary
    preset = PRESETS[settings.preset]
    size = config.data.patch_size
    ball = preset.ball_for(size, size, config.degradation.channels)
    if settings.radius_joint is not None:
        factor = settings.radius_joint / ball.radii[0]
        ball = Ball(settings.radius_joint, ball.noise * factor, ball.slope * factor, joint=True)
    radii = {name: getattr(settings, f"radius_{name}") for name in ball.names}
    ball = ball.with_radii({name: radius for name, radius in radii.items() if radius is not None})
    if settings.symmetric_kernels is not None and isinstance(ball.convolution, ConvolutionRadii):
        ball = replace(ball, convolution=replace(ball.convolution, symmetric=settings.symmetric_kernels))
    if settings.zero_mean_noise is not None:
        ball = replace(ball, zero_mean_noise=settings.zero_mean_noise)
    chunk_size = settings.chunk_size
    if chunk_size is None:
        searches = settings.strategy in (*WITH_BALL, *WITH_ASCENT)
        chunk_size = default_chunk_size(stage, size) if searches else 0  # a search's memory is what chunks bound
    return AttackSettings(
        ball=ball,
        steps=settings.steps,
        step_size=preset.step_size if settings.step_size is None else settings.step_size,
        patch_size=size,
        channels=config.degradation.channels,
        noise=config.degradation.noise,
        noise_dtype=NOISE_DTYPES[config.degradation.stored_noise_dtype(config.precision)],
        slope=config.degradation.slope,
        images_per_network=config.degradation.images_per_network,
        chunk_size=chunk_size,
        image_radius=preset.image_radius if settings.image_radius is None else settings.image_radius,
    )


def build_reuse(config: TrainConfig) -> ReuseOptions:
    """Reuse options of a step; by default D's pass is reused only where that is exact."""
    settings = config.reuse
    shared = settings.discriminator_pass
    if shared is None:
        shared = config.discriminator.kind == "vgg" and not config.compile
    return ReuseOptions(settings.closed_form_first_step, settings.hr_features, settings.cast_weights, shared)


def build_objective(config: TrainConfig, stage: Stage, device: torch.device) -> Objective:
    """Build G's loss of a stage, with VGG and a new D on ``device``."""
    loss = config.loss
    if stage == "net":
        return Objective(l1=loss.l1, impl=config.ops)
    vgg = discriminator = None
    if loss.perceptual > 0:
        vgg = PerceptualLoss(
            loss.perceptual_layers,
            weights=loss.vgg_weights,
            criterion=loss.perceptual_criterion,
            impl=config.ops,
        ).to(device=device, memory_format=_memory_format(config))  # type: ignore[call-overload]
    if loss.gan > 0:
        discriminator = build_discriminator(config.discriminator, config.data.patch_size)
        discriminator = discriminator.to(device=device, memory_format=_memory_format(config))  # type: ignore[call-overload]
    return Objective(
        l1=loss.l1,
        perceptual=loss.perceptual,
        gan=loss.gan,
        vgg=vgg,
        discriminator=discriminator,
        gan_loss=GANLoss(loss.gan_kind) if discriminator is not None else None,
        impl=config.ops,
    )


def build_strategy(config: AdversaryConfig) -> Strategy:
    """How LR is made from HR."""
    scale = 1.0 if config.random_scale is None else config.random_scale
    match config.strategy:
        case "pgd":
            return PGD()
        case "fast":
            return FastPGD()
        case "none":
            return CleanPooling()
        case "bicubic":
            return Bicubic()
        case "noise":
            radius = LRNoise.radius if config.lr_noise_radius is None else config.lr_noise_radius
            return LRNoise(radius, config.lr_noise_norm or LRNoise.norm)
        case "random":
            return RandomPoint(scale)
        case "style":
            return StyleShift()
        case "pgd_random_start":
            return PGDRandomStart(scale)
        case "fast_random_start":
            return FastRandomStart(scale)
        case "synthetic":
            return Synthetic()


def _smallest_slope(config: AdversaryConfig, ball: Ball) -> float:
    """Lower bound of the slopes for which the ascent takes gradients."""
    reach = 1.0 if config.target_psnr is None else LARGEST_FACTOR
    if config.strategy in ("pgd_random_start", "fast_random_start"):  # the ball's center is this far from the identity
        scale = 1.0 if config.random_scale is None else config.random_scale
        reach *= 1 + (scale.get("slope", 0.0) if isinstance(scale, dict) else scale)
    return scaled(ball, reach).smallest_slope


def build_attack(
    config: TrainConfig,
    stage: Stage,
    generator: nn.Module,
    objective: Objective,
    radius_factor: Tensor | None = None,
) -> Attack:
    """Build the attack on G in a stage, with a factor on all radii that may change in place."""
    settings = build_attack_settings(config, stage)
    return Attack(
        degradation=DegradationNetwork(
            config.scale,
            padding=config.degradation.padding,
            smallest_slope=_smallest_slope(config.adversary, settings.ball),
            impl=config.ops,
        ),
        generator=generator,
        objective=objective,
        settings=settings,
        reuse=build_reuse(config),
        autocast=AUTOCAST[config.precision],
        degradation_autocast=config.degradation.precision == "mixed",
        round_lr=config.degradation.round_lr,
        radius_factor=radius_factor,
    )


def compile_networks(generator: nn.Module, discriminator: nn.Module | None, **options: Any) -> None:
    """Compile G's blocks and D in place, with ``torch.compile``'s options.

    One compiled block serves all 23. Compiling G as a whole takes minutes and fuses nothing more, since its dense
    blocks are custom ops.
    """
    import torch._dynamo  # noqa: PLC0415  # takes a second, which runs without compile do not need

    # These flags skip guards as long as the dictionaries that hold parameters do not change, and requires_grad does not
    # change them: gradients were computed for weights frozen since compilation, or missing for weights trained since.
    for name in ("skip_tensor_guards_with_matching_dict_tags", "use_recursive_dict_tags_for_guards"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, False)
    for module in (*generator.get_submodule("body").children(), discriminator):
        if module is not None:
            module.compile(**options)


def build_step(
    config: TrainConfig,
    stage: Stage,
    generator: nn.Module,
    group: ProcessGroup,
    *,
    scale_loss: Callable[[Tensor], Tensor] = unscaled,
    timer: Spans | None = None,
    shard: tuple[int, int] | None = None,
    parallel: bool = True,
    radius_factor: Tensor | None = None,
    strategy: Strategy | None = None,
) -> TrainingStep:
    """Build the training step of a stage on this process's device.

    Args:
        config: of the run.
        stage: "net" or "gan".
        generator: G at the start of the stage.
        group: the processes that train together.
        scale_loss: a gradient scaler's ``scale``.
        timer: times the step's phases.
        shard: (rank, world size) whose part of the global batch to compute, to rerun another rank's step; None for
            those of ``group``.
        parallel: whether DistributedDataParallel averages gradients.
        radius_factor: see :class:`andfast.adversary.Attack`.
        strategy: in place of the configured one.
    """
    device = group.device
    generator = generator.to(device=device, memory_format=_memory_format(config))  # type: ignore[call-overload]
    objective = build_objective(config, stage, device)
    discriminator = objective.discriminator
    if config.compile:
        compile_networks(generator, discriminator)
    rank, world_size = (group.rank, group.world_size) if shard is None else shard
    return TrainingStep(
        build_attack(config, stage, generator, objective, radius_factor),
        RankInfo(config.seed, STAGES.index(stage), rank, world_size, config.accumulate),
        generator_parallel=group.parallel(generator) if parallel else None,
        discriminator_parallel=group.parallel(discriminator) if parallel and discriminator is not None else None,
        scale_loss=scale_loss,
        strategy=build_strategy(config.adversary) if strategy is None else strategy,
        timer=timer,
    )


def _memory_format(config: TrainConfig) -> torch.memory_format:
    return torch.channels_last if config.channels_last else torch.contiguous_format
