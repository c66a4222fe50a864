"""From a configuration to the networks, the objective and the step of a stage."""

import logging
from dataclasses import replace
from typing import Any

import torch
import torch._dynamo
from torch import nn

from andfast.adversary import GROUPS, PRESETS, Ball
from andfast.adversary.objective import Objective
from andfast.config.schema import STAGES, DiscriminatorConfig, Stage, TrainConfig
from andfast.losses import GANLoss, PerceptualLoss
from andfast.nn import DegradationNetwork, RRDBNet, UNetDiscriminator, VGGDiscriminator
from andfast.nn.interpolation_start import start_as_interpolation
from andfast.nn.weights import generator_from_weights
from andfast.training.cuda_graph import CUDAGraphBackend, CUDAGraphCallable
from andfast.training.distributed import ProcessGroup
from andfast.training.profiling import StepTimer
from andfast.training.step import TrainingStep
from andfast.training.step_settings import AttackSettings, RankInfo, ReuseOptions

logger = logging.getLogger(__name__)

NOISE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_generator(config: TrainConfig) -> RRDBNet:
    """G, from ``init_weights`` if there are any, else drawn from the global generator.

    Raises:
        ValueError: the weights are of another architecture than the configuration's.
    """
    sizes = config.generator
    if config.init_weights is None:
        generator = RRDBNet(
            config.scale, features=sizes.features, blocks=sizes.blocks, growth=sizes.growth, impl=config.ops
        )
        if sizes.start == "interpolation":
            start_as_interpolation(generator)
        return generator
    wanted = {"scale": config.scale, "features": sizes.features, "blocks": sizes.blocks, "growth": sizes.growth}
    found = generator_from_weights(config.init_weights, impl=config.ops)
    for name, value in wanted.items():
        field = name if name == "scale" else f"generator.{name}"
        if (was := getattr(found, name)) != value:
            raise ValueError(f"{field} must be that of init_weights {config.init_weights}, {was}, was {value}")
    return found


def build_discriminator(config: DiscriminatorConfig, patch_size: int) -> nn.Module:
    """D, drawn from the global generator."""
    if config.kind == "vgg":
        return VGGDiscriminator(patch_size, features=config.features)
    return UNetDiscriminator(features=config.features)


CHUNK_SIZE = 24
"""Of 256x256: the ascent then needs no more memory than the training pass, and each launch still fills a GPU."""
IMAGES_IN_A_GRAPH = 8
"""A graph keeps its memory from the training pass, and more launches cost it nothing."""


def records_ascent(config: TrainConfig, stage: Stage, device: str) -> bool:
    """Whether a stage's ascent is replayed as a CUDA graph on this kind of device; by default where that is cheap.

    In stage gan the ascent takes more memory than the training pass, and a graph would keep it.
    """
    return device == "cuda" and stage == "net" if config.cuda_graph is None else config.cuda_graph


