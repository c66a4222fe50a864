"""The losses against their formulas, and every way of giving VGG its weights."""

import urllib.error

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from andfast.functional.mean_distance import mean_distance_reference
from andfast.losses import ESRGAN_LAYERS, REAL_ESRGAN_LAYERS, VGG19_LAYERS, GANLoss, PerceptualLoss, l1_loss

SHALLOW = {"conv1_2": 0.5, "conv2_1": 2.0}


@pytest.fixture(scope="module")
def vgg19_state():
    """A state dict with torchvision's VGG19 keys and shapes, and small distinct values; 80 MB."""
    from torchvision.models.vgg import cfgs, make_layers  # noqa: PLC0415

    with torch.device("meta"):
        features = make_layers(cfgs["E"])
    generator = torch.Generator().manual_seed(0)
    return {
        f"features.{key}": torch.randn(value.shape, generator=generator) * 0.05
        for key, value in features.state_dict().items()
    }


def images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --------------------------------------------------------------------------------------------------------- l1


def test_l1_is_the_mean_absolute_difference_in_fp32():
    sr, hr = images(2, 3, 8, 8), images(2, 3, 8, 8, seed=1)
    assert torch.equal(l1_loss(sr, hr), F.l1_loss(sr, hr))
    half = l1_loss(sr.bfloat16(), hr)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, F.l1_loss(sr.bfloat16().float(), hr))


def test_l1_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"sr must have shape that of hr"):
        l1_loss(images(2, 3, 8, 8), images(1, 3, 8, 8))


# ------------------------------------------------------------------------------------------------- perceptual


def test_layer_names_are_vgg19s_sixteen_convolutions():
    assert len(VGG19_LAYERS) == 16
    assert VGG19_LAYERS[0] == "conv1_1"
    assert VGG19_LAYERS[-1] == "conv5_4"


def test_features_are_torchvisions_before_activation(vgg19_state, tmp_path):
    """The reference is torchvision's own module list, run layer by layer without anything in place."""
    from torchvision.models.vgg import cfgs, make_layers  # noqa: PLC0415

    file = tmp_path / "vgg.pth"
    torch.save(vgg19_state, file)
    loss = PerceptualLoss(REAL_ESRGAN_LAYERS, weights=file)
    x = images(1, 3, 32, 48)
    found = loss.features(x)

    reference = make_layers(cfgs["E"])
    reference.load_state_dict({key.removeprefix("features."): value for key, value in vgg19_state.items()})
    at = {2: "conv1_2", 7: "conv2_2", 16: "conv3_4", 25: "conv4_4", 34: "conv5_4"}
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    y = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        for position, layer in enumerate(reference):
            y = F.relu(y) if isinstance(layer, nn.ReLU) else layer(y)
            if position in at:
                torch.testing.assert_close(found.pop(at[position]), y, rtol=1e-4, atol=1e-5)
    assert not found
    assert loss.weights_note == str(file)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_forward_is_the_weighted_mean_distance(criterion):
    loss = PerceptualLoss(SHALLOW, weights="random", criterion=criterion)
    sr, hr = images(2, 3, 16, 16), images(2, 3, 16, 16, seed=1)
    a, b = loss.features(sr), loss.features(hr)
    distance = F.l1_loss if criterion == "l1" else F.mse_loss
    expected = sum(SHALLOW[name] * distance(a[name], b[name]) for name in SHALLOW)
    torch.testing.assert_close(loss(sr, b), expected)
    assert loss(hr, b) == 0


