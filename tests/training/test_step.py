"""TrainingStep: the four sub-steps, their cost, and that a step is a pure function."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from small_steps import SIZE, assert_close, crops, gradients, identity, make
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from andfast.adversary import PRESETS, Attack, AttackSettings, Objective, ReuseOptions, seeded_generator
from andfast.functional import blur_pool
from andfast.losses import GANLoss, PerceptualLoss
from andfast.metrics.psnr import mean_psnr
from andfast.nn import DegradationNetwork, RRDBNet, VGGDiscriminator, frozen
from andfast.training.profiling import StepTimer
from andfast.training.step import RankInfo, TrainingStep, first_nonfinite

PHASES = ["identity", "ascent", "degradation", "generator"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are faster so: several threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Phases(StepTimer):
    """Knows the current phase, and calls back at the end of each."""

    def __init__(self, after: Any = None) -> None:
        super().__init__(torch.device("cpu"))
        self.names: list[str] = []
        self.now: str | None = None
        self.after = after

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.names.append(name)
        self.now = name
        yield
        self.now = None
        if self.after is not None:
            self.after(name)


# ---------------------------------------------------------------------------------------------------- correctness


def test_net_stage_matches_manual_step() -> None:
    """The gradients are those of L1 on G(clamp(F(theta, HR))) for the theta of the attack."""
    step, hr = make(), crops()
    values = step.gradients([hr], 7)
    actual = gradients(step.generator)
    step.generator.zero_grad()

    start = identity(step, hr, 7)
    _, ascent = step.attack.search(hr, start)
    with torch.no_grad():
        lr = step.attack.degradation(hr, ascent.theta).clamp(0, 1)
        clean_loss = (step.generator(step.attack.degradation(hr, start)) - hr).abs().mean()
    loss = (step.generator(lr) - hr).abs().mean()
    loss.backward()
    assert_close(actual, gradients(step.generator), 1e-6)
    assert set(values) == {"loss", "l1", "loss_clean", "loss_gain", "lr_psnr"}
    assert values["loss"].item() == values["l1"].item() == pytest.approx(loss.item(), rel=1e-6)
    assert values["loss_clean"].item() == pytest.approx(clean_loss.item(), rel=1e-6)
    assert values["loss_gain"].item() == pytest.approx((loss - clean_loss).item(), abs=1e-6)
    assert values["loss_gain"] > 0
    expected = -10 * (lr - blur_pool(hr, 4)).square().mean((1, 2, 3)).log10().mean()
    assert values["lr_psnr"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert 10 < expected < 40
    assert all(one.dim() == 0 and not one.requires_grad for one in values.values())


@pytest.mark.parametrize("gan", ["vanilla", "relativistic", "least_squares"])
@pytest.mark.parametrize("kind", ["vgg", "unet"])
def test_gan_stage(kind: str, gan: str) -> None:
    """Every discriminator with every GAN loss: gradients for both networks, none across the sub-steps."""
    size = 128 if kind == "vgg" else SIZE
    seen: dict[str, Any] = {}

    def after(phase: str) -> None:
        if phase == "ascent":
            assert not gradients(step.generator)
            assert not gradients(step.discriminator)
            assert all(torch.equal(a, b) for a, b in zip(step.discriminator.buffers(), buffers, strict=True))
        if phase == "generator":
            assert not gradients(step.discriminator)
            assert all(torch.equal(a, b) for a, b in zip(step.discriminator.buffers(), buffers, strict=True))
            seen.update(gradients(step.generator))

    phases = Phases(after)
    step = make(kind, gan, size=size, steps=2, timer=phases)
    assert step.discriminator is not None
    buffers = [one.clone() for one in step.discriminator.buffers()]
    hr = crops(2, size)
    values = step.gradients([hr], 0)
    assert list(dict.fromkeys(phases.names)) == [*PHASES, "discriminator"]
    assert set(values) == {
        *("loss", "l1", "perceptual", "gan", "loss_clean", "loss_gain", "lr_psnr"),
        *("discriminator", "real_logit", "fake_logit"),
    }
    assert all(one.isfinite() for one in values.values())
    expected = values["l1"] + values["perceptual"] + 0.1 * values["gan"]
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    names = [name for name, _ in step.generator.named_parameters()]
    assert list(seen) == names
    assert_close(gradients(step.generator), seen, 0)
    assert gradients(step.discriminator).keys() == dict(step.discriminator.named_parameters()).keys()
    # The training pass of D has moved its statistics, once for HR and once for SR.
    assert not all(torch.equal(a, b) for a, b in zip(step.discriminator.buffers(), buffers, strict=True))
    assert all(one.requires_grad for one in (*step.generator.parameters(), *step.discriminator.parameters()))


def test_discriminator_gradients_match_manual_step() -> None:
    step, hr = make("unet", "relativistic"), crops(2)
    other = make("unet", "relativistic")
    step.gradients([hr], 0)
    assert other.discriminator is not None
    _, ascent = other.attack.search(hr, identity(other, hr))
    with frozen(other.discriminator), torch.no_grad():
        sr = other.generator(other.attack.degradation(hr, ascent.theta).clamp(0, 1))
    real, fake = other.discriminator(hr), other.discriminator(sr)
    GANLoss("relativistic").discriminator(real, fake).backward()
    assert_close(gradients(step.discriminator), gradients(other.discriminator), 1e-6)


def test_degrade_clamps_and_rounds() -> None:
    step, hr = make(attack={"round_lr": True}), crops()
    theta = identity(step, hr)
    theta = theta._replace(noises=tuple(torch.randn(noise.shape) for noise in theta.noises))
    lr, clean = step.attack.degrade(hr, theta)
    assert lr.min() >= 0
    assert lr.max() <= 1
    torch.testing.assert_close(lr * 255, (lr * 255).round())
    torch.testing.assert_close(clean, blur_pool(hr, 4))
    unrounded, _ = make().attack.degrade(hr, theta)
    assert 0 < (unrounded - lr).abs().max() <= 0.5 / 255 + 1e-6


def test_mean_psnr() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.tensor([0.1, 0.01]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert mean_psnr(a, b).item() == pytest.approx(30)
    assert mean_psnr(a, a).item() == pytest.approx(200)


def test_first_nonfinite() -> None:
    assert first_nonfinite({"a": 1.0, "b": float("nan"), "c": float("inf")}) == "b"
    assert first_nonfinite({"a": 1.0}) is None


def test_zero_ascent_steps() -> None:
    values = make(steps=0).gradients([crops()], 0)
    assert set(values) == {"loss", "l1", "lr_psnr"}
    assert values["lr_psnr"] > 80  # the identity networks' LR is the clean one


def test_loss_scaling_scales_gradients_only() -> None:
    step, scaled, hr = make("unet"), make("unet", scale_loss=lambda loss: loss * 1024), crops(2)
    plain, other = (one.gradients([hr], 0) for one in (step, scaled))
    assert {name: one.item() for name, one in plain.items()} == {name: one.item() for name, one in other.items()}
    for a, b in ((step.generator, scaled.generator), (step.discriminator, scaled.discriminator)):
        assert_close({name: one / 1024 for name, one in gradients(b).items()}, gradients(a), 1e-6)


# ---------------------------------------------------------------------------------------------------- determinism


def test_gradients_depend_on_seed_stage_and_step_only() -> None:
    """Bit-identical for equal (seed, stage, step), whatever the global generator's state; others differ."""
    hr, found = crops(), []
    for number, index in ((1, 5), (2, 5), (3, 6)):
        step = make()
        torch.manual_seed(number)
        before = torch.get_rng_state()
        values = step.gradients([hr], index)
        assert torch.equal(before, torch.get_rng_state())
        found.append((gradients(step.generator), values))
    (first, again, later) = found
    assert all(torch.equal(first[0][name], again[0][name]) for name in first[0])
    assert {k: v.item() for k, v in first[1].items()} == {k: v.item() for k, v in again[1].items()}
    assert not all(torch.equal(first[0][name], later[0][name]) for name in first[0])
    for rank_info in (RankInfo(2, 0), RankInfo(1, 1)):
        step = make(rank_info=rank_info)
        step.gradients([hr], 5)
        assert not all(torch.equal(first[0][name], one) for name, one in gradients(step.generator).items())


