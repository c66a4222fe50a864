"""sample_identity: networks that do nothing but pool, each another one."""

import pytest
import skimage.data
import torch
from torch import Tensor

from andfast.adversary import sample_identity
from andfast.functional import blur_pool
from andfast.nn import DegradationNetwork, Theta


def photo(size: int) -> Tensor:
    """A crop of a real photograph, (1, 3, size, size) in [0, 1]."""
    crop = skimage.data.astronaut()[100 : 100 + size, 180 : 180 + size]
    return torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 255


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(a: Theta, b: Theta) -> bool:
    return all(torch.equal(tensor, second) for tensor, second in zip(a.tensors(), b.tensors(), strict=True))


def deviation(theta: Theta, size: int, scale: int) -> Tensor:
    """The largest difference of every network's LR from the pooled photograph."""
    n = theta.weights[0].shape[0]
    hr = photo(size)
    lr = DegradationNetwork(scale)(hr.expand(n, -1, -1, -1).contiguous(), theta)
    return (lr - blur_pool(hr, scale)).abs().amax((1, 2, 3))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_hundred_draws_are_the_identity(scale: int) -> None:
    """Issue: within 1e-5 for 100 random draws of the networks that training uses."""
    theta = sample_identity(100, hr_size=24, scale=scale, generator=seeded(scale))
    assert theta.weights[1].shape == (100, 64, 64, 3, 3)
    worst = deviation(theta, 24, scale).max().item()
    assert worst <= 1e-5


@pytest.mark.parametrize(("noise", "slope"), [("single", "layer"), ("full", "channel"), ("single", "channel")])
def test_single_noise_and_channel_slope_are_the_identity(noise: str, slope: str) -> None:
    theta = sample_identity(10, hr_size=24, noise=noise, slope=slope, generator=seeded())
    assert deviation(theta, 24, 4).max().item() <= 1e-5


def test_training_size_is_the_identity() -> None:
    theta = sample_identity(1, hr_size=256, generator=seeded(3))
    assert deviation(theta, 256, 4).item() <= 1e-5


def test_narrow_networks_are_the_identity() -> None:
    """A product of ten narrow matrices is badly conditioned: fewer than 16 channels cost digits, not the point."""
    for channels, tolerance in ((32, 1e-5), (16, 1e-4), (8, 5e-3)):
        theta = sample_identity(50, hr_size=24, channels=channels, generator=seeded())
        assert deviation(theta, 24, 4).max().item() <= tolerance
    wide = sample_identity(50, hr_size=24, channels=8, generator=seeded(), dtype=torch.float64)
    hr = photo(24).double()
    lr = DegradationNetwork()(hr.expand(50, -1, -1, -1), wide)
    assert (lr - blur_pool(hr, 4)).abs().max().item() < 1e-8


def test_draws_differ() -> None:
    theta = sample_identity(4, hr_size=8, generator=seeded())
    for kernel in theta.weights:
        for i in range(4):
            for j in range(i):
                difference = (kernel[i] - kernel[j]).norm() / kernel[i].norm()
                assert difference > 0.5
    assert not torch.equal(theta.weights[0], sample_identity(4, hr_size=8, generator=seeded(1)).weights[0])


def test_shapes_and_dtypes() -> None:
    theta = sample_identity(2, hr_size=(8, 12), channels=5, generator=seeded())
    assert [tuple(tensor.shape) for tensor in theta.weights] == [
        (2, 5, 3, 3, 3),
        *[(2, 5, 5, 3, 3)] * 9,
        (2, 3, 5, 3, 3),
    ]
    assert [tuple(tensor.shape) for tensor in theta.noises] == [(2, 5, 8, 12)] * 5 + [(2, 5, 2, 3)] * 5
    assert [tuple(tensor.shape) for tensor in theta.slopes] == [(2,)] * 10
    for kernel in theta.weights:
        center = kernel[..., 1, 1].clone()
        assert (center != 0).all()
        assert kernel.count_nonzero() == center.count_nonzero()
    assert not any(tensor.any() for tensor in theta.noises)
    assert all((tensor == 1).all() for tensor in theta.slopes)
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in theta.tensors())
    second = sample_identity(2, hr_size=(8, 12), channels=5, noise="single", slope="channel")
    assert [tuple(tensor.shape) for tensor in second.noises] == [(2, 1, 8, 12)] * 5 + [(2, 1, 2, 3)] * 5
    assert [tuple(tensor.shape) for tensor in second.slopes] == [(2, 5)] * 10