def test_gradient_reaches_sr_and_is_right():
    loss = PerceptualLoss({"conv1_1": 1.0, "conv1_2": 1.0}, weights="random", criterion="l2").double()
    sr = images(1, 3, 4, 5, dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        hr = loss.features(images(1, 3, 4, 5, seed=1, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: loss(x, hr), (sr,))
    assert all(not parameter.requires_grad for parameter in loss.parameters())


def test_the_backward_pass_keeps_each_feature_once():
    """Of conv1_2's size: its input, and itself for both the distance and the pooling."""
    loss = PerceptualLoss(SHALLOW, weights="random")
    sr = images(2, 3, 16, 16).requires_grad_()
    with torch.no_grad():
        hr = loss.features(images(2, 3, 16, 16, seed=1))
    kept = {}

    def keep(one):
        kept[one.data_ptr()] = tuple(one.shape)
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        loss(sr, hr)
    for one in hr.values():
        kept.pop(one.data_ptr())
    assert list(kept.values()).count((2, 64, 16, 16)) == 2


def test_gradients_to_features_are_made_when_they_are_needed():
    """Not all at first: the largest is needed last."""

    class Order(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    loss = PerceptualLoss(SHALLOW, weights="random")
    value = loss(images(1, 3, 16, 16).requires_grad_(), loss.features(images(1, 3, 16, 16, seed=1)))
    with Order() as order:
        value.backward()
    wanted = ("mean_distance_backward", "convolution_backward", "max_pool2d_with_indices_backward")
    assert [name for name in order.seen if name in wanted] == [
        "mean_distance_backward",
        "convolution_backward",
        "max_pool2d_with_indices_backward",
        "mean_distance_backward",
        "convolution_backward",
        "convolution_backward",
    ]


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_pooling_before_the_relu_changes_no_bit(criterion):
    loss = PerceptualLoss(SHALLOW | {"conv3_4": 1.0}, weights="random", criterion=criterion)
    hr = loss.features(images(2, 3, 21, 18))
    layers = dict(loss.vgg.named_children())
    order = sorted(layers, key=lambda name: (name[4], ("conv", "relu", "pool").index(name[:4]) == 2))

    def as_torchvision_has_it(sr):
        terms, x = [], (sr - loss.mean) / loss.std
        for name in order:
            x = F.relu(x) if name.startswith("relu") else layers[name](x)
            if name in loss.layers:
                terms.append(loss.layers[name] * mean_distance_reference(x, hr[name], criterion))
        return torch.stack(terms).sum()

    assert order.index("relu1_2") < order.index("pool1")
    ours, theirs = (images(2, 3, 21, 18, seed=1).requires_grad_() for _ in range(2))
    values = loss(ours, hr), as_torchvision_has_it(theirs)
    assert torch.equal(*values)
    for value in values:
        value.backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_hr_features_are_not_computed_again():
    loss = PerceptualLoss(SHALLOW, weights="random")
    hr = loss.features(images(1, 3, 16, 16))
    with FlopCounterMode(display=False) as once:
        loss.features(images(1, 3, 16, 16))
    with FlopCounterMode(display=False) as forward:
        loss(images(1, 3, 16, 16, seed=2), hr)
    assert forward.get_total_flops() == once.get_total_flops()


def test_macs_of_vgg19_to_conv5_4():
    """design: 25.48 GMAC an image at 256 x 256; and nothing beyond the deepest layer is built."""
    loss = PerceptualLoss(ESRGAN_LAYERS, weights="random").to("meta")
    x = torch.empty(1, 3, 256, 256, device="meta")
    with FlopCounterMode(display=False) as counter:
        assert loss(x, loss.features(x)).shape == ()
    assert counter.get_total_flops() / 2 / 2 / 1e9 == pytest.approx(25.48, abs=0.005)
    assert list(dict(loss.vgg.named_children()))[-1] == "conv5_4"
    shallow = PerceptualLoss(SHALLOW, weights="random")
    assert list(dict(shallow.vgg.named_children()))[-1] == "conv2_1"


def test_works_on_fake_tensors_without_a_host_synchronisation():
    # A fake tensor has no values, so whatever reads one on the host raises here.
    with FakeTensorMode():
        loss = PerceptualLoss(REAL_ESRGAN_LAYERS, weights="random")
        x = torch.rand(2, 3, 32, 32, requires_grad=True)
        value = loss(x, loss.features(torch.rand(2, 3, 32, 32)))
        logits = torch.rand(2, 1, requires_grad=True)
        for kind in ("vanilla", "relativistic", "least_squares"):
            value = value + GANLoss(kind).generator(logits, logits) + GANLoss(kind).discriminator(logits, logits)
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.shape == x.shape


def test_autocast_features_are_bf16_and_the_distance_is_fp32():
    loss = PerceptualLoss(SHALLOW, weights="random")
    sr, hr = images(1, 3, 16, 16), images(1, 3, 16, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = loss.features(sr), loss.features(hr)
        value = loss(sr, b)
    assert {x.dtype for x in b.values()} == {torch.bfloat16}
    assert value.dtype == torch.float32
    exact = sum(SHALLOW[name] * F.l1_loss(a[name].float(), b[name].float()) for name in SHALLOW)
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=0)


def test_random_weights_are_one_fixed_draw_that_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = PerceptualLoss(SHALLOW, weights="random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = PerceptualLoss(SHALLOW, weights="random")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.weights_note == "random (smoke run only)"
    assert "random (smoke run only)" in repr(first)


def test_random_features_keep_a_sensible_magnitude_to_the_end():
    loss = PerceptualLoss(REAL_ESRGAN_LAYERS, weights="random")
    for feature in loss.features(images(1, 3, 64, 64)).values():
        assert 0.1 < feature.std() < 10


def test_a_layer_with_coefficient_zero_is_left_out():
    loss = PerceptualLoss({"conv1_2": 1.0, "conv5_4": 0.0}, weights="random")
    assert list(loss.layers) == ["conv1_2"]
    assert list(dict(loss.vgg.named_children()))[-1] == "conv1_2"


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ({"conv6_1": 1.0}, ValueError, "conv5_4, was 'conv6_1'"),
        ({}, ValueError, "one coefficient above 0"),
        ({"conv1_1": 0.0}, ValueError, "one coefficient above 0"),
        ({"conv1_1": -1.0}, ValueError, "not negative, was -1.0"),
        ({"conv1_1": float("nan")}, ValueError, "finite"),
        ({"conv1_1": "1"}, TypeError, "must be a number, was '1'"),
        (["conv1_1"], TypeError, "layers must map"),
    ],
)
def test_impossible_layers_are_refused(layers, error, message):
    with pytest.raises(error, match=message):
        PerceptualLoss(layers, weights="random")


def test_impossible_criterion_images_and_features_are_refused():
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


# ---------------------------------------------------------------------------------------------- VGG's weights


def test_whole_and_features_only_files_and_safetensors_load_alike(vgg19_state, tmp_path):
    from safetensors.torch import save_file  # noqa: PLC0415

    classifier = {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    # The published file is of torch's older, non-zip format.
    torch.save(vgg19_state | classifier, tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    torch.save({k.removeprefix("features."): v for k, v in vgg19_state.items()}, tmp_path / "features.pth")
    save_file(vgg19_state, tmp_path / "vgg.safetensors")
    for name in ("whole.pth", "features.pth", "vgg.safetensors"):
        loss = PerceptualLoss({"conv2_1": 1.0}, weights=str(tmp_path / name))
        assert torch.equal(loss.vgg.conv2_1.weight, vgg19_state["features.5.weight"])
        assert torch.equal(loss.vgg.conv1_2.bias, vgg19_state["features.2.bias"])


def test_torchvision_weights_come_from_the_hub_folder(vgg19_state, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    file.parent.mkdir(parents=True)
    torch.save(vgg19_state, file)
    loss = PerceptualLoss(SHALLOW, weights="torchvision")
    assert torch.equal(loss.vgg.conv1_1.weight, vgg19_state["features.0.weight"])
    assert loss.weights_note == "torchvision VGG19_Weights.IMAGENET1K_V1"


def test_missing_torchvision_weights_are_downloaded_with_their_hash(vgg19_state, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def download(url, target, hash_prefix, progress):
        assert url.startswith("https://download.pytorch.org/")
        assert hash_prefix == "dcbb9e9d"
        assert progress  # half a gigabyte
        torch.save(vgg19_state, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert PerceptualLoss(SHALLOW).weights_note.startswith("torchvision")


def test_without_network_the_error_says_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refused(*_arguments, **_options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", refused)
    with pytest.raises(FileNotFoundError) as caught:
        PerceptualLoss(ESRGAN_LAYERS)
    message = str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth") in message
    assert "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth" in message
    assert "no route to host" in message
    assert "loss.vgg_weights" in message
    assert "random" in message


def test_wrong_weight_files_are_refused_by_name(vgg19_state, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.pth"):
        PerceptualLoss(SHALLOW, weights=tmp_path / "nowhere.pth")
    for bad in ("", None, 3):
        with pytest.raises(TypeError, match="weights must be"):
            PerceptualLoss(SHALLOW, weights=bad)

    text = tmp_path / "text.pth"
    text.write_text("not weights")
    with pytest.raises(ValueError, match=r"text\.pth cannot be read as a file of weights"):
        PerceptualLoss(SHALLOW, weights=text)

    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.rand(1000)}, whole)
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"truncated\.pth cannot be read"):
        PerceptualLoss(SHALLOW, weights=truncated)

    for name, state in {
        "list": [1, 2],
        "other": {"conv_first.weight": torch.zeros(1)},
        "missing": {k: v for k, v in vgg19_state.items() if not k.startswith("features.34")},
    }.items():
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=rf"{name}\.pth must hold the weights of torchvision's VGG19"):
            PerceptualLoss(SHALLOW, weights=tmp_path / f"{name}.pth")


@pytest.mark.parametrize("config", ["D", "E_bn"])
def test_files_of_other_vggs_are_refused_though_they_begin_alike(config, tmp_path):
    from torchvision.models.vgg import cfgs, make_layers  # noqa: PLC0415

    with torch.device("meta"):
        features = make_layers(cfgs[config[0]], batch_norm=config.endswith("bn"))
    file = tmp_path / "other.pth"
    torch.save({f"features.{k}": torch.zeros(()).expand(v.shape) for k, v in features.state_dict().items()}, file)
    with pytest.raises(ValueError, match="without batch normalisation"):
        PerceptualLoss(SHALLOW, weights=file)


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the file was unpickled",))

    file = tmp_path / "bomb.pth"
    torch.save({"features.0.weight": Bomb()}, file)
    with pytest.raises(ValueError, match="cannot be read"):
        PerceptualLoss(SHALLOW, weights=file)


# -------------------------------------------------------------------------------------------------------- GAN

SHAPES = [(4, 1), (2, 1, 5, 7)]


def logits(shape, seed, scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bce(x, target):
    return F.binary_cross_entropy_with_logits(x, torch.full_like(x, target))


@pytest.mark.parametrize("shape", SHAPES)
def test_vanilla_is_binary_cross_entropy_with_a_non_saturating_generator(shape):
    loss, real, fake = GANLoss("vanilla"), logits(shape, 0), logits(shape, 1)
    torch.testing.assert_close(loss.discriminator(real, fake), bce(real, 1.0) + bce(fake, 0.0))
    torch.testing.assert_close(loss.generator(fake), bce(fake, 1.0))
    assert not loss.needs_real


@pytest.mark.parametrize("shape", SHAPES)
def test_relativistic_average_is_esrgans(shape):
    loss, real, fake = GANLoss("relativistic"), logits(shape, 0), logits(shape, 1)
    discriminator = (bce(real - fake.mean(), 1.0) + bce(fake - real.mean(), 0.0)) / 2
    generator = (bce(real - fake.mean(), 0.0) + bce(fake - real.mean(), 1.0)) / 2
    torch.testing.assert_close(loss.discriminator(real, fake), discriminator)
    torch.testing.assert_close(loss.generator(fake, real), generator)
    assert loss.needs_real
    with pytest.raises(ValueError, match="real_logits must be given for the relativistic"):
        loss.generator(fake)


@pytest.mark.parametrize("shape", SHAPES)
def test_least_squares(shape):
    loss, real, fake = GANLoss("least_squares"), logits(shape, 0), logits(shape, 1)
    one = torch.ones(shape)
    torch.testing.assert_close(loss.discriminator(real, fake), F.mse_loss(real, one) + F.mse_loss(fake, 0 * one))
    torch.testing.assert_close(loss.generator(fake), F.mse_loss(fake, one))
    assert not loss.needs_real


@pytest.mark.parametrize("kind", ["vanilla", "relativistic", "least_squares"])
def test_gan_gradients(kind):
    loss = GANLoss(kind)
    real = logits((3, 1), 0).double().requires_grad_()
    fake = logits((3, 1), 1).double().requires_grad_()
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    assert torch.autograd.gradcheck(lambda x: loss.generator(x, real), (fake,))
    # D is fixed in the generator's step: nothing flows into what it said of the real images.
    assert torch.autograd.grad(loss.generator(fake, real), real, allow_unused=True) == (None,)
    # Descending on the generator's loss raises the fake logits, on the discriminator's the gap.
    assert (torch.autograd.grad(loss.generator(fake.clamp(max=0.5), real), fake)[0] <= 0).all()


@pytest.mark.parametrize("kind", ["vanilla", "relativistic", "least_squares"])
def test_gan_is_fp32_and_finite_far_out(kind):
    loss = GANLoss(kind)
    real, fake = logits((4, 1), 0, 500.0).bfloat16(), logits((4, 1), 1, 500.0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        values = loss.discriminator(real, fake), loss.generator(fake, real)
    for value in values:
        assert value.dtype == torch.float32
        assert value.isfinite()
    torch.testing.assert_close(values[0], loss.discriminator(real.float(), fake.float()))


def test_gan_refuses_what_it_cannot_take():
    with pytest.raises(ValueError, match="kind must be one of 'vanilla', 'relativistic', 'least_squares', was 'wgan'"):
        GANLoss("wgan")
    loss = GANLoss()
    with pytest.raises(ValueError, match=r"fake_logits must have shape \(N, 1\) or \(N, 1, H, W\), was \(4,\)"):
        loss.generator(torch.zeros(4))
    with pytest.raises(TypeError, match="real_logits must be a floating-point tensor"):
        loss.discriminator(torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 1))
