"""Under autocast: losses, the ascent's norms and theta, gradients and weights stay fp32; networks do not."""

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
"""Not sum: the gradients of a linear layer's bias are summed in its own dtype, as autocast does everywhere."""


class Reduced(TorchDispatchMode):
    """The dtypes in which values were averaged and normed."""

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
    """Of values in a half type, inside of an autocast region: exactly the loss of these values in fp32."""
    a, b = torch.rand(2, 2, 3, 32, 32).to(low)
    logits, others = torch.randn(2, 4, 1).to(low)
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
                arguments = (logits, others)
                wide = [one.float() for one in arguments]
                with torch.autocast("cpu", enabled=False):
                    exact = side(*wide)
                assert torch.equal(side(*arguments), exact)


def test_means_of_a_step_are_fp32_and_networks_bf16() -> None:
    """All means and norms of a step of stage gan; and what the ascent and the optimizers get."""
    eager = make("vgg", size=128, steps=2, attack={"autocast": torch.bfloat16, "degradation_autocast": True})
    seen: list[Tensor] = []

    def search(*arguments: Any) -> Any:
        targets, ascent = eager.attack.search(*arguments)
        seen.extend(ascent.theta.tensors())
        return targets, ascent

    step = replace(eager, search=search)
    with Reduced() as reduced:
        values = step.gradients([crops(2, 128)], 0)
    assert reduced.convolutions == {torch.bfloat16}
    assert reduced.dtypes.keys() >= {"mean", "softplus"}
    for name, dtypes in reduced.dtypes.items():
        assert dtypes <= {torch.float32, torch.float64}, name
    assert {tensor.dtype for tensor in seen} == {torch.float32}
    assert {one.dtype for one in values.values()} == {torch.float32}
    for network in (step.generator, step.discriminator):
        assert network is not None
        assert {one.dtype for one in network.parameters()} == {torch.float32}
        assert {one.dtype for one in gradients(network).values()} == {torch.float32}


def test_norms_of_half_types_are_fp32() -> None:
    """A ball measures a noise map in bf16 as it measures the same values in fp32."""
    from andfast.adversary import sample_identity  # noqa: PLC0415

    start = sample_identity(2, hr_size=64, channels=8)
    moved = start.rebuild(one + 0.1 * torch.randn(one.shape) for one in start.tensors())
    low = moved._replace(noises=tuple(one.bfloat16() for one in moved.noises))
    wide = moved._replace(noises=tuple(one.bfloat16().float() for one in moved.noises))
    ball = Ball(1.0, 1.0, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ball.norms(low, start)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ball.norms(wide, start))


def test_optimizer_states_are_fp32() -> None:
    """Adam's states are those of fp32 weights."""
    step = make(attack={"autocast": torch.bfloat16})
    optimizer = torch.optim.Adam(step.generator.parameters())
    step.gradients([crops(2)], 0)
    optimizer.step()
    states = [one for state in optimizer.state.values() for one in state.values() if one.dim() > 0]
    assert {one.dtype for one in states} == {torch.float32}
    assert isinstance(step.generator, nn.Module)


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
