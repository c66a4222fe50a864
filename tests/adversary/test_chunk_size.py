"""The attack in chunks of images: the same LR, less memory."""

import pytest
import torch
from rerun import Rerun
from small_steps import assert_close, crops, gradients, make

from andfast.adversary import AttackSettings, Ball
from andfast.training.cuda_graph import CUDAGraphCallable
from andfast.training.step import RankInfo


@pytest.mark.parametrize(
    ("images", "per_network", "chunk_size", "sizes"),
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
        (5, 2, 2, [5]),  # an error later, as networks cannot be shared so
        (0, 1, 4, [0]),
    ],
)
def test_chunks_hold_whole_networks(images: int, per_network: int, chunk_size: int, sizes: list[int]) -> None:
    settings = AttackSettings(Ball(1.0, 1.0, 1.0), images_per_network=per_network, chunk_size=chunk_size)
    chunks = settings.chunks(images)
    assert [len(chunk) for chunk in chunks] == sizes
    assert [image for chunk in chunks for image in chunk] == list(range(images))


@pytest.mark.parametrize(("per_network", "chunk_size"), [(1, 1), (1, 2), (1, 3), (2, 2)])
@pytest.mark.parametrize(
    "rank_info", [RankInfo(1, 0), RankInfo(1, 0, rank=1, world_size=3)], ids=["alone", "second of three"]
)
def test_stage_net_is_equal_up_to_rounding(per_network: int, chunk_size: int, rank_info: RankInfo) -> None:
    whole, parts = (
        make(settings={"images_per_network": per_network, "chunk_size": size}, rank_info=rank_info)
        for size in (0, chunk_size)
    )
    expected = whole.gradients([crops()], 5)
    actual = parts.gradients([crops()], 5)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert_close(gradients(parts.generator), gradients(whole.generator), 1e-4)


def test_stage_gan_is_equal_without_batch_statistics() -> None:
    """A U-Net has none, and the vanilla loss is a mean over images."""
    whole, parts = (make("unet", settings={"chunk_size": size}) for size in (0, 2))
    expected = whole.gradients([crops()], 5)
    actual = parts.gradients([crops()], 5)
    for name, value in expected.items():
        assert actual[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name
    assert_close(gradients(parts.generator), gradients(whole.generator), 1e-3)


def test_batch_statistics_are_per_chunk_in_the_ascent_only() -> None:
    """G and D learn from the whole batch, and D's running statistics do not see the ascent."""
    whole, parts = (make("vgg", size=128, settings={"chunk_size": size}) for size in (0, 2))
    whole.gradients([crops(size=128)], 5)
    actual = parts.gradients([crops(size=128)], 5)
    assert torch.isfinite(actual["loss"])
    assert actual["loss_gain"] > 0
    for (name, value), (_, expected) in zip(
        whole.discriminator.named_buffers(), parts.discriminator.named_buffers(), strict=True
    ):
        if name.endswith("num_batches_tracked"):
            assert value == expected, name


def test_chunks_share_one_capture() -> None:
    plain, captured = (make(settings={"chunk_size": 2}, backend=backend) for backend in (None, Rerun()))
    for step in range(2):
        for training_step in (plain, captured):
            training_step.generator.zero_grad()
        expected, actual = (training_step.gradients([crops()], step) for training_step in (plain, captured))
        for name, value in expected.items():
            assert torch.equal(actual[name], value), name
        assert_close(gradients(captured.generator), gradients(plain.generator), 0)
    assert isinstance(captured.search, CUDAGraphCallable)
    assert captured.search.captures == 1
