"""A training step is a pure function of seed, stage and step, however its batch is split."""

import itertools

import pytest
import torch
from small_steps import assert_close, crops, gradients, make
from torch import Tensor

from andfast.adversary import seeded_generator
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


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 2), (4, 1), (2, 2)])
def test_splitting_a_batch_changes_nothing(world_size: int, accumulate: int) -> None:
    """Ranks and micro batches take disjoint parts of a batch; their averaged gradients are those of the whole."""
    hr, whole = crops(4), make()
    values = whole.gradients([hr], 3)
    parts = world_size * accumulate
    totals: dict[str, Tensor] = {}
    metrics: dict[str, float] = {}
    for rank in range(world_size):
        step = make(rank_info=RankInfo(1, 0, rank, world_size, accumulate))
        mine = [hr.chunk(parts)[micro * world_size + rank] for micro in range(accumulate)]
        rank_values = step.gradients(mine, 3)
        for name, grad in gradients(step.generator).items():
            totals[name] = totals.get(name, 0) + grad / world_size
        for name, value in rank_values.items():
            metrics[name] = metrics.get(name, 0.0) + value.item() / world_size
    assert_close(totals, gradients(whole.generator), 1e-4)
    assert metrics == pytest.approx({name: value.item() for name, value in values.items()}, rel=1e-4)


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