def default_chunk_size(stage: Stage, side: int, cuda_graph: bool) -> int:
    """How many images of ``side`` pixels square have their ascent together by default; 0: all of a micro batch.

    In stage gan all of them, as D would see batches of so many: another loss.
    """
    if stage == "gan":
        return 0
    return max((IMAGES_IN_A_GRAPH if cuda_graph else CHUNK_SIZE) * 256**2 // side**2, 1)


def build_adversary(config: TrainConfig, stage: Stage, *, recorded: bool = False) -> AttackSettings:
    """The search of the worst case: the preset, with the radii that the configuration replaces.

    Args:
        config: of the run.
        stage: "net" or "gan".
        recorded: whether it is replayed as a CUDA graph.
    """
    settings = config.adversary
    preset = PRESETS[settings.preset]
    size = config.data.patch_size
    ball = preset.ball_for(size, size)
    if settings.radius_joint is not None:
        factor = settings.radius_joint / ball.convolution
        ball = Ball(settings.radius_joint, ball.noise * factor, ball.slope * factor, joint=True)
    for group in GROUPS:
        radius = getattr(settings, f"radius_{group}")
        if radius is not None:
            ball = replace(ball, **{group: radius})
    at_once = settings.chunk_size
    return AttackSettings(
        ball=ball,
        steps=settings.steps,
        step_size=preset.step_size if settings.step_size is None else settings.step_size,
        channels=config.degradation.channels,
        noise=config.degradation.noise,
        noise_dtype=NOISE_DTYPES[config.degradation.noise_dtype],
        slope=config.degradation.slope,
        images_per_network=config.degradation.images_per_network,
        chunk_size=default_chunk_size(stage, size, recorded) if at_once is None else at_once,
        precision=settings.precision,
    )


def compile_networks(generator: nn.Module, discriminator: nn.Module | None, **options: Any) -> None:
    """Run G's blocks and D through torch.compile, with its options.

    A compiled block serves all 23: G as a whole takes minutes, and has no more to fuse, as its dense blocks are ops.
    """
    # Else torch takes weights that have been frozen, or set free again, for what they were when it compiled: it looks
    # at the dictionaries that hold them, which requires_grad does not change. In either order gradients were wrong:
    # computed for frozen weights, or missing for trained ones.
    for name in ("skip_tensor_guards_with_matching_dict_tags", "use_recursive_dict_tags_for_guards"):
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, False)
    for module in (*generator.get_submodule("body").children(), discriminator):
        if module is not None:
            module.compile(**options)


def build_sharing(config: TrainConfig) -> ReuseOptions:
    """What a step computes once; D's pass only where that is exact, unless the configuration insists."""
    settings = config.reuse
    shared = settings.discriminator_pass
    if shared is None:
        shared = config.discriminator.kind == "vgg" and not config.compile
    return ReuseOptions(settings.closed_form_first_step, settings.hr_features, settings.cast_weights, shared)


def build_step(config: TrainConfig, stage: Stage, generator: nn.Module, group: ProcessGroup) -> TrainingStep:
    """Everything that a step of this stage needs, on this process's device."""
    device = group.device
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    generator = generator.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    discriminator = None
    objective = Objective(l1=config.loss.l1, impl=config.ops)
    if stage == "gan":
        loss = config.loss
        vgg = None
        if loss.perceptual > 0:
            vgg = PerceptualLoss(
                loss.perceptual_layers,
                weights=loss.vgg_weights,
                criterion=loss.perceptual_criterion,
                impl=config.ops,
            ).to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        if loss.gan > 0:
            discriminator = build_discriminator(config.discriminator, config.data.patch_size)
            discriminator = discriminator.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
        objective = Objective(
            l1=loss.l1,
            perceptual=loss.perceptual,
            gan=loss.gan,
            vgg=vgg,
            discriminator=discriminator,
            gan_loss=GANLoss(loss.gan_kind) if discriminator is not None else None,
            impl=config.ops,
        )
    if config.compile:
        compile_networks(generator, discriminator)
    recorded = records_ascent(config, stage, device.type)
    adversary = build_adversary(config, stage, recorded=recorded)
    degradation = DegradationNetwork(
        config.scale,
        padding=config.degradation.padding,
        smallest_slope=adversary.ball.smallest_slope,
        impl=config.ops,
    )
    step = TrainingStep(
        degradation=degradation,
        generator=generator,
        discriminator=discriminator,
        objective=objective,
        adversary=adversary,
        patch_size=config.data.patch_size,
        place=RankInfo(config.seed, STAGES.index(stage), group.rank, group.world_size, config.accumulate),
        autocast=AUTOCAST[config.precision],
        degradation_autocast=config.degradation.precision == "mixed",
        round_lr=config.degradation.round_lr,
        sharing=build_sharing(config),
        generator_parallel=group.parallel(generator),
        discriminator_parallel=None if discriminator is None else group.parallel(discriminator),
        stopwatch=StepTimer(device),
    )
    if recorded:
        step.capture = CUDAGraphCallable(
            step.find,
            CUDAGraphBackend(),
            watch=step.frozen_tensors,
            check=True,
            required=config.cuda_graph is True,
            tell=lambda message: logger.info(f"stage {stage}: the ascent as a CUDA graph: {message}"),
        )
    return step
