"""DegradationNetwork and Theta: values, gradients, per-image parameters and errors."""

import pytest
import torch
from torch import Tensor

from andfast.adversary import sample_identity
from andfast.functional import blur_pool, degradation_block
from andfast.functional.degradation_block_reference import degradation_block_reference
from andfast.nn import DegradationNetwork, Theta


def perturbed(n: int, size: int = 8, *, scale: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> Theta:
    """Identity networks of 4 channels with all parameters perturbed noticeably."""
    generator = torch.Generator().manual_seed(seed)
    identity = sample_identity(n, hr_size=size, scale=scale, channels=4, generator=generator, dtype=torch.float64)
    return identity.rebuild(
        (tensor + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)).to(dtype)
        for tensor in identity.tensors()
    )


def photos(n: int, size: int = 8) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize(("scale", "size"), [(2, 8), (3, 9), (4, 8)])
@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_matches_reference_layers(scale: int, size: int, padding: str) -> None:
    """Five blocks, pooling, five blocks, a plain convolution, with the block's reference."""
    hr, theta = photos(2, size), perturbed(2, size, scale=scale)
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
    hr, theta = photos(3), perturbed(3)
    together = DegradationNetwork()(hr, theta)
    for i in range(3):
        own = theta.rebuild(tensor[i : i + 1] for tensor in theta.tensors())
        torch.testing.assert_close(together[i : i + 1], DegradationNetwork()(hr[i : i + 1], own))
        previous = theta.rebuild(tensor[i - 1 : i or None] for tensor in theta.tensors())
        assert not torch.allclose(together[i : i + 1], DegradationNetwork()(hr[i : i + 1], previous))


def test_gradients_reach_all_parameters() -> None:
    theta = perturbed(2)
    leaves = theta.rebuild(tensor.requires_grad_() for tensor in theta.tensors())
    DegradationNetwork()(photos(2), leaves).square().sum().backward()
    for leaf in leaves.tensors():
        assert leaf.grad is not None
        assert leaf.grad.flatten(1).norm(dim=1).min() > 0 if leaf.dim() > 1 else leaf.grad.abs().min() > 0