def test_kernels_are_xavier_normal() -> None:
    """A standard deviation of sqrt(2 / (fan in + fan out)) of a 1x1 convolution, and a pseudo-inverse at the end."""
    theta = sample_identity(20, hr_size=8, generator=seeded(), dtype=torch.float64)
    for layer, kernel in enumerate(theta.weights[:10]):
        center = kernel[..., 1, 1]
        expected = (2 / (center.shape[1] + center.shape[2])) ** 0.5
        assert center.std().item() == pytest.approx(expected, rel=0.03), layer
        assert abs(center.mean().item()) < 0.05 * expected
    product = theta.weights[0][..., 1, 1]
    for kernel in theta.weights[1:10]:
        product = kernel[..., 1, 1] @ product
    torch.testing.assert_close(theta.weights[10][..., 1, 1], torch.linalg.pinv(product))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shards_are_slices_of_the_whole_batch(dtype: torch.dtype) -> None:
    options = {"hr_size": 8, "channels": 6, "dtype": dtype}
    whole = sample_identity(6, generator=seeded(), **options)
    for offset, n in ((0, 6), (0, 2), (2, 3), (5, 1), (4, 0)):
        part = sample_identity(n, generator=seeded(), batch=(offset, 6), **options)
        assert equal(part, whole.rebuild(tensor[offset : offset + n] for tensor in whole.tensors()))


def test_equal_generators_draw_equal_networks() -> None:
    assert equal(
        sample_identity(3, hr_size=8, channels=8, generator=seeded(4)),
        sample_identity(3, hr_size=8, channels=8, generator=seeded(4)),
    )
    generator = seeded(4)
    first = sample_identity(3, hr_size=8, channels=8, generator=generator)
    assert not equal(first, sample_identity(3, hr_size=8, channels=8, generator=generator))
    torch.manual_seed(8)
    default = sample_identity(3, hr_size=8, channels=8)
    torch.manual_seed(8)
    assert equal(default, sample_identity(3, hr_size=8, channels=8))
    before = torch.get_rng_state()
    sample_identity(3, hr_size=8, channels=8, generator=generator)
    assert torch.equal(before, torch.get_rng_state())


def test_no_host_synchronization() -> None:
    """On the meta device whatever would wait for a value raises: .item(), a nonzero, a factorisation's check."""
    theta = sample_identity(3, hr_size=16, device="meta", batch=(3, 9))
    assert all(tensor.is_meta for tensor in theta.tensors())
    lr = DegradationNetwork()(torch.empty(3, 3, 16, 16, device="meta"), theta)
    assert lr.shape == (3, 3, 4, 4)
    with pytest.raises(RuntimeError, match="meta"):
        lr.sum().item()


def test_fresh_noise_takes_no_memory() -> None:
    """22 million zeros an image are one zero until the adversary moves them."""
    theta = sample_identity(2, hr_size=256)
    assert sum(tensor.untyped_storage().nbytes() for tensor in theta.noises) <= 4 * len(theta.noises)


def test_zero_networks() -> None:
    theta = sample_identity(0, hr_size=8)
    assert all(tensor.shape[0] == 0 for tensor in theta.tensors())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": -1}, "n must be 0 or more, was -1"),
        ({"hr_size": 10}, r"hr_size must be positive multiples of scale 4, was \(10, 10\)"),
        ({"hr_size": (8, 9)}, r"hr_size must be positive multiples of scale 4, was \(8, 9\)"),
        ({"hr_size": 0}, r"hr_size must be positive multiples of scale 4, was \(0, 0\)"),
        ({"scale": 0}, "scale must be at least 1, was 0"),
        ({"channels": 2}, "channels must be at least 3, or no inverse exists, was 2"),
        ({"noise": "map"}, "noise must be 'full' or 'single', was 'map'"),
        ({"slope": "pixel"}, "slope must be 'layer' or 'channel', was 'pixel'"),
        ({"batch": (3, 4)}, r"batch must be \(offset, total\) with offset \+ n within total, was \(3, 4\), n 2"),
        ({"batch": (-1, 4)}, r"batch must be .*, was \(-1, 4\), n 2"),
    ],
)
def test_rejects_invalid_arguments(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"n": 2, "hr_size": 8} | change
    with pytest.raises(ValueError, match=message):
        sample_identity(arguments.pop("n"), **arguments)  # type: ignore[arg-type]
