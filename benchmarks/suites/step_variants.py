"""Variants and sizes of the training step that benchmarks/suites/test_step.py times.

Each variant gives the gradients of a plain ESRGAN step and of an AND step, from the same weights, on the same images.
Baselines 1 to 3 are plain PyTorch (naive.py): straightforward, in bf16, and as fast as torch.compile makes it.
"""

import functools
import os
from dataclasses import dataclass, replace

import torch

from andfast.adversary import PRESETS, Attack, AttackSettings, Objective, ReuseOptions
from andfast.adversary.strategies import PGD, FastPGD
from andfast.functional import blur_pool
from andfast.losses import REAL_ESRGAN_LAYERS, GANLoss, PerceptualLoss
from andfast.nn import DegradationNetwork, RRDBNet, VGGDiscriminator
from andfast.nn.interpolation_start import start_as_interpolation
from andfast.training.build import compile_networks, default_chunk_size
from andfast.training.captured_step import CapturedStep
from andfast.training.cuda_graph import CUDAGraphBackend
from andfast.training.distributed import ProcessGroup
from andfast.training.ema import EMA
from andfast.training.profiling import StepTimer
from andfast.training.step import RankInfo, TrainingStep
from benchmarks.baselines import naive

TORCHVISION = {"conv1_1": 0, "conv1_2": 2, "conv2_2": 7, "conv3_4": 16, "conv4_4": 25, "conv5_4": 34}
"""Where torchvision's ``vgg19().features`` has these layers."""


@dataclass(frozen=True)
class Size:
    """Of a step's networks and images."""

    batch: int
    hr: int
    features: int
    blocks: int
    growth: int
    channels: int
    discriminator: int
    layers: dict[str, float]
    steps: int = 5


FULL = Size(48, 256, 64, 23, 32, 64, 64, REAL_ESRGAN_LAYERS)
"""The paper's."""
TINY = Size(2, 128, 8, 1, 4, 8, 4, {"conv1_1": 0.1})
"""For a CPU."""
PARITY = Size(4, 128, 8, 1, 4, 32, 4, {"conv1_1": 0.1}, steps=2)
"""For the comparison of losses: batch statistics of more images and fewer passes, as both amplify rounding."""
PARITY_SEED = 5
"""With it, no unit deep in D was within rounding of its kink; with others, one that flips moves gradients by 1e-2."""


@dataclass(frozen=True)
class Variant:
    """How a step is computed.

    Attributes:
        name: for the report.
        baseline: its number in the list of baselines, 1 to 4; 2 computes what 1 does, 3 the better plain PyTorch, 4 is
            andfast. 5 is andfast with an ascent that is not exact.
        bf16: whether G, D, VGG and F run under bf16 autocast, in channels_last; else fp32, contiguous.
        degradation_fp32: F in fp32 nevertheless.
        compiled: through torch.compile; andfast as `compile: true` does.
        graph: steps are CUDA graphs, optimizers and EMA included.
        core: G by the compiled convolution ops (impl="cuda").
        fast: by strategy fast instead of pgd.
        preset: of the ball; plain PyTorch has that of "calibrated".
    """

    name: str
    baseline: int
    bf16: bool = False
    degradation_fp32: bool = False
    compiled: bool = False
    graph: bool = False
    core: bool = False
    fast: bool = False
    preset: str = "calibrated"


SHIPPED = Variant("andfast bf16, shipped, CUDA graph", 4, bf16=True, graph=True, preset="symmetric")
"""What configs/andnet_x4.yaml and andgan_x4.yaml train with on a GPU."""

VARIANTS = (  # in the order of their weight, as time may be up before the last
    Variant("andfast bf16", 4, bf16=True),
    Variant("andfast bf16, CUDA graph", 4, bf16=True, graph=True),
    SHIPPED,
    Variant("andfast bf16, G in CUDA", 4, bf16=True, core=True),
    Variant("andfast bf16, G in CUDA, CUDA graph", 4, bf16=True, core=True, graph=True),
    Variant("naive bf16", 2, bf16=True),
    Variant("naive fp32", 1),
    Variant("best plain PyTorch", 3, bf16=True, compiled=True),
    Variant("andfast bf16, F in fp32", 4, bf16=True, degradation_fp32=True),
    Variant("andfast bf16, compiled", 4, bf16=True, compiled=True),
    Variant("andfast bf16, compiled, CUDA graph", 4, bf16=True, compiled=True, graph=True),
    Variant("andfast bf16, strategy fast, CUDA graph", 5, bf16=True, graph=True, fast=True),
    Variant("andfast fp32", 4),
)