def test_seeded_generators_differ() -> None:
    device = torch.device("cpu")
    seeds = [seeded_generator(device, *numbers) for numbers in itertools.product(range(3), repeat=3)]
    draws = {torch.rand((), generator=one, dtype=torch.float64).item() for one in seeds}
    assert len(draws) == 27
    assert seeded_generator(torch.device("meta"), 1, 2, 3) is None


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 2), (4, 1), (2, 2)])
def test_splitting_a_batch_changes_nothing(world_size: int, accumulate: int) -> None:
    """Ranks and micro batches draw disjoint parts of one batch; averaged, their gradients are those of the whole."""
    hr, whole = crops(4), make()
    values = whole.gradients([hr], 3)
    parts = world_size * accumulate
    totals: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    for rank in range(world_size):
        step = make(rank_info=RankInfo(1, 0, rank, world_size, accumulate))
        mine = [hr.chunk(parts)[micro * world_size + rank] for micro in range(accumulate)]
        found = step.gradients(mine, 3)
        for name, one in gradients(step.generator).items():
            totals[name] = totals.get(name, 0) + one / world_size
        for name, value in found.items():
            metrics[name] = metrics.get(name, 0.0) + value.item() / world_size
    assert_close(totals, gradients(whole.generator), 1e-4)
    assert metrics == pytest.approx({name: one.item() for name, one in values.items()}, rel=1e-4)


