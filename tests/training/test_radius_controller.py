"""The controller of the radii's factor, on simulated attacks: it reaches the target, follows G, and has its limits."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from andfast.training.radius_controller import (
    GAIN,
    LARGEST_CHANGE,
    LARGEST_FACTOR,
    PERIOD,
    SMALLEST_FACTOR,
    RadiusController,
)

CPU = torch.device("cpu")


def simulate(
    controller: RadiusController, steps: int, *, at_factor_1: float, slope: float, noise: float, seed: int = 0
) -> list[float]:
    """LR PSNR of each step of an attack: at_factor_1 - slope 20 log10(factor), with normal noise, all in dB."""
    scatter = torch.randn(steps, generator=torch.Generator().manual_seed(seed)).mul(noise).tolist()
    psnr = []
    for deviation in scatter:
        psnr.append(at_factor_1 - slope * 20 * math.log10(controller.factor.item()) + deviation)
        controller.update(psnr[-1])
    return psnr


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@given(
    target=st.floats(15, 45),
    difference=st.floats(-12, 12),
    slope=st.floats(0.7, 1.5),
    noise=st.floats(0, 4),
    seed=st.integers(0, 1000),
)
@example(target=30.0, difference=12.0, slope=0.7, noise=4.0, seed=1)
@example(target=30.0, difference=-12.0, slope=1.5, noise=4.0, seed=2)
def test_reaches_the_target_and_stays(target: float, difference: float, slope: float, noise: float, seed: int) -> None:
    """Batches of about 4 images scatter by 4 dB, of 48 by 1."""
    controller = RadiusController(target, CPU)
    psnr = simulate(controller, 500, at_factor_1=target + difference, slope=slope, noise=noise, seed=seed)
    assert mean(psnr[150:]) == pytest.approx(target, abs=0.1 + 0.15 * noise)
    settled = 20 * math.log10(controller.factor.item()) * slope
    assert settled == pytest.approx(difference, abs=0.1 + noise)


@given(jump=st.floats(-8, 8), noise=st.floats(0, 3), seed=st.integers(0, 1000))
@example(jump=8.0, noise=3.0, seed=0)
def test_follows_a_generator_that_gets_robust(jump: float, noise: float, seed: int) -> None:
    """The same radii do less, or more, from one step to the next."""
    controller = RadiusController(30.0, CPU)
    simulate(controller, 150, at_factor_1=33.0, slope=1.0, noise=noise, seed=seed)
    before = controller.factor.item()
    psnr = simulate(controller, 350, at_factor_1=33.0 + jump, slope=1.0, noise=noise, seed=seed + 1)
    assert mean(psnr[:PERIOD]) == pytest.approx(30 + jump, abs=0.1 + 2 * noise)
    assert mean(psnr[100:]) == pytest.approx(30, abs=0.1 + 0.2 * noise)
    change = 20 * math.log10(controller.factor.item() / before)
    assert change == pytest.approx(jump, abs=0.1 + 1.5 * noise)


def test_update_is_a_part_of_the_mean_difference() -> None:
    """Nothing changes within a period; a period counts alone."""
    controller = RadiusController(30.0, CPU)
    for difference in (4.0, -2.0):
        before = controller.factor.item()
        for step in range(PERIOD):
            assert controller.factor.item() == before
            controller.update(30 + 2 * difference * step / (PERIOD - 1))
        change = 20 * math.log10(controller.factor.item() / before)
        assert change == pytest.approx(GAIN * difference, abs=1e-4)


@pytest.mark.parametrize(
    ("psnr", "limit", "words"),
    [
        (200.0, LARGEST_FACTOR, "at its largest, 10; set larger radii"),
        (0.0, SMALLEST_FACTOR, "at its smallest, 0.0001; set smaller radii"),
    ],
)
def test_out_of_reach(psnr: float, limit: float, words: str) -> None:
    """Updates are bounded, so is the factor, and there is one warning."""
    controller = RadiusController(30.0, CPU)
    for _ in range(PERIOD):
        assert controller.warning(controller.factor.item()) is None
        controller.update(psnr)
    first = 20 * math.log10(controller.factor.item())
    assert first == pytest.approx(math.copysign(LARGEST_CHANGE, psnr - 30), abs=1e-4)
    for _ in range(20 * PERIOD):
        controller.update(psnr)
    assert controller.factor.item() == pytest.approx(limit, rel=1e-4)
    assert words in (controller.warning(controller.factor.item()) or "")
    assert controller.warning(controller.factor.item()) is None
    for _ in range(PERIOD):  # it comes back as soon as it can
        controller.update(60 - psnr if psnr else 60.0)
    assert abs(20 * math.log10(controller.factor.item() / limit)) > 1


@pytest.mark.parametrize("steps", [0, 3, PERIOD, PERIOD + 1])
def test_state_continues_bit_for_bit(steps: int) -> None:
    values = torch.linspace(20, 41, 2 * PERIOD + 3).tolist()
    whole, first, second = (RadiusController(30.0, CPU) for _ in range(3))
    for value in values:
        whole.update(value)
    for value in values[:steps]:
        first.update(value)
    second.load(first.state())
    assert torch.equal(second.factor, first.factor)
    for value in values[steps:]:
        second.update(value)
    assert second.state() == whole.state()
    assert torch.equal(second.factor, whole.factor)


def test_number_and_tensor_are_the_same() -> None:
    """Eager steps have numbers, captured ones tensors; skipped steps do not count."""
    by_number, by_tensor = RadiusController(30.0, CPU), RadiusController(30.0, CPU)
    skip = torch.tensor(True)
    for value in torch.linspace(20, 41.3, PERIOD + 3):
        by_number.update(value.item())
        by_tensor.update(torch.tensor(55.5), skip=skip)
        by_tensor.update(value, skip=~skip)
    assert by_number.state() == by_tensor.state()
    assert torch.equal(by_number.factor, by_tensor.factor)


def test_start_from_takes_the_factor_alone() -> None:
    before, after = RadiusController(30.0, CPU), RadiusController(25.0, CPU)
    for _ in range(PERIOD + 2):
        before.update(36.0)
    factor = after.factor
    after.start_from(before)
    assert after.factor is factor  # a captured step holds its address
    assert torch.equal(after.factor, before.factor)
    assert after.factor.item() > 1
    assert after.state() == before.state() | {"sum": 0.0, "count": 0.0}
