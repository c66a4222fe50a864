"""DegradationNetwork and Theta: what F computes, whose parameters it uses, and what it refuses."""

import pytest
import torch
from torch import Tensor

from andfast.adversary import sample_identity
from andfast.functional import blur_pool, degradation_block
from andfast.functional.degradation_block import degradation_block_reference
from andfast.nn import DegradationNetwork, Theta


def disturbed(n: int, size: int = 8, *, scale: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> Theta:
    """Identity networks of 4 channels with every parameter moved, far enough for each to matter."""
    generator = torch.Generator().manual_seed(seed)
    identity = sample_identity(n, hr_size=size, scale=scale, channels=4, generator=generator, dtype=torch.float64)
    return identity.rebuild(
        (one + 0.1 * torch.randn(one.shape, generator=generator, dtype=torch.float64)).to(dtype)
        for one in identity.tensors()
    )


def photos(n: int, size: int = 8) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize(("scale", "size"), [(2, 8), (3, 9), (4, 8)])
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_layers_in_their_order(scale: int, size: int, padding: str) -> None:
    """Five blocks, pooling, five blocks, a plain convolution: written out with the reference of the block."""
    hr, theta = photos(2, size), disturbed(2, size, scale=scale)
    x = hr
    for layer in range(10):
        if layer == 5:
            x = blur_pool(x, scale, impl="reference")
        x = degradation_block_reference(x, theta.weights[layer], theta.slopes[layer], theta.noises[layer], padding)
    x = degradation_block_reference(x, theta.weights[10], torch.ones((), dtype=x.dtype), None, padding)
    lr = DegradationNetwork(scale, padding=padding)(hr, theta)
    assert lr.shape == (2, 3, size // scale, size // scale)
    torch.testing.assert_close(lr, x)


def test_each_image_has_its_own_network() -> None:
    hr, theta = photos(3), disturbed(3)
    together = DegradationNetwork()(hr, theta)
    for i in range(3):
        alone = theta.rebuild(one[i : i + 1] for one in theta.tensors())
        torch.testing.assert_close(together[i : i + 1], DegradationNetwork()(hr[i : i + 1], alone))
        other = theta.rebuild(one[i - 1 : i or None] for one in theta.tensors())
        assert not torch.allclose(together[i : i + 1], DegradationNetwork()(hr[i : i + 1], other))


def test_every_parameter_has_a_gradient() -> None:
    theta = disturbed(2)
    leaves = theta.rebuild(one.requires_grad_() for one in theta.tensors())
    DegradationNetwork()(photos(2), leaves).square().sum().backward()
    for one in leaves.tensors():
        assert one.grad is not None
        assert one.grad.flatten(1).norm(dim=1).min() > 0 if one.dim() > 1 else one.grad.abs().min() > 0


@pytest.mark.parametrize("networks", [1, 2, 3])
def test_shared_networks(networks: int) -> None:
    """Consecutive images share a network, and their gradients add up."""
    hr, theta = photos(6), disturbed(networks)
    leaves = theta.rebuild(one.requires_grad_() for one in theta.tensors())
    lr = DegradationNetwork()(hr, leaves)
    target = torch.linspace(0, 1, lr.numel(), dtype=lr.dtype).view_as(lr)
    gradients = torch.autograd.grad((lr * target).sum(), tuple(leaves.tensors()))
    per = 6 // networks
    own = theta.rebuild(one.detach()[torch.arange(6) // per].requires_grad_() for one in theta.tensors())
    exact = DegradationNetwork()(hr, own)
    torch.testing.assert_close(lr, exact)
    each = torch.autograd.grad((exact * target).sum(), tuple(own.tensors()))
    for shared, single in zip(gradients, each, strict=True):
        torch.testing.assert_close(shared, single.unflatten(0, (networks, per)).sum(1))


def test_theta_structure() -> None:
    theta = disturbed(2)
    tensors = list(theta.tensors())
    assert len(tensors) == 31
    assert all(a is b for a, b in zip(tensors, (*theta.weights, *theta.noises, *theta.slopes), strict=True))
    again = theta.rebuild(iter(tensors))
    assert isinstance(again, Theta)
    assert all(a is b for a, b in zip(again.tensors(), tensors, strict=True))
    attached = theta.rebuild(one.requires_grad_() * 1 for one in tensors)
    for one, other in zip(attached.detach().tensors(), tensors, strict=True):
        assert not one.requires_grad
        assert torch.equal(one, other)


def test_each_image() -> None:
    theta = disturbed(2)
    assert theta.each_image(2) is theta
    four = theta.each_image(4)
    for one, other in zip(four.tensors(), theta.tensors(), strict=True):
        assert torch.equal(one, torch.stack([other[0], other[0], other[1], other[1]]))
    for images, networks in ((3, 2), (1, 2), (2, 0)):
        with pytest.raises(
            ValueError, match=f"theta must have as many networks as images, {images}, .* had {networks}"
        ):
            disturbed(networks).each_image(images)


def test_empty_batch() -> None:
    lr = DegradationNetwork()(photos(0), disturbed(0))
    assert lr.shape == (0, 3, 2, 2)


def test_mixed_precision_follows_autocast() -> None:
    hr, theta = photos(2).float(), disturbed(2, dtype=torch.float32)
    exact = DegradationNetwork()(hr, theta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lr = DegradationNetwork()(hr, theta)
    assert lr.dtype == torch.bfloat16
    assert (lr - exact).norm() / exact.norm() < 3e-2


def test_channels_last_stays() -> None:
    hr, theta = photos(2, 16), disturbed(2, 16)
    lr = DegradationNetwork()(hr.to(memory_format=torch.channels_last), theta)
    assert lr.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(lr, DegradationNetwork()(hr, theta))


@pytest.mark.parametrize("scale", [1, 5, 0, -4, None])
def test_scale_is_checked(scale: int) -> None:
    with pytest.raises(ValueError, match=f"scale must be 2, 3 or 4, was {scale}"):
        DegradationNetwork(scale)


def test_theta_of_another_shape_is_refused() -> None:
    hr, theta = photos(2), disturbed(2)
    net = DegradationNetwork()
    with pytest.raises(ValueError, match="theta must have 11 weights, 10 noises and 10 slopes, had 10, 10 and 9"):
        net(hr, Theta(theta.weights[1:], theta.noises, theta.slopes[1:]))
    with pytest.raises(ValueError, match=r"noise must have shape .*, was \(2, 4, 12, 12\)"):
        net(hr, disturbed(2, 12))
    with pytest.raises(ValueError, match=r"x must have H and W divisible by the factor, 4, had shape \(2, 4, 6, 6\)"):
        net(photos(2, 6), disturbed(2, 6, scale=2))
    with pytest.raises(ValueError, match="padding must be one of 'replicate', 'zeros', was 'reflect'"):
        DegradationNetwork(padding="reflect")(hr, theta)
    with pytest.raises(ValueError, match="impl must be one of auto"):
        DegradationNetwork(impl="quick")(hr, theta)


def test_it_is_the_ops_that_run() -> None:
    """An explicit implementation reaches the ops, and the module says how it was made."""
    with pytest.raises(RuntimeError, match="impl='cpp' is not available: degradation_block"):
        DegradationNetwork(impl="cpp")(photos(1), disturbed(1))
    expected = "DegradationNetwork(scale=2, padding='replicate', smallest_slope=0.0, impl='auto')"
    assert repr(DegradationNetwork(2)) == expected
    assert not list(DegradationNetwork().parameters())
    # The last layer is a plain convolution: a block with a slope of one and no noise.
    x, theta = photos(1), disturbed(1)
    conv = degradation_block(x, theta.weights[0], 1.0)
    torch.testing.assert_close(
        conv, torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1,) * 4, mode="replicate"), theta.weights[0][0])
    )


def kept(network: DegradationNetwork, hr: Tensor, theta: Theta) -> int:
    """Bytes that a pass keeps for its backward pass beside theta, each memory once."""
    found: dict[int, int] = {}

    def pack(one: Tensor) -> Tensor:
        found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        network(hr, theta)
    for one in theta.tensors():
        found.pop(one.untyped_storage().data_ptr(), None)
    return sum(found.values())


def test_slopes_known_to_be_large_take_less_memory_and_give_the_same_gradients() -> None:
    """Of ten layers' z none is kept: their results are the next layers' inputs, but for the one that is pooled."""
    hr, theta = photos(2, 16), disturbed(2, 16)
    assert min(one.abs().min().item() for one in theta.slopes) > 0.5
    leaves = theta.rebuild(one.requires_grad_() for one in theta.tensors())
    networks = DegradationNetwork(), DegradationNetwork(smallest_slope=0.5)
    kept_z, kept_bits = (kept(one, hr, leaves) for one in networks)
    layer = 2 * 4 * 16 * 16
    # Five layers at HR's size and five at a sixteenth; z takes 8 bytes a value, a sign in the reference 1.
    assert kept_z - kept_bits == (5 * 7 - 8) * layer + 5 * 7 * layer // 16
    found, expected = (torch.autograd.grad(one(hr, leaves).square().sum(), tuple(leaves.tensors())) for one in networks)
    for one, right in zip(found, expected, strict=True):
        torch.testing.assert_close(one, right)
