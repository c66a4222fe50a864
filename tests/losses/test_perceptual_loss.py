"""The pixel and perceptual losses against their formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional.mean_distance import mean_distance_reference
from andfast.losses import ESRGAN_LAYERS, REAL_ESRGAN_LAYERS, VGG19_LAYERS, GANLoss, PerceptualLoss, l1_loss

SHALLOW = {"conv1_2": 0.5, "conv2_1": 2.0}


def images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_l1_loss_is_the_mean_absolute_difference_in_fp32():
    sr, hr = images(2, 3, 8, 8), images(2, 3, 8, 8, seed=1)
    assert torch.equal(l1_loss(sr, hr), F.l1_loss(sr, hr))
    half = l1_loss(sr.bfloat16(), hr)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, F.l1_loss(sr.bfloat16().float(), hr))


def test_l1_loss_rejects_mismatched_shapes():
    with pytest.raises(ValueError, match=r"sr must have shape that of hr"):
        l1_loss(images(2, 3, 8, 8), images(1, 3, 8, 8))


def test_layer_names_are_the_convolutions_of_vgg19():
    assert len(VGG19_LAYERS) == 16
    assert VGG19_LAYERS[0] == "conv1_1"
    assert VGG19_LAYERS[-1] == "conv5_4"


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_forward_is_the_weighted_mean_distance(criterion):
    loss = PerceptualLoss(SHALLOW, weights="random", criterion=criterion)
    sr, hr = images(2, 3, 16, 16), images(2, 3, 16, 16, seed=1)
    a, b = loss.features(sr), loss.features(hr)
    distance = F.l1_loss if criterion == "l1" else F.mse_loss
    expected = sum(SHALLOW[name] * distance(a[name], b[name]) for name in SHALLOW)
    torch.testing.assert_close(loss(sr, b), expected)
    assert loss(hr, b) == 0


def test_gradient_to_sr():
    loss = PerceptualLoss({"conv1_1": 1.0, "conv1_2": 1.0}, weights="random", criterion="l2").double()
    sr = images(1, 3, 4, 5, dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        hr = loss.features(images(1, 3, 4, 5, seed=1, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: loss(x, hr), (sr,))
    assert all(not parameter.requires_grad for parameter in loss.parameters())


def test_saves_each_feature_once():
    """Two tensors of conv1_2's size: its input, and its output, shared by the distance and the pooling."""
    loss = PerceptualLoss(SHALLOW, weights="random")
    sr = images(2, 3, 16, 16).requires_grad_()
    with torch.no_grad():
        hr = loss.features(images(2, 3, 16, 16, seed=1))
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tuple(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(sr, hr)
    for feature in hr.values():
        saved.pop(feature.data_ptr())
    assert list(saved.values()).count((2, 64, 16, 16)) == 2


def test_feature_gradients_are_computed_lazily():
    """The largest gradient is allocated last, not all of them up front."""

    class OpRecorder(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.ops = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.ops.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    loss = PerceptualLoss(SHALLOW, weights="random")
    value = loss(images(1, 3, 16, 16).requires_grad_(), loss.features(images(1, 3, 16, 16, seed=1)))
    with OpRecorder() as recorder:
        value.backward()
    relevant = ("mean_distance_backward", "convolution_backward", "max_pool2d_with_indices_backward")
    assert [name for name in recorder.ops if name in relevant] == [
        "mean_distance_backward",
        "convolution_backward",
        "max_pool2d_with_indices_backward",
        "mean_distance_backward",
        "convolution_backward",
        "convolution_backward",
    ]


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_pooling_before_relu_is_bit_exact(criterion):
    loss = PerceptualLoss(SHALLOW | {"conv3_4": 1.0}, weights="random", criterion=criterion)
    hr = loss.features(images(2, 3, 21, 18))
    layers = dict(loss.vgg.named_children())
    order = sorted(layers, key=lambda name: (name[4], ("conv", "relu", "pool").index(name[:4]) == 2))

    def torchvision_order(sr):
        terms, x = [], (sr - loss.mean) / loss.std
        for name in order:
            x = F.relu(x) if name.startswith("relu") else layers[name](x)
            if name in loss.layers:
                terms.append(loss.layers[name] * mean_distance_reference(x, hr[name], criterion))
        return torch.stack(terms).sum()

    assert order.index("relu1_2") < order.index("pool1")
    sr, reference_sr = (images(2, 3, 21, 18, seed=1).requires_grad_() for _ in range(2))
    values = loss(sr, hr), torchvision_order(reference_sr)
    assert torch.equal(*values)
    for value in values:
        value.backward()
    assert torch.equal(sr.grad, reference_sr.grad)


def test_hr_features_are_not_recomputed():
    loss = PerceptualLoss(SHALLOW, weights="random")
    hr = loss.features(images(1, 3, 16, 16))
    with FlopCounterMode(display=False) as once:
        loss.features(images(1, 3, 16, 16))
    with FlopCounterMode(display=False) as forward:
        loss(images(1, 3, 16, 16, seed=2), hr)
    assert forward.get_total_flops() == once.get_total_flops()


def test_macs_of_vgg19_to_conv5_4():
    """25.48 GMAC per image at 256 x 256; layers beyond the deepest one used are not built."""
    loss = PerceptualLoss(ESRGAN_LAYERS, weights="random").to("meta")
    x = torch.empty(1, 3, 256, 256, device="meta")
    with FlopCounterMode(display=False) as counter:
        assert loss(x, loss.features(x)).shape == ()
    assert counter.get_total_flops() / 2 / 2 / 1e9 == pytest.approx(25.48, abs=0.005)
    assert list(dict(loss.vgg.named_children()))[-1] == "conv5_4"
    shallow = PerceptualLoss(SHALLOW, weights="random")
    assert list(dict(shallow.vgg.named_children()))[-1] == "conv2_1"


def test_fake_tensors_without_host_synchronization():
    # Fake tensors have no values: reading one on the host raises.
    with FakeTensorMode():
        loss = PerceptualLoss(REAL_ESRGAN_LAYERS, weights="random")
        x = torch.rand(2, 3, 32, 32, requires_grad=True)
        value = loss(x, loss.features(torch.rand(2, 3, 32, 32)))
        logits = torch.rand(2, 1, requires_grad=True)
        for kind in ("vanilla", "relativistic", "least_squares"):
            value = value + GANLoss(kind).generator(logits, logits) + GANLoss(kind).discriminator(logits, logits)
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.shape == x.shape


def test_autocast_features_are_bf16_and_distance_is_fp32():
    loss = PerceptualLoss(SHALLOW, weights="random")
    sr, hr = images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = loss.features(sr), loss.features(hr)
        value = loss(sr, b)
    assert {x.dtype for x in b.values()} == {torch.bfloat16}
    assert value.dtype == torch.float32
    exact = sum(SHALLOW[name] * F.l1_loss(a[name].float(), b[name].float()) for name in SHALLOW)
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=0)


def test_random_weights_are_fixed_and_leave_the_global_generator_unchanged():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = PerceptualLoss(SHALLOW, weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = PerceptualLoss(SHALLOW, weights="random")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.weights_note == "random (smoke run only)"
    assert "random (smoke run only)" in repr(first)


def test_random_weights_preserve_the_feature_scale():
    loss = PerceptualLoss(REAL_ESRGAN_LAYERS, weights="random")
    for feature in loss.features(images(1, 3, 64, 64)).values():
        assert 0.1 < feature.std() < 10


def test_layer_with_coefficient_zero_is_ignored():
    loss = PerceptualLoss({"conv1_2": 1.0, "conv5_4": 0.0}, weights="random")
    assert list(loss.layers) == ["conv1_2"]
    assert list(dict(loss.vgg.named_children()))[-1] == "conv1_2"


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ({"conv6_1": 1.0}, ValueError, "conv5_4, was 'conv6_1'"),
        ({}, ValueError, "at least one positive coefficient"),
        ({"conv1_1": 0.0}, ValueError, "at least one positive coefficient"),
        ({"conv1_1": -1.0}, ValueError, "non-negative, was -1.0"),
        ({"conv1_1": float("nan")}, ValueError, "finite"),
        ({"conv1_1": "1"}, TypeError, "must be a number, was '1'"),
        (["conv1_1"], TypeError, "layers must map"),
    ],
)
def test_rejects_invalid_layers(layers, error, message):
    with pytest.raises(error, match=message):
        PerceptualLoss(layers, weights="random")


def test_rejects_invalid_criterion_images_and_features():
    with pytest.raises(ValueError, match="criterion must be one of 'l1', 'l2', was 'L1'"):
        PerceptualLoss(SHALLOW, weights="random", criterion="L1")
    loss = PerceptualLoss(SHALLOW, weights="random")
    hr = loss.features(images(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"images must have shape \(N, 3, H, W\)"):
        loss.features(images(1, 1, 16, 16))
    with pytest.raises(ValueError, match="at least 16"):
        PerceptualLoss({"conv5_1": 1.0}, weights="random").features(images(1, 3, 15, 32))
    with pytest.raises(ValueError, match=r"hr_features must be features\(hr\).*was Tensor"):
        loss(images(1, 3, 16, 16), images(1, 3, 16, 16))
    with pytest.raises(ValueError, match="with the layers conv1_2, conv2_1, was conv1_2"):
        loss(images(1, 3, 16, 16), {"conv1_2": hr["conv1_2"]})
    with pytest.raises(ValueError, match=r"hr_features\['conv1_2'\] must have shape"):
        loss(images(2, 3, 16, 16), hr)
