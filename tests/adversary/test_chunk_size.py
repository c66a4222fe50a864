"""The ascent in groups of images: the same worst cases, less memory."""

from dataclasses import replace

import pytest
import torch
from rerun import Rerun
from small_steps import assert_close, crops, gradients, make

from andfast.training.cuda_graph import CUDAGraphCallable
from andfast.training.step import TrainingStep
from andfast.training.step_settings import AttackSettings, RankInfo


def groups_of(step: TrainingStep, most: int) -> TrainingStep:
    step.adversary = replace(step.adversary, chunk_size=most)
    return step


@pytest.mark.parametrize(
    ("images", "per_network", "most", "sizes"),
    [
        (48, 1, 0, [48]),
        (48, 1, 48, [48]),
        (48, 1, 24, [24, 24]),
        (48, 1, 20, [16, 16, 16]),
        (7, 1, 3, [2, 2, 3]),
        (5, 1, 1, [1] * 5),
        (8, 2, 3, [2, 2, 4]),
        (8, 4, 1, [4, 4]),
        (8, 0, 2, [8]),
        (5, 2, 2, [5]),  # refused later, as networks cannot be shared so
        (0, 1, 4, [0]),
    ],
)
def test_groups_hold_whole_networks(images: int, per_network: int, most: int, sizes: list[int]) -> None:
    ball = make().adversary.ball
    found = AttackSettings(ball, images_per_network=per_network, chunk_size=most).groups(images)
    assert [len(one) for one in found] == sizes
    assert [image for one in found for image in one] == list(range(images))


@pytest.mark.parametrize(("per_network", "most"), [(1, 1), (1, 2), (1, 3), (2, 2)])
@pytest.mark.parametrize(
    "place", [RankInfo(1, 0), RankInfo(1, 0, rank=1, world_size=3)], ids=["alone", "second of three"]
)
def test_stage_net_is_the_same_but_for_rounding(per_network: int, most: int, place: RankInfo) -> None:
    whole, parts = (make(images_per_network=per_network, place=place) for _ in range(2))
    expected = whole.gradients([crops()], 5)
    found = groups_of(parts, most).gradients([crops()], 5)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert_close(gradients(parts.generator), gradients(whole.generator), 1e-4)


def test_stage_gan_is_the_same_where_no_image_sees_another() -> None:
    """A U-Net has no batch statistics, and the vanilla loss is a mean."""
    whole, parts = (make("unet") for _ in range(2))
    expected = whole.gradients([crops()], 5)
    found = groups_of(parts, 2).gradients([crops()], 5)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name
    assert_close(gradients(parts.generator), gradients(whole.generator), 1e-3)


def test_batch_statistics_are_those_of_a_group_in_the_ascent_alone() -> None:
    """What G and D learn from is the whole batch; D's running statistics have not seen the ascent."""
    whole, parts = (make("vgg", size=128) for _ in range(2))
    whole.gradients([crops(size=128)], 5)
    found = groups_of(parts, 2).gradients([crops(size=128)], 5)
    assert torch.isfinite(found["loss"])
    assert found["loss_gain"] > 0
    for (name, one), (_, other) in zip(
        whole.discriminator.named_buffers(), parts.discriminator.named_buffers(), strict=True
    ):
        if name.endswith("num_batches_tracked"):
            assert one == other, name


def test_groups_share_one_recording() -> None:
    plain, captured = (groups_of(make(), 2) for _ in range(2))
    captured.capture = CUDAGraphCallable(captured.find, Rerun(), watch=captured.frozen_tensors)
    for step in range(2):
        for one in (plain, captured):
            one.generator.zero_grad()
        expected, found = (one.gradients([crops()], step) for one in (plain, captured))
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        assert_close(gradients(captured.generator), gradients(plain.generator), 0)
    assert captured.capture.recordings == 1
