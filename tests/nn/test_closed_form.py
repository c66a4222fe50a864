"""DegradationNetwork.closed_form_first_step against F itself, differentiated in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from andfast.adversary import sample_identity
from andfast.functional import blur_pool
from andfast.nn import DegradationNetwork, Theta


def gradients(hr: Tensor, theta: Theta, network: DegradationNetwork, *, closed: bool) -> tuple[Tensor, list[Tensor]]:
    """LR, and the gradients of a function of it that is not linear to HR and theta's tensors."""
    leaves = theta.rebuild(tensor.detach().clone().requires_grad_() for tensor in theta.tensors())
    hr = hr.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    lr = network.closed_form_first_step(hr, leaves) if closed else network(hr, leaves)
    target = torch.linspace(-1, 1, lr.numel(), dtype=lr.dtype).view_as(lr)
    loss = ((lr - target).square() * torch.arange(1, 1 + len(lr)).view(-1, 1, 1, 1)).sum()
    return lr.detach(), list(torch.autograd.grad(loss, (hr, *leaves.tensors())))


@given(
    n=st.sampled_from([(1, 1), (3, 3), (4, 2), (2, 1), (0, 0)]),
    size=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    scale=st.sampled_from([2, 3, 4]),
    channels=st.sampled_from([8, 13, 16]),
    noise=st.sampled_from(["full", "single"]),
    slope=st.sampled_from(["layer", "channel"]),
    padding=st.sampled_from(["replicate", "zeros"]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_matches_forward(
    n: tuple[int, int],
    size: tuple[int, int],
    scale: int,
    channels: int,
    noise: str,
    slope: str,
    padding: str,
    memory_format: torch.memory_format,
) -> None:
    """All gradients in float64, where narrow networks lose few digits."""
    images, networks = n
    hr_size = (size[0] * scale, size[1] * scale)
    hr = torch.rand(images, 3, *hr_size, dtype=torch.float64).contiguous(memory_format=memory_format)
    draw = {"hr_size": hr_size, "scale": scale, "channels": channels, "noise": noise, "slope": slope}
    theta = sample_identity(networks, **draw, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    network = DegradationNetwork(scale, padding=padding)
    (lr, grads), (expected_lr, expected) = (gradients(hr, theta, network, closed=closed) for closed in (True, False))
    torch.testing.assert_close(lr, expected_lr, rtol=1e-6, atol=1e-6)
    assert len(grads) == len(expected) == 32
    for grad, expected_grad in zip(grads, expected, strict=True):
        assert grad.shape == expected_grad.shape
        assert grad.dtype == expected_grad.dtype
        assert (grad - expected_grad).norm() <= 1e-6 * expected_grad.norm() + 1e-12


def test_fp32_with_64_channels() -> None:
    """Within 1e-5 of float64, like F itself."""
    hr = torch.rand(2, 3, 32, 32)
    theta = sample_identity(2, hr_size=32, generator=torch.Generator().manual_seed(0))
    network = DegradationNetwork()
    lr, grads = gradients(hr, theta, network, closed=True)
    assert torch.equal(lr, blur_pool(hr, 4))
    float64_theta = theta.rebuild(tensor.double() for tensor in theta.tensors())
    _, expected = gradients(hr.double(), float64_theta, network, closed=False)
    for grad, expected_grad in zip(grads, expected, strict=True):
        assert (grad - expected_grad).norm() <= 1e-5 * expected_grad.norm()


def test_computes_only_required_gradients() -> None:
    hr = torch.rand(1, 3, 8, 8)
    theta = sample_identity(1, hr_size=8, channels=8)
    theta.weights[3].requires_grad_()
    theta.slopes[7].requires_grad_()
    lr = DegradationNetwork().closed_form_first_step(hr, theta)
    lr.sum().backward()
    assert [tensor.grad is not None for tensor in theta.tensors()].count(True) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_has_no_effect(dtype: torch.dtype) -> None:
    hr = torch.rand(2, 3, 16, 16)
    theta = sample_identity(2, hr_size=16, channels=16, generator=torch.Generator().manual_seed(0))
    lr, expected = gradients(hr, theta, DegradationNetwork(), closed=True)
    with torch.autocast("cpu", dtype=dtype):
        autocast_lr, grads = gradients(hr, theta, DegradationNetwork(), closed=True)
    assert torch.equal(lr, autocast_lr)
    assert all(torch.equal(a, b) for a, b in zip(expected, grads, strict=True))


def test_operation_count() -> None:
    """F's forward and both gradients take 31.6 GMAC per image, the closed form less than a fiftieth."""
    hr = torch.empty(1, 3, 256, 256, device="meta")
    theta = sample_identity(1, hr_size=256, device="meta")
    leaves = theta.rebuild(tensor.detach().requires_grad_() for tensor in theta.tensors())
    counts = []
    for run in (DegradationNetwork().forward, DegradationNetwork().closed_form_first_step):
        with FlopCounterMode(display=False) as counter:
            lr = run(hr, leaves.rebuild(tensor.view_as(tensor) for tensor in leaves.tensors()))
            torch.autograd.grad(lr.sum(), tuple(leaves.tensors()))
        counts.append(counter.get_total_flops() / 2e9)
    assert counts[0] == pytest.approx(31.6, rel=0.01)
    assert counts[1] < counts[0] / 50
