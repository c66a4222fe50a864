"""A training step is a pure function of seed, stage and step, however its batch is split."""

import itertools
from typing import Any

import pytest
import torch
from small_steps import SIZE, assert_close, crops, gradients, identity, make
from torch import Tensor

from andfast.adversary import PRESETS, Start, seeded_generator
from andfast.training.step import RankInfo


def test_gradients_depend_on_seed_stage_and_step_only() -> None:
    """Bit-identical for equal (seed, stage, step), independent of the global generator; different otherwise."""
    hr, results = crops(), []
    for number, index in ((1, 5), (2, 5), (3, 6)):
        step = make()
        torch.manual_seed(number)
        before = torch.get_rng_state()
        values = step.gradients([hr], index)
        assert torch.equal(before, torch.get_rng_state())
        results.append((gradients(step.generator), values))
    first, again, later = results
    assert all(torch.equal(first[0][name], again[0][name]) for name in first[0])
    assert {k: v.item() for k, v in first[1].items()} == {k: v.item() for k, v in again[1].items()}
    assert not all(torch.equal(first[0][name], later[0][name]) for name in first[0])
    for rank_info in (RankInfo(2, 0), RankInfo(1, 1)):
        step = make(rank_info=rank_info)
        step.gradients([hr], 5)
        assert not all(torch.equal(first[0][name], grad) for name, grad in gradients(step.generator).items())


def test_seeded_generators_differ() -> None:
    device = torch.device("cpu")
    seeds = [seeded_generator(device, *numbers) for numbers in itertools.product(range(3), repeat=3)]
    draws = {torch.rand((), generator=seed, dtype=torch.float64).item() for seed in seeds}
    assert len(draws) == 27
    assert seeded_generator(torch.device("meta"), 1, 2, 3) is None


SYMMETRIC = {"ball": PRESETS["symmetric"].ball_for(SIZE, SIZE), "image_radius": "uniform"}


@pytest.mark.parametrize(
    ("world_size", "accumulate", "settings"),
    [(2, 1, {}), (1, 2, {}), (4, 1, {}), (2, 2, {}), (2, 2, SYMMETRIC), (1, 1, SYMMETRIC | {"chunk_size": 2})],
)
def test_splitting_a_batch_changes_nothing(world_size: int, accumulate: int, settings: dict[str, Any]) -> None:
    """Ranks and micro batches take disjoint parts of a batch; their averaged gradients are those of the whole."""
    hr, whole = crops(4), make(settings={name: value for name, value in settings.items() if name != "chunk_size"})
    values = whole.gradients([hr], 3)
    parts = world_size * accumulate
    totals: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    for rank in range(world_size):
        step = make(rank_info=RankInfo(1, 0, rank, world_size, accumulate), settings=settings)
        mine = [hr.chunk(parts)[micro * world_size + rank] for micro in range(accumulate)]
        rank_values = step.gradients(mine, 3)
        for name, grad in gradients(step.generator).items():
            totals[name] = totals.get(name, 0) + grad / world_size
        for name, value in rank_values.items():
            metrics[name] = metrics.get(name, 0.0) + value.item() / world_size
    assert_close(totals, gradients(whole.generator), 1e-4)
    assert metrics == pytest.approx({name: value.item() for name, value in values.items()}, rel=1e-4, abs=1e-6)


def test_splitting_a_gan_batch_over_ranks_changes_nothing() -> None:
    """With a discriminator that does not depend on the batch (no batch statistics, no relativistic loss)."""
    hr, whole = crops(4), make("unet", perceptual=False)
    whole.gradients([hr], 3)
    generator: dict[str, Tensor] = {}
    discriminator: dict[str, Tensor] = {}
    for rank in range(2):
        step = make("unet", perceptual=False, rank_info=RankInfo(1, 0, rank, 2))
        step.gradients([hr.chunk(2)[rank]], 3)
        for total, module in ((generator, step.generator), (discriminator, step.discriminator)):
            for name, grad in gradients(module).items():
                total[name] = total.get(name, 0) + grad / 2
    assert_close(generator, gradients(whole.generator), 1e-4)
    assert_close(discriminator, gradients(whole.discriminator), 1e-4)


def test_factors_of_radii_are_drawn_after_the_networks() -> None:
    """Networks are those of fixed radii; micro batches and chunks get slices of one draw."""
    hr = crops(4)
    fixed, uniform = (make(settings={"image_radius": kind}) for kind in ("fixed", "uniform"))
    (start,) = fixed.draws(hr, 3)
    (whole,) = uniform.draws(hr, 3)
    assert start.factors is None
    assert whole.factors.shape == (4,)
    assert 0 <= whole.factors.min() < whole.factors.max() < 1
    for ours, expected in zip(whole.identity.tensors(), start.identity.tensors(), strict=True):
        assert torch.equal(ours, expected)
    (again,), (later,) = uniform.draws(hr, 3), uniform.draws(hr, 4)
    assert torch.equal(again.factors, whole.factors)
    assert not torch.equal(later.factors, whole.factors)
    chunks = make(settings={"image_radius": "uniform", "chunk_size": 1})
    assert torch.equal(torch.cat([part.factors for part in chunks.draws(hr, 3)]), whole.factors)
    shards = [make(settings={"image_radius": "uniform"}, rank_info=RankInfo(1, 0, rank, 2)) for rank in range(2)]
    drawn = [part.factors for shard in shards for part in shard.draws(hr[:2], 3)]
    assert torch.equal(torch.cat(drawn), whole.factors)
    shared = make(settings={"image_radius": "uniform", "images_per_network": 2})
    assert [part.factors.shape for part in shared.draws(hr, 3)] == [(2,)]


def test_factors_scale_radii_per_image() -> None:
    step, hr = make(settings=SYMMETRIC | {"channels": 16}, steps=5), crops(4)
    start = identity(step, hr)
    factors = torch.tensor([0.0, 0.1, 0.5, 1.0])
    ball = step.attack.settings.ball
    theta = step.attack.search(hr, Start(start, factors))[1].theta
    norms = ball.norms(theta, start)[1:4]  # color and slope have radius 0
    assert norms[:, 0].max() < 1e-3
    assert (norms[:, 1:] <= factors[1:] * (1 + 1e-3)).all()
    assert (norms[:, 1:] > factors[1:] * 0.5).all()