def compile_options(device):
    """Options of torch.compile; None on a CPU, where inductor takes minutes and says nothing about a GPU.

    ANDFAST_BENCH_COMPILE, "inductor" or "aot_eager", enables compilation anyway.
    """
    backend = os.environ.get("ANDFAST_BENCH_COMPILE")
    if backend:
        return {"backend": backend}
    return {"mode": "max-autotune-no-cudagraphs"} if device == "cuda" else None


class Step:
    """One variant of one stage: networks, optimizers, images.

    Args:
        variant, size: as above.
        stage: "net" or "gan".
        device: "cuda", "cpu" or "meta".
        timer: times the phases of a step.
        reuse: reuse options of andfast's step; by default those of the trainer.
        seed: of weights, images and identity networks.
        backend: captures the steps of a variant with graphs.
    """

    def __init__(self, variant, size, stage, device, *, timer=None, reuse=None, seed=0, backend=None):
        self.backend = backend or CUDAGraphBackend()
        self.variant, self.size, self.stage, self.device = variant, size, stage, device
        self.compiled = variant.compiled and device != "meta" and compile_options(device) is not None
        if reuse is None:  # as in the configuration: backward cannot run twice through a compiled D
            reuse = ReuseOptions(discriminator_pass=not self.compiled)
        self.ours = package_step(variant, size, stage, device, reuse, timer=timer, seed=seed)
        self.naive = None
        if variant.baseline < 4:
            self.naive = naive_step(self.ours, variant, size, timer)
        owner = self.naive or self.ours
        self.networks = [network for network in (owner.generator, owner.discriminator) if network is not None]
        vgg = self.naive.vgg if self.naive is not None else self.ours.objective.vgg
        memory_format = torch.channels_last if variant.bf16 else torch.contiguous_format
        for network in (*self.networks, vgg):
            if network is not None:
                network.to(memory_format=memory_format)
        if self.compiled:
            self._compile(owner, vgg)
        fused = {"fused": True, "capturable": variant.graph} if device == "cuda" else {"fused": variant.graph}
        self.optimizers = [torch.optim.Adam(net.parameters(), 1e-4, (0.9, 0.99), **fused) for net in self.networks]
        generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)
        hr = torch.rand(size.batch, 3, size.hr, size.hr, generator=generator, device=device)
        smooth = blur_pool(hr, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        self.hr = smooth.contiguous(memory_format=memory_format)
        self.done = 0
        self.timer = timer
        self.check = True  # compare captures with eager steps
        self._captured = None

    def _compile(self, owner, vgg):
        """As ``compile: true`` does. Plain PyTorch gets max-autotune, also VGG, and F but for its convolutions."""
        options = compile_options(self.device)
        if self.naive is None:
            options = {name: option for name, option in options.items() if name == "backend"}
        compile_networks(owner.generator, owner.discriminator, **options)
        if self.naive is not None and vgg is not None:
            vgg.compile(**options)
        if self.naive is not None:
            # F's convolutions stay cuDNN's either way; in a graph torch took their strides for others than they were.
            self.naive.activate = torch.compile(naive.activate, **options)

    def gradients(self, kind, theta=None):
        """The losses of a "plain" or an "and" step; gradients are left on the weights."""
        if self.variant.graph:
            self.whole(kind)
            return {name: torch.tensor(value) for name, value in self._captured.latch.read().values.items()}
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.naive is not None:
            if kind == "plain":
                return self.naive.plain_step(self.hr)
            return self.naive.and_step(self.hr, theta)
        if kind == "and":
            return self.ours.gradients([self.hr], self.done)
        return plain_step(self.ours, self.hr)

    def whole(self, kind):
        """One step, optimizers included; in CUDA graphs always of the same kind."""
        if self.variant.graph:
            if self._captured is None:
                self._captured = self._capture(kind)
            self._captured.take([self.hr], self.done)
            self.done += 1
            return
        self.gradients(kind)
        with self.ours.span("optimizer"):
            for optimizer in self.optimizers:
                optimizer.step()
        self.done += 1

    def _capture(self, kind):
        """As the trainer captures its steps."""
        names = ("generator", "discriminator")[: len(self.networks)]
        device = torch.device(self.device)
        return CapturedStep(
            self.ours if kind == "and" else PlainStep(**vars(self.ours)),
            dict(zip(names, self.networks, strict=True)),
            dict(zip(names, self.optimizers, strict=True)),
            torch.amp.GradScaler(device.type, enabled=False),
            EMA(self.ours.generator, 0.999),
            ProcessGroup(0, 1, device),
            self.timer or StepTimer(device),
            self.backend,
            name=f"{kind} step of stage {self.stage}",
            check=self.check,
            required=True,
        )


class PlainStep(TrainingStep):
    """ESRGAN's step, with the interface of the AND step."""

    def draws(self, hr, step, micro=0):
        return iter(())

    def micro_gradients(self, hr, draws, micro_batches=1, *, last=True):
        return plain_step(self, hr)


def plain_step(step, hr):
    """ESRGAN's step with the package's ops, on clean LR."""
    with torch.no_grad():
        lr = blur_pool(hr, step.attack.degradation.scale)
    with step.span("generator"):
        targets = step.attack.targets(hr)
    return step.train(hr, lr, targets)


def package_step(variant, size, stage, device, reuse, *, timer=None, seed=0):
    """A TrainingStep with weights of that seed, and the configuration's default chunks of images."""
    torch.manual_seed(seed)
    impl = "cuda" if variant.core and device != "meta" else "auto"
    generator = RRDBNet(4, features=size.features, blocks=size.blocks, growth=size.growth, impl=impl)
    start_as_interpolation(generator)  # a random G's losses hardly depend on LR, and would compare to any
    discriminator, objective = None, Objective(1.0)
    if stage == "gan":
        discriminator = VGGDiscriminator(size.hr, features=size.discriminator)
        vgg = PerceptualLoss(size.layers, weights="random").to(device)
        discriminator.to(device)
        objective = Objective(1.0, 1.0, 0.1, vgg, discriminator, GANLoss("vanilla"))
    preset = PRESETS[variant.preset]
    ball = preset.ball_for(size.hr, size.hr, size.channels)
    mixed = variant.bf16 and not variant.degradation_fp32
    attack = Attack(
        degradation=DegradationNetwork(smallest_slope=ball.smallest_slope),
        generator=generator.to(device),
        objective=objective,
        settings=AttackSettings(
            ball,
            steps=size.steps,
            step_size=preset.step_size,
            patch_size=size.hr,
            channels=size.channels,
            image_radius=preset.image_radius,
            chunk_size=default_chunk_size(stage, size.hr),
            noise_dtype=torch.bfloat16 if mixed else torch.float32,
        ),
        reuse=reuse,
        autocast=torch.bfloat16 if variant.bf16 else None,
        degradation_autocast=mixed,
    )
    strategy = FastPGD() if variant.fast else PGD()
    return TrainingStep(attack, RankInfo(seed, int(stage == "gan")), strategy=strategy, timer=timer)


def naive_step(ours, variant, size, timer):
    """The naive step over the same weights."""
    device = next(ours.generator.parameters()).device
    generator = naive.RRDBNet(size.features, size.blocks, size.growth).to(device)
    generator.load_state_dict(ours.generator.state_dict())
    discriminator = vgg = None
    if ours.discriminator is not None:
        discriminator = naive.Discriminator(size.hr, size.discriminator).to(device)
        discriminator.load_state_dict(ours.discriminator.state_dict())
        vgg = naive.VGGFeatures({TORCHVISION[name]: weight for name, weight in size.layers.items()}).to(device)
        with torch.no_grad():
            weights = ours.objective.vgg.vgg.parameters()
            for parameter, weight in zip(vgg.features.parameters(), weights, strict=True):
                parameter.copy_(weight)
    return naive.NaiveStep(
        generator,
        discriminator,
        vgg,
        radii=ours.attack.settings.ball.radii,
        steps=size.steps,
        channels=size.channels,
        autocast=torch.bfloat16 if variant.bf16 else None,
        degradation_autocast=not variant.degradation_fp32,
        frozen=variant.baseline == 3,
        part=ours.span,
    )


@functools.cache
def reference_losses(kind, stage, device):
    """Losses of the package's step in fp32 without reuse, which all variants must match; and its identity networks."""
    nothing = ReuseOptions(closed_form_first_step=False, hr_features=False, cast_weights=False)
    step = Step(Variant("reference", 4), PARITY, stage, device, reuse=nothing, seed=PARITY_SEED)
    generator = step.ours.rank_info.generator(step.hr.device, 0)
    theta = [[tensor.clone() for tensor in group] for group in step.ours.attack.sample(step.hr, generator)]
    return step.gradients(kind), theta


def loss_error(variant, kind, stage, device):
    """Largest relative error of the variant's losses in fp32 (without the core)."""
    in_fp32 = {"preset": "calibrated", "bf16": False, "degradation_fp32": False, "core": False}
    return _loss_error(
        replace(variant, name="in fp32", baseline=max(variant.baseline, 2), **in_fp32), kind, stage, device
    )


@functools.cache
def _loss_error(variant, kind, stage, device):
    expected, theta = reference_losses(kind, stage, device)
    step = Step(variant, PARITY, stage, device, seed=PARITY_SEED)
    losses = step.gradients(kind, theta)
    names = [name for name in ("loss", "loss_clean", "discriminator") if name in expected and name in losses]
    return max(abs(losses[name].item() / expected[name].item() - 1) for name in names)
