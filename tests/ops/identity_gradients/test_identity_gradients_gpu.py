"""The identity gradients' Triton kernels on a GPU, against the formulas in float64."""

import pytest
import torch
from identity_gradients_cases import Call, assert_correct, random_call
from torch import Tensor

from andfast.adversary import sample_identity
from andfast.functional.identity_gradients import identity_gradients
from andfast.nn import DegradationNetwork, Theta

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("part", range(4))
def test_random_calls(part: int) -> None:
    for seed in range(part, 160, 4):
        call = random_call(seed, "cuda", DTYPES)
        assert_correct(identity_gradients(*call[:4], **call.options, impl="triton"), call)


def at_the_size_of_training(images: int, dtype: torch.dtype, one_map: bool) -> Call:
    """Five layers of 64 channels before the pooling, in channels_last."""
    x, grad = (
        torch.randn(images, 3, 256, 256, device="cuda").contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    before, after = torch.randn(2, 5, images, 3, 64, device="cuda")
    noises = [1 if one_map else 64] * 5
    options = {"noises": noises, "slopes": [True] * 5, "correlation": True, "noise_dtype": dtype}
    return Call(x, grad, before, after, options)


@pytest.mark.parametrize(
    ("dtype", "one_map"),
    [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, True)],
)
def test_at_the_size_of_training(dtype: torch.dtype, one_map: bool) -> None:
    """48 images, three compared with float64; the same bits twice; memory only for results and partial sums."""
    call = at_the_size_of_training(48, dtype, one_map)
    identity_gradients(*call[:4], **call.options)  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = identity_gradients(*call[:4], **call.options)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < sum(noise.nbytes for noise in results[1]) + (64 << 20)
    again = identity_gradients(*call[:4], **call.options)
    for a, b in zip([results[0], *results[1], results[2]], [again[0], *again[1], again[2]], strict=True):
        assert torch.equal(a, b)
    del again
    for number in (0, 23, 47):
        part = slice(number, number + 1)
        image = Call(call.x[part], call.grad[part], call.before[:, part], call.after[:, part], call.options)
        assert_correct((results[0][part], [noise[part] for noise in results[1]], results[2][:, part]), image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graph_capture(dtype: torch.dtype) -> None:
    """Replays read the current images, and nothing synchronizes with the host."""
    call = at_the_size_of_training(2, dtype, False)
    identity_gradients(*call[:4], **call.options)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        identity_gradients(*call[:4], **call.options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = identity_gradients(*call[:4], **call.options)
    for _ in range(2):
        call.x.normal_()
        call.grad.normal_()
        graph.replay()
        expected = identity_gradients(*call[:4], **call.options)
        assert torch.equal(captured[0], expected[0])
        assert torch.equal(captured[2], expected[2])
        assert all(torch.equal(a, b) for a, b in zip(captured[1], expected[1], strict=True))


@pytest.mark.parametrize("noise", ["full", "single"])
def test_closed_form_first_step_matches_reference(noise: str) -> None:
    hr = torch.rand(2, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    theta = sample_identity(2, hr_size=64, noise=noise, device="cuda")

    def gradients(impl: str) -> tuple[Tensor, ...]:
        leaves: Theta = theta.rebuild(tensor.detach().clone().requires_grad_() for tensor in theta.tensors())
        lr = DegradationNetwork(impl=impl).closed_form_first_step(hr, leaves)
        return torch.autograd.grad(lr.square().sum(), tuple(leaves.tensors()))

    for actual, expected in zip(gradients("auto"), gradients("reference"), strict=True):
        assert (actual - expected).norm() <= 1e-5 * expected.norm()
