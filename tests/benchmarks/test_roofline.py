"""benchmarks/counts.py and roofline.py: counts from shapes against torch's flop counter on the modules themselves."""

import functools
import json

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from andfast.adversary import PRESETS, Attack, AttackSettings, Objective, ReuseOptions, sample_identity
from andfast.functional import blur_pool, degradation_block, residual_dense_block
from andfast.functional.identity_gradients import identity_gradients
from andfast.losses import GANLoss, PerceptualLoss
from andfast.nn import DegradationNetwork, RRDBNet, VGGDiscriminator
from andfast.training.step import RankInfo, TrainingStep
from benchmarks import counts, roofline
from benchmarks.counts import Work
from benchmarks.rates import NOMINAL, PRECISIONS, Rates, measured

N = 2


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def forward_flops(layers: list[counts.Layer]) -> int:
    return sum(layer.forward(2).flops for layer in layers)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("c_in", "c_out"), [(3, 64), (64, 64), (64, 3), (5, 7)])
@pytest.mark.parametrize("needs", [counts.ALL, ("x",), ("weight",), ("slope", "noise"), ()])
def test_degradation_block(c_in: int, c_out: int, shared: bool, needs: tuple[str, ...]) -> None:
    shapes = {
        "x": (N, c_in, 12, 20),
        "weight": (c_out, c_in, 3, 3) if shared else (N, c_out, c_in, 3, 3),
        "slope": (N,),
        "noise": (N, c_out, 12, 20),
    }
    tensors = {name: torch.empty(tensor, device="meta", requires_grad=name in needs) for name, tensor in shapes.items()}
    forward, backward = counts.degradation_block(shapes["x"], c_out, size=4, shared=shared, noise=c_out, needs=needs)
    with FlopCounterMode(display=False) as counter:
        out = degradation_block(**tensors)
        assert counter.get_total_flops() == forward.flops
        if needs:
            torch.autograd.grad(out, [tensors[name] for name in needs], torch.empty_like(out))
    assert counter.get_total_flops() == forward.flops + backward.flops
    # Every argument and result once; signs of the activation for a backward pass.
    signs = out.numel() // 8 if set(needs) - {"noise"} else 0
    assert (
        forward.bytes
        == sum(tensor.nbytes for tensor in tensors.values()) - tensors["slope"].nbytes + out.nbytes + signs
    )


def test_backward_bytes_of_a_degradation_block() -> None:
    x, out, weight = 4 * N * 8 * 12 * 20, 4 * N * 16 * 12 * 20, 4 * N * 9 * 8 * 16
    for needs, moved in {
        ("noise",): out,  # handed on
        ("x",): out + out // 32 + weight + x,
        ("weight",): out + out // 32 + x + weight + weight,
        counts.ALL: out + out // 32 + 2 * x + 2 * weight,
    }.items():
        backward = counts.degradation_block((N, 8, 12, 20), 16, size=4, noise=16, needs=needs)[1]
        assert backward.bytes == moved, needs
    one_map = counts.degradation_block((N, 8, 12, 20), 16, size=4, noise=1, needs=("noise",))[1]
    assert one_map.bytes == out + 4 * N * 12 * 20


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_blur_pool(factor: int) -> None:
    x = torch.empty(N, 5, 24, 36, device="meta", requires_grad=True)
    forward, backward = counts.blur_pool(x.shape, factor, size=4)
    assert flops(lambda: blur_pool(x, factor)) == forward.flops
    out = blur_pool(x, factor)
    assert flops(lambda: torch.autograd.grad(out, x, torch.empty_like(out))) == backward.flops
    assert forward.bytes == backward.bytes == x.nbytes + out.nbytes


@pytest.mark.parametrize(("noise", "dtype"), [(16, torch.float32), (1, torch.float32), (16, torch.bfloat16)])
def test_identity_gradients(noise: int, dtype: torch.dtype) -> None:
    x, g = torch.empty(2, N, 3, 12, 20, device="meta")
    before, after = torch.empty(2, 5, N, 3, 16, device="meta")
    options = {"noises": [noise] * 5, "slopes": [True] * 5, "correlation": True, "noise_dtype": dtype}
    work = counts.identity_gradients(x.shape, 16, 5, noise=noise, noise_size=dtype.itemsize)
    assert flops(lambda: identity_gradients(x, g, before, after, **options)) == work.flops
    correlation, maps, slopes = identity_gradients(x, g, before, after, **options)
    assert work.bytes == sum(tensor.nbytes for tensor in (x, g, before, after, correlation, *maps, slopes))


