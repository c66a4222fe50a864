"""The mean distance's Triton kernels on a GPU, against float64 and, the gradient, bit for bit."""

from typing import Any

import pytest
import torch
from mean_distance_cases import Pair, assert_correct, random_pair, run
from torch import Tensor

from andfast.functional import mean_distance
from andfast.functional.mean_distance import mean_distance_reference
from andfast.losses import REAL_ESRGAN_LAYERS, PerceptualLoss

pytestmark = pytest.mark.gpu

TRAINING = (48, 64, 256, 256)  # VGG's conv1_2 at the paper's size


def features(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor]:
    form = torch.channels_last
    x, target = (torch.empty(shape, dtype=dtype, device="cuda", memory_format=form).normal_() for _ in range(2))
    return x, target


@pytest.mark.parametrize("part", range(4))
def test_random_cases(part: int) -> None:
    for seed in range(part, 200, 4):
        assert_correct(random_pair(seed, (torch.float32, torch.bfloat16, torch.float16), "cuda"), "triton")


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, "l1"), (torch.bfloat16, "l1"), (torch.bfloat16, "l2"), (torch.float16, "l2")]
)
def test_at_the_size_of_training(dtype: torch.dtype, kind: Any) -> None:
    """201 M values, and the same bits twice."""
    pair = Pair(*features(dtype, *TRAINING), kind, torch.tensor(0.1, device="cuda"), "")
    assert_correct(pair, "triton")
    for a, b in zip(run(pair, "triton"), run(pair, "triton"), strict=True):
        assert torch.equal(a, b)


def test_allocates_only_the_gradient() -> None:
    x, target = features(torch.bfloat16, *TRAINING)
    x.requires_grad_()
    run(Pair(x[:1], target[:1], "l1", torch.tensor(1.0, device="cuda"), ""), "triton")  # compiles
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    mean = mean_distance(x, target)
    assert torch.cuda.max_memory_allocated() - before < 1e6
    torch.autograd.grad(mean, x)
    assert torch.cuda.max_memory_allocated() - before < x.nbytes + 1e6


def test_more_values_than_int32() -> None:
    x, target = (torch.zeros(2**31 + 100, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    x[-50:] = 3
    x.requires_grad_()
    mean = mean_distance(x, target, impl="triton")
    torch.testing.assert_close(mean.item(), 150 / x.numel())
    (grad,) = torch.autograd.grad(mean, x, torch.tensor(float(x.numel()), device="cuda"))
    assert (grad[-50:] == 1).all()
    assert grad[:-50].count_nonzero() == 0


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_graph_capture(kind: Any) -> None:
    """Replays read the current values, and nothing synchronizes with the host."""
    pair = Pair(*features(torch.bfloat16, 2, 64, 33, 31), kind, torch.tensor(0.1, device="cuda"), "")
    run(pair, "triton")  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(pair, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(pair, "triton")
    for _ in range(2):
        for tensor in (pair.x, pair.target, pair.grad):
            tensor.normal_()
        graph.replay()
        for a, b in zip(captured, run(pair, "triton"), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_compiles_as_one_graph(kind: Any) -> None:
    def loss(x: Tensor, target: Tensor) -> Tensor:
        return mean_distance(torch.relu(x), target, kind=kind, impl="triton")

    x, target = features(torch.bfloat16, 2, 16, 9, 11)
    x.requires_grad_()
    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(x, target), mean_distance_reference(torch.relu(x), target, kind))
    assert torch.equal(*(torch.autograd.grad(call(x, target), x)[0] for call in (loss, compiled)))


def test_perceptual_loss() -> None:
    """Value and gradient under autocast are those of composed ops."""
    loss = PerceptualLoss(REAL_ESRGAN_LAYERS, weights="random").cuda().to(memory_format=torch.channels_last)
    hr, sr = (torch.rand(2, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last) for _ in range(2))
    sr.requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        with torch.no_grad():
            targets = loss.features(hr)
        actual = loss(sr, targets)
        ours = loss.features(sr)
        expected = sum(weight * mean_distance_reference(ours[n], targets[n]) for n, weight in loss.layers.items())
    torch.testing.assert_close(actual, expected)
    first, second = (torch.autograd.grad(value, sr)[0] for value in (actual, expected))
    torch.testing.assert_close(first, second, rtol=2e-2, atol=1e-2 * second.abs().max().item())
