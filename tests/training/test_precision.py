"""Under autocast, networks run in bf16 or fp16; losses, norms, theta, gradients and weights stay fp32."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_steps import crops, gradients, identity, make
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from andfast.adversary import Ball
from andfast.losses import GANLoss, PerceptualLoss, l1_loss
from andfast.nn import DegradationNetwork

REDUCTIONS = ("mean", "linalg_vector_norm", "softplus")
"""Without sum: bias gradients of linear layers are summed in the autocast dtype."""


class ReductionDtypes(TorchDispatchMode):
    """Records the dtypes of reductions and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set[torch.dtype]] = {}
        self.convolutions: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in REDUCTIONS:
            self.dtypes.setdefault(name, set()).add(out.dtype)
        if name == "convolution":
            self.convolutions.add(out.dtype)
        return out


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_losses_are_fp32(low: torch.dtype) -> None:
    """Losses of half-precision values inside an autocast region equal the fp32 losses of these values exactly."""
    a, b = torch.rand(2, 2, 3, 32, 32).to(low)
    real, fake = torch.randn(2, 4, 1).to(low)
    vgg = PerceptualLoss({"conv1_2": 1.0}, weights="random")
    with torch.autocast("cpu", dtype=low):
        assert torch.equal(l1_loss(a, b), l1_loss(a.float(), b.float()))
        features = vgg.features(a)
        assert features["conv1_2"].dtype == low
        theirs = vgg.features(b)
        loss = vgg(a, theirs)
        assert loss.dtype == torch.float32
        expected = (features["conv1_2"].float() - theirs["conv1_2"].float()).abs().mean()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        for kind in ("vanilla", "relativistic", "least_squares"):
            gan = GANLoss(kind)  # type: ignore[arg-type]
            for side in (gan.generator, gan.discriminator):
                with torch.autocast("cpu", enabled=False):
                    exact = side(real.float(), fake.float())
                assert torch.equal(side(real, fake), exact)


def test_means_of_a_step_are_fp32_and_networks_bf16() -> None:
    """All means and norms of a step of stage gan, theta, weights and gradients."""
    eager = make("vgg", size=128, steps=2, attack={"autocast": torch.bfloat16, "degradation_autocast": True})
    seen: list[Tensor] = []

    def search(*arguments: Any) -> Any:
        targets, ascent = eager.attack.search(*arguments)
        seen.extend(ascent.theta.tensors())
        return targets, ascent

    step = replace(eager, search=search)
    with ReductionDtypes() as reduced:
        values = step.gradients([crops(2, 128)], 0)
    assert reduced.convolutions == {torch.bfloat16}
    assert reduced.dtypes.keys() >= {"mean", "softplus"}
    for name, dtypes in reduced.dtypes.items():
        assert dtypes <= {torch.float32, torch.float64}, name
    assert {tensor.dtype for tensor in seen} == {torch.float32}
    assert {value.dtype for value in values.values()} == {torch.float32}
    for network in (step.generator, step.discriminator):
        assert network is not None
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        assert {gradient.dtype for gradient in gradients(network).values()} == {torch.float32}


def test_norms_of_bf16_noise_are_fp32() -> None:
    """The norm of a noise map in bf16 equals that of the same values in fp32."""
    from andfast.adversary import sample_identity  # noqa: PLC0415

    start = sample_identity(2, hr_size=64, channels=8)
    moved = start.rebuild(tensor + 0.1 * torch.randn(tensor.shape) for tensor in start.tensors())
    low = moved._replace(noises=tuple(noise.bfloat16() for noise in moved.noises))
    wide = moved._replace(noises=tuple(noise.bfloat16().float() for noise in moved.noises))
    ball = Ball(1.0, 1.0, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norms = ball.norms(low, start)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, ball.norms(wide, start))


def test_optimizer_states_are_fp32() -> None:
    step = make(attack={"autocast": torch.bfloat16})
    optimizer = torch.optim.Adam(step.generator.parameters())
    step.gradients([crops(2)], 0)
    optimizer.step()
    states = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.dim() > 0]
    assert {tensor.dtype for tensor in states} == {torch.float32}
    assert isinstance(step.generator, nn.Module)


@pytest.mark.parametrize("degradation", [False, True])
def test_bf16(degradation: bool) -> None:
    """Autocast of G, D and VGG, and of F if enabled; losses and gradients stay in fp32 and near the fp32 step's."""
    exact, hr = make("unet"), crops(2)
    reference = exact.gradients([hr], 0)
    dtypes = set()

    class RecordedDegradation(DegradationNetwork):
        def forward(self, *args: Any) -> Tensor:
            out = super().forward(*args)
            dtypes.add(out.dtype)
            return out

    attack = {"autocast": torch.bfloat16, "degradation_autocast": degradation}
    mixed = make("unet", degradation=RecordedDegradation(), attack=attack)
    values = mixed.gradients([hr], 0)
    assert dtypes == {torch.bfloat16 if degradation else torch.float32}
    assert all(value.dtype == torch.float32 for value in values.values())
    assert values["loss"].item() == pytest.approx(reference["loss"].item(), rel=0.05)
    for ours, theirs in ((mixed.generator, exact.generator), (mixed.discriminator, exact.discriminator)):
        actual, expected = (torch.cat([grad.flatten() for grad in gradients(m).values()]) for m in (ours, theirs))
        assert actual.dtype == torch.float32
        assert torch.cosine_similarity(actual, expected, dim=0) > 0.95


def test_fp16() -> None:
    step = make(attack={"autocast": torch.float16}, scale_loss=lambda loss: loss * 1024)
    values = step.gradients([crops(2)], 0)
    assert all(tensor.isfinite().all() for tensor in (*values.values(), *gradients(step.generator).values()))
    assert values["loss_gain"] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_noise_does_not_weaken_the_attack(dtype: torch.dtype) -> None:
    """Without loss scaling, gradients as small as those of a large batch would underflow in fp16."""
    gains = {}
    for noise_dtype in (torch.float32, dtype):
        step = make(steps=4, l1=1e-4, settings={"noise_dtype": noise_dtype})
        start = identity(step, crops())
        assert {noise.dtype for noise in start.noises} == {noise_dtype}
        assert {weight.dtype for weight in start.weights} == {torch.float32}
        gains[noise_dtype] = step.gradients([crops()], 0)["loss_gain"]
    torch.testing.assert_close(gains[dtype], gains[torch.float32], rtol=2e-3, atol=0)