@pytest.mark.parametrize("trainable", [False, True])
def test_residual_dense_block(trainable: bool) -> None:
    x = torch.empty(N, 16, 8, 12, device="meta", requires_grad=True)
    with torch.device("meta"):
        sizes = [(16 if k == 4 else 8, 16 + 8 * k, 3, 3) for k in range(5)]
        weights = [torch.empty(size, requires_grad=trainable) for size in sizes]
        biases = [torch.empty(size[0]) for size in sizes]
    layer = counts.residual_dense_block(x.shape, 8)
    assert flops(lambda: residual_dense_block(x, weights, biases)) == layer.forward(4).flops
    out = residual_dense_block(x, weights, biases)
    tensors = [x, *weights] if trainable else [x]
    total_flops = flops(lambda: torch.autograd.grad(out, tensors, torch.empty_like(out)))
    assert total_flops == layer.backward(4, weights=trainable).flops
    assert layer.signs == 4 * 8 * x.shape[0] * 8 * 12


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
def test_upsampled_convolution(factor: int, trainable: bool) -> None:
    """Against the count of the transposed convolution that does it, and the bytes of the tensors."""
    x = torch.empty(N, 16, 8, 12, device="meta", requires_grad=True)
    kernel = torch.empty(16, 24, factor + 2, factor + 2, device="meta", requires_grad=trainable)
    layer = counts.upsampled_convolution(x.shape, 24, factor)
    out = None

    def run() -> None:
        nonlocal out
        out = torch.nn.functional.conv_transpose2d(x, kernel, stride=factor, padding=1)

    assert flops(run) == layer.forward(4).flops
    assert isinstance(out, Tensor)
    tensors = [x, kernel] if trainable else [x]
    assert (
        flops(lambda: torch.autograd.grad(out, tensors, torch.empty_like(out)))
        == layer.backward(4, weights=trainable).flops
    )
    weights, bits = 4 * 9 * 16 * 24, out.numel() // 8
    assert layer.forward(4).bytes == x.nbytes + out.nbytes + weights + bits
    assert layer.backward(4).bytes == x.nbytes + out.nbytes + weights + bits


@pytest.mark.parametrize("scale", [2, 4])
def test_networks(scale: int) -> None:
    """G, F and D of the package, forward and all gradients to weights, and VGG19."""
    hr, lr = 128, 128 // scale
    with torch.device("meta"):
        modules: list[tuple[nn.Module, int, list[counts.Layer]]] = [
            (
                RRDBNet(scale, features=16, blocks=2, growth=8),
                lr,
                counts.rrdbnet(N, lr, scale=scale, features=16, blocks=2, growth=8),
            ),
            (VGGDiscriminator(hr, features=8), hr, counts.vgg_discriminator(N, hr, features=8)),
        ]
    for module, size, layers in modules:
        x = torch.empty(N, 3, size, size, device="meta")
        forward = flops(functools.partial(module, x))
        assert forward == forward_flops(layers)
        out = module(x)
        backward = sum(layer.backward(2, x=not layer.image, weights=True).flops for layer in layers)
        assert flops(out.sum().backward) == backward
        parameters = sum(tensor.numel() for name, tensor in module.named_parameters() if tensor.dim() > 1)
        assert parameters == sum(layer.weights for layer in layers)
    theta = sample_identity(N, hr_size=hr, scale=scale, device="meta")
    leaves = theta.rebuild(tensor.requires_grad_() for tensor in theta.tensors())
    layers = counts.degradation_network(N, hr, scale=scale)
    pooled = counts.blur_pool((N, 64, hr, hr), scale, size=4)
    out = None

    def run() -> None:
        nonlocal out
        out = DegradationNetwork(scale)(torch.empty(N, 3, hr, hr, device="meta"), leaves)

    assert flops(run) == forward_flops(layers) + pooled[0].flops
    backward = sum(layer.backward(2, x=not layer.image, weights=True).flops for layer in layers) + pooled[1].flops
    assert isinstance(out, Tensor)
    assert flops(lambda: torch.autograd.grad(out, tuple(leaves.tensors()), torch.empty_like(out))) == backward