def test_splitting_a_gan_batch_over_ranks_changes_nothing() -> None:
    """With a discriminator that judges each image alone (no batch statistics, no batch average)."""
    hr, whole = crops(4), make("unet", perceptual=False)
    whole.gradients([hr], 3)
    generator: dict[str, Tensor] = {}
    discriminator: dict[str, Tensor] = {}
    for rank in range(2):
        step = make("unet", perceptual=False, rank_info=RankInfo(1, 0, rank, 2))
        step.gradients([hr.chunk(2)[rank]], 3)
        for total, module in ((generator, step.generator), (discriminator, step.discriminator)):
            for name, one in gradients(module).items():
                total[name] = total.get(name, 0) + one / 2
    assert_close(generator, gradients(whole.generator), 1e-4)
    assert_close(discriminator, gradients(whole.discriminator), 1e-4)


@pytest.mark.parametrize(("images_per_network", "networks"), [(1, 4), (2, 2), (4, 1), (0, 1)])
def test_images_share_networks(images_per_network: int, networks: int) -> None:
    settings = {"images_per_network": images_per_network}
    step, hr = make(settings=settings), crops()
    assert identity(step, hr).weights[0].shape[0] == networks
    values = step.gradients([hr], 0)
    assert values["loss_gain"] > 0
    ranks = [identity(make(settings=settings, rank_info=RankInfo(1, 0, rank, 2)), hr).weights[0] for rank in range(2)]
    assert not torch.equal(*ranks)


def test_rejects_batch_that_networks_cannot_share() -> None:
    step = make(settings={"images_per_network": 2})
    with pytest.raises(ValueError, match="theta must have as many networks as images, 5, or a divisor, had 2"):
        step.gradients([crops(5)], 0)


# ------------------------------------------------------------------------------------------------ mixed precision


@pytest.mark.parametrize("degradation", [False, True])
def test_bf16(degradation: bool) -> None:
    """Autocast of G, D and VGG, and of F if so set; losses and gradients stay fp32 and near the exact ones."""
    exact, hr = make("unet"), crops(2)
    reference = exact.gradients([hr], 0)
    dtypes = set()

    class Watched(DegradationNetwork):
        def forward(self, *args: Any) -> Tensor:
            out = super().forward(*args)
            dtypes.add(out.dtype)
            return out

    attack = {"autocast": torch.bfloat16, "degradation_autocast": degradation}
    mixed = make("unet", degradation=Watched(), attack=attack)
    values = mixed.gradients([hr], 0)
    assert dtypes == {torch.bfloat16 if degradation else torch.float32}
    assert all(one.dtype == torch.float32 for one in values.values())
    assert values["loss"].item() == pytest.approx(reference["loss"].item(), rel=0.05)
    for ours, theirs in ((mixed.generator, exact.generator), (mixed.discriminator, exact.discriminator)):
        actual, expected = (torch.cat([grad.flatten() for grad in gradients(m).values()]) for m in (ours, theirs))
        assert actual.dtype == torch.float32
        assert torch.cosine_similarity(actual, expected, dim=0) > 0.95


def test_fp16() -> None:
    step = make(attack={"autocast": torch.float16}, scale_loss=lambda loss: loss * 1024)
    values = step.gradients([crops(2)], 0)
    assert all(one.isfinite().all() for one in (*values.values(), *gradients(step.generator).values()))
    assert values["loss_gain"] > 0


# ----------------------------------------------------------------------------------------------------------- cost