@pytest.mark.parametrize("networks", [1, 2, 3])
def test_shared_networks(networks: int) -> None:
    """Consecutive images share a network, whose gradients are summed."""
    hr, theta = photos(6), perturbed(networks)
    leaves = theta.rebuild(tensor.requires_grad_() for tensor in theta.tensors())
    lr = DegradationNetwork()(hr, leaves)
    target = torch.linspace(0, 1, lr.numel(), dtype=lr.dtype).view_as(lr)
    gradients = torch.autograd.grad((lr * target).sum(), tuple(leaves.tensors()))
    per = 6 // networks
    own = theta.rebuild(tensor.detach()[torch.arange(6) // per].requires_grad_() for tensor in theta.tensors())
    expected = DegradationNetwork()(hr, own)
    torch.testing.assert_close(lr, expected)
    per_image = torch.autograd.grad((expected * target).sum(), tuple(own.tensors()))
    for shared, single in zip(gradients, per_image, strict=True):
        torch.testing.assert_close(shared, single.unflatten(0, (networks, per)).sum(1))


def test_theta_structure() -> None:
    theta = perturbed(2)
    tensors = list(theta.tensors())
    assert len(tensors) == 31
    assert all(a is b for a, b in zip(tensors, (*theta.weights, *theta.noises, *theta.slopes), strict=True))
    again = theta.rebuild(iter(tensors))
    assert isinstance(again, Theta)
    assert all(a is b for a, b in zip(again.tensors(), tensors, strict=True))
    attached = theta.rebuild(tensor.requires_grad_() * 1 for tensor in tensors)
    for detached, tensor in zip(attached.detach().tensors(), tensors, strict=True):
        assert not detached.requires_grad
        assert torch.equal(detached, tensor)


def test_each_image() -> None:
    theta = perturbed(2)
    assert theta.each_image(2) is theta
    four = theta.each_image(4)
    for repeated, tensor in zip(four.tensors(), theta.tensors(), strict=True):
        assert torch.equal(repeated, torch.stack([tensor[0], tensor[0], tensor[1], tensor[1]]))
    for images, networks in ((3, 2), (1, 2), (2, 0)):
        with pytest.raises(
            ValueError, match=f"theta must have as many networks as images, {images}, .* had {networks}"
        ):
            perturbed(networks).each_image(images)


def test_empty_batch() -> None:
    lr = DegradationNetwork()(photos(0), perturbed(0))
    assert lr.shape == (0, 3, 2, 2)


def test_autocast() -> None:
    hr, theta = photos(2).float(), perturbed(2, dtype=torch.float32)
    exact = DegradationNetwork()(hr, theta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lr = DegradationNetwork()(hr, theta)
    assert lr.dtype == torch.bfloat16
    assert (lr - exact).norm() / exact.norm() < 3e-2


def test_preserves_channels_last() -> None:
    hr, theta = photos(2, 16), perturbed(2, 16)
    lr = DegradationNetwork()(hr.to(memory_format=torch.channels_last), theta)
    assert lr.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(lr, DegradationNetwork()(hr, theta))


@pytest.mark.parametrize("scale", [1, 5, 0, -4, None])
def test_rejects_invalid_scale(scale: int) -> None:
    with pytest.raises(ValueError, match=f"scale must be 2, 3 or 4, was {scale}"):
        DegradationNetwork(scale)


def test_rejects_mismatched_theta() -> None:
    hr, theta = photos(2), perturbed(2)
    net = DegradationNetwork()
    with pytest.raises(ValueError, match="theta must have 11 weights, 10 noises and 10 slopes, had 10, 10 and 9"):
        net(hr, Theta(theta.weights[1:], theta.noises, theta.slopes[1:]))
    with pytest.raises(ValueError, match=r"noise must have shape .*, was \(2, 4, 12, 12\)"):
        net(hr, perturbed(2, 12))
    with pytest.raises(ValueError, match=r"x must have H and W divisible by the factor, 4, had shape \(2, 4, 6, 6\)"):
        net(photos(2, 6), perturbed(2, 6, scale=2))
    with pytest.raises(ValueError, match="padding must be one of 'replicate', 'zeros', was 'reflect'"):
        DegradationNetwork(padding="reflect")(hr, theta)
    with pytest.raises(ValueError, match="impl must be one of auto"):
        DegradationNetwork(impl="quick")(hr, theta)


def test_impl_is_passed_to_the_ops() -> None:
    with pytest.raises(RuntimeError, match="impl='cpp' is not available: degradation_block"):
        DegradationNetwork(impl="cpp")(photos(1), perturbed(1))
    expected = "DegradationNetwork(scale=2, padding='replicate', smallest_slope=0.0, impl='auto')"
    assert repr(DegradationNetwork(2)) == expected
    assert not list(DegradationNetwork().parameters())
    # The last layer is a plain convolution: a block with a slope of one and no noise.
    x, theta = photos(1), perturbed(1)
    conv = degradation_block(x, theta.weights[0], 1.0)
    torch.testing.assert_close(
        conv, torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1,) * 4, mode="replicate"), theta.weights[0][0])
    )


def saved_bytes(network: DegradationNetwork, hr: Tensor, theta: Theta) -> int:
    """Bytes of distinct storages that a forward pass saves for backward, without theta."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(hr, theta)
    for tensor in theta.tensors():
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def test_smallest_slope_saves_memory_at_equal_gradients() -> None:
    """No layer saves z: outputs are the next layer's saved inputs, except for the pooled one."""
    hr, theta = photos(2, 16), perturbed(2, 16)
    assert min(slope.abs().min().item() for slope in theta.slopes) > 0.5
    leaves = theta.rebuild(tensor.requires_grad_() for tensor in theta.tensors())
    networks = DegradationNetwork(), DegradationNetwork(smallest_slope=0.5)
    bytes_with_z, bytes_with_signs = (saved_bytes(network, hr, leaves) for network in networks)
    layer = 2 * 4 * 16 * 16
    # Five layers at HR's size and five at a sixteenth; z takes 8 bytes per value, a sign in the reference 1.
    assert bytes_with_z - bytes_with_signs == (5 * 7 - 8) * layer + 5 * 7 * layer // 16
    expected, grads = (
        torch.autograd.grad(network(hr, leaves).square().sum(), tuple(leaves.tensors())) for network in networks
    )
    for grad, expected_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad)