def test_vgg() -> None:
    vgg = PerceptualLoss({"conv5_4": 1.0}, weights="random").to("meta")
    x = torch.empty(N, 3, 64, 64, device="meta")
    assert flops(lambda: vgg.features(x)) == forward_flops(counts.vgg19(N, 64))


@pytest.mark.parametrize("stage", counts.STAGES)
def test_a_whole_step(stage: str) -> None:
    """The package's own step, nothing shared between passes, operation for operation."""
    with torch.device("meta"):
        generator = RRDBNet(4, blocks=1)
        discriminator = VGGDiscriminator(128) if stage == "gan" else None
        hr = torch.empty(N, 3, 128, 128)
    objective = Objective(1.0)
    if stage == "gan":
        vgg = PerceptualLoss({"conv5_4": 1.0}, weights="random").to("meta")
        objective = Objective(1.0, 1.0, 0.1, vgg, discriminator, GANLoss("vanilla"))
    settings = AttackSettings(PRESETS["calibrated"].ball, steps=2)
    reuse = ReuseOptions(closed_form_first_step=False)
    step = TrainingStep(Attack(DegradationNetwork(), generator, objective, settings, reuse), RankInfo(0, 0))
    entries = counts.step(stage, N, ascent_steps=2, hr_size=128, blocks=1)
    total_flops = sum(entry.times * entry.work.flops for entry in entries)
    pooling = counts.blur_pool((N, 64, 128, 128), 4, size=4)[0].flops * (2 + 2 + 1)
    pooling += counts.blur_pool((N, 3, 128, 128), 4, size=4)[0].flops  # the clean LR of lr_psnr
    identity = flops(lambda: step.attack.sample(hr, None))  # products of 64x64 matrices
    assert flops(lambda: step.gradients([hr], 0)) == total_flops + pooling + identity


def test_published_ratios() -> None:
    """The design's counts of a step at the paper's size, GMAC an image (its D is 2% smaller)."""
    totals = {}
    for stage, exact, plain in (("net", 1122.8, 220.3), ("gan", 1614.1, 367.8)):
        for adversarial, expected in ((True, exact), (False, plain)):
            entries = counts.step(stage, 1, adversarial=adversarial)
            total = sum(entry.times * entry.work.flops for entry in entries) / 2e9
            assert total == pytest.approx(expected, rel=0.01), (stage, adversarial)
            totals[stage, adversarial] = total
    assert totals["net", True] / totals["net", False] == pytest.approx(5.10, abs=0.01)
    with pytest.raises(ValueError, match="stage must be one of net, gan, was 'both'"):
        counts.step("both", 1)


def test_a_floor_is_the_longer_of_bytes_and_operations() -> None:
    rates = Rates("toy", "measured", 100.0, {"bf16": 10.0})
    memory, matrix, vector = Work(10, 1000), Work(1000, 10), Work(1000, 10, matrix=False)
    assert rates.seconds(memory) == 10
    assert rates.seconds(matrix) == 100
    assert rates.seconds(vector) == 0.1
    assert rates.seconds(memory, matrix) == 110
    assert rates.bound(memory) == "memory"
    assert rates.bound(memory, matrix) == "matrix"


def test_rates() -> None:
    for rates in NOMINAL.values():
        assert rates.source.startswith("nominal: NVIDIA")
        assert rates.matrix.keys() == set(PRECISIONS)
    here = measured("cpu", quick=True)
    assert here.source == "measured"
    assert here.bandwidth > 1e8
    assert all(rate > 1e8 for rate in here.matrix.values())


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert roofline.main(["--device", "A100", "--batch", "4", "--hr-size", "128"]) == 0
    said = capsys.readouterr().out
    assert "nominal: NVIDIA A100 data sheet" in said
    assert "| degradation_block | 4x64->64x128x128 | forward+backward |" in said
    assert roofline.main(["--device", "H200", "--json"]) == 0
    floors = json.loads(capsys.readouterr().out)
    for name, step in floors["steps"].items():
        assert step["seconds"] == pytest.approx(sum(part["seconds"] for part in step["parts"])), name
    assert floors["steps"]["exact gan"]["seconds"] > floors["steps"]["exact net"]["seconds"]
    for wrong in (["--batch", "0"], ["--hr-size", "100"]):
        with pytest.raises(SystemExit) as stopped:
            roofline.main(wrong)
        assert stopped.value.code == 2
        assert "must be" in capsys.readouterr().err