class WeightGradients(TorchDispatchMode):
    """Counts, per phase, the backward ops that compute a gradient to weights."""

    def __init__(self, phases: Phases) -> None:
        super().__init__()
        self.phases = phases
        self.counts: dict[tuple[str | None, str], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        wanted = {
            "convolution_backward": lambda: any(args[10][1:]),
            "native_batch_norm_backward": lambda: any(args[9][1:]),
            "residual_dense_block_backward": lambda: any((*args[6], *args[7])),
            "upsampled_convolution_backward": lambda: any(args[6][1:]),
            "degradation_block_backward": lambda: args[8][1],
            "mm": lambda: True,
        }
        if name in wanted and wanted[name]():
            key = self.phases.now, name
            self.counts[key] = self.counts.get(key, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noises_in_a_half_type_are_as_strong(dtype: torch.dtype) -> None:
    """In fp16 the loss is scaled: gradients as small as those of a large batch would be zero without that."""
    found = {}
    for noise_dtype in (torch.float32, dtype):
        step = make(steps=4, l1=1e-4, settings={"noise_dtype": noise_dtype})
        start = identity(step, crops())
        assert {noise.dtype for noise in start.noises} == {noise_dtype}
        assert {weight.dtype for weight in start.weights} == {torch.float32}
        found[noise_dtype] = step.gradients([crops()], 0)["loss_gain"]
    torch.testing.assert_close(found[dtype], found[torch.float32], rtol=2e-3, atol=0)


def test_ascent_computes_no_weight_gradients() -> None:
    """Not one, in any backward op; and D and G each get theirs in their own phase only."""
    phases = Phases()
    steps = 2
    step = make("vgg", "relativistic", size=128, steps=steps, timer=phases)
    with WeightGradients(phases) as seen:
        step.gradients([crops(2, 128)], 0)
    of = {phase: {name: n for (p, name), n in seen.counts.items() if p == phase} for phase in phases.names}
    # D's two linear layers each multiply once a pass for the gradient to their input, never for one to weights.
    # The first pass takes F's gradients in closed form.
    assert of["ascent"] == {"degradation_block_backward": 11 * (steps - 1), "mm": 2 * steps}
    dense = 3
    assert of["generator"] == {"residual_dense_block_backward": dense, "upsampled_convolution_backward": 6, "mm": 2}
    convolutions = sum(isinstance(one, nn.Conv2d) for one in step.discriminator.modules())  # type: ignore[union-attr]
    norms = sum(isinstance(one, nn.BatchNorm2d) for one in step.discriminator.modules())  # type: ignore[union-attr]
    assert of["discriminator"] == {
        "convolution_backward": 2 * convolutions,
        "native_batch_norm_backward": 2 * norms,
        # Two a linear layer and image batch, to its input and to its weight.
        "mm": 2 * 4,
    }


def full_size(stage: str, reuse: ReuseOptions) -> tuple[TrainingStep, Tensor]:
    """A step with the paper's networks on the meta device, where reading a value raises."""
    with torch.device("meta"):
        generator = RRDBNet(4)
        discriminator = VGGDiscriminator(256) if stage == "gan" else None
        hr = torch.empty(1, 3, 256, 256)
    objective = Objective(1.0)
    if stage == "gan":
        vgg = PerceptualLoss({"conv5_4": 1.0}, weights="random").to("meta")
        objective = Objective(1.0, 1.0, 0.1, vgg, discriminator, GANLoss("vanilla"))
    attack = Attack(DegradationNetwork(), generator, objective, AttackSettings(PRESETS["calibrated"].ball), reuse)
    return TrainingStep(attack, RankInfo(0, 0)), hr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "count", "plain_count", "ratio"), [("net", 1122.8, 220.3, 5.10), ("gan", 1614.1, 367.8, 4.39)]
)
def test_operations_of_a_step(stage: str, count: float, plain_count: float, ratio: float) -> None:
    """GMAC per image of the exact step over ESRGAN's own, as published; and what reuse saves."""
    counts = []
    for reused in (False, True):
        step, hr = full_size(stage, ReuseOptions(closed_form_first_step=reused, discriminator_pass=reused))
        with FlopCounterMode(display=False) as counter:
            step.gradients([hr], 0)
        counts.append(counter.get_total_flops() / 2e9)
    ours, less = counts
    # F forward, and its gradients to input and weights, once; in stage gan D forward once.
    assert ours - less == pytest.approx(31.64 + 9.12 * (stage == "gan"), rel=0.02)
    # ESRGAN's step, written out: LR is given, D is frozen while G learns.
    with FlopCounterMode(display=False) as counter:
        sr = step.generator(hr[:, :, ::4, ::4])
        with frozen(step.discriminator):
            step.objective.total(step.objective.terms(sr, step.objective.targets(hr))).backward()
        if step.discriminator is not None:
            real, fake = step.discriminator(hr), step.discriminator(sr.detach())
            GANLoss("vanilla").discriminator(real, fake).backward()
    plain = counter.get_total_flops() / 2e9
    assert ours == pytest.approx(count, rel=0.01)
    assert plain == pytest.approx(plain_count, rel=0.01)
    assert ours / plain == pytest.approx(ratio, rel=0.02)


def test_no_host_synchronisation() -> None:
    """Both stages run on the meta device, where .item(), a branch on a value or a copy to the host raises."""
    for kind in ("vgg", "unet"):
        step = make(kind, "relativistic", size=128, rank_info=RankInfo(0, 1, 1, 2, 2), attack={"round_lr": True})
        for module in (step.generator, step.discriminator, step.objective.vgg):
            assert module is not None
            module.to("meta")
        hr = torch.empty(2, 3, 128, 128, device="meta")
        values = step.gradients([hr, hr], 0)
        assert all(one.is_meta for one in values.values())
        with pytest.raises(RuntimeError, match="meta"):
            values["loss"].item()
