"""Rules of the settings: errors name the setting, the rule and the value."""

import pytest
from command_lines import config_of, error_of

from andfast.config.machine import resolve_device

GAN = ["--stages", "[net, gan]"]


PARTS = ("kernel", "rest", "noise", "slope")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "[]"], "stages must be [net], [gan] or [net, gan], was []"),
        (["--stages", "[gan, net]"], "stages must be [net], [gan] or [net, gan], was [gan, net]"),
        (["--stages", "[net, net]"], "stages must be [net], [gan] or [net, gan], was [net, net]"),
        (
            ["--stages", "[gan]"],
            "init_weights must name the weights of a trained ANDNet when stages is [gan]",
        ),
        (["--seed=-1"], f"seed must be from 0 to {2**63 - 1}, was -1"),
        (["--batch_size", "0"], "batch_size must be at least 1, was 0"),
        (["--accumulate", "0"], "accumulate must be at least 1, was 0"),
        (["--ema_decay", "1"], "ema_decay must be from 0 to below 1, was 1.0"),
        (["--ema_decay=-0.1"], "ema_decay must be from 0 to below 1, was -0.1"),
        (["--ema_decay", ".nan"], "ema_decay must be from 0 to below 1, was nan"),
        (["--log_every", "0"], "log_every must be at least 1, was 0"),
        (["--checkpoint_every", "0"], "checkpoint_every must be at least 1, was 0"),
        (["--keep_checkpoints", "0"], "keep_checkpoints must be at least 1, was 0"),
        (["--generator.features", "0"], "generator.features must be at least 1, was 0"),
        (["--generator.blocks", "0"], "generator.blocks must be at least 1, was 0"),
        (["--generator.growth", "0"], "generator.growth must be at least 1, was 0"),
        (["--discriminator.features", "0"], "discriminator.features must be at least 1, was 0"),
        (["--degradation.channels", "2"], "degradation.channels must be at least 3, was 2"),
        (
            ["--degradation.images_per_network=-1"],
            "degradation.images_per_network must be at least 0, was -1",
        ),
        (
            ["--degradation.images_per_network", "5"],
            "degradation.images_per_network must divide batch_size, 48, or be 0, was 5; the nearest is 4",
        ),
        (["--adversary.steps", "0"], "adversary.steps must be at least 1, was 0"),
        (["--adversary.chunk_size", "-1"], "adversary.chunk_size must be at least 0, was -1"),
        (["--adversary.step_size", "0"], "adversary.step_size must be a number above 0 or null, was 0.0"),
        (
            ["--adversary.radius_noise=-1"],
            "adversary.radius_noise must be a number of at least 0 or null, was -1.0",
        ),
        (
            [
                "--adversary.preset=calibrated",
                *(f"--adversary.radius_{name}=0" for name in ("convolution", "noise", "slope")),
            ],
            "adversary.radius_convolution, radius_noise or radius_slope must be above 0, all were 0",
        ),
        (
            ["--adversary.preset=paper", "--adversary.radius_joint", ".inf"],
            "adversary.radius_joint must be a number above 0 or null, was inf",
        ),
        (
            ["--adversary.preset=calibrated", "--adversary.radius_joint", "3"],
            "adversary.radius_joint must be null with adversary.preset 'calibrated'",
        ),
        (
            ["--adversary.preset=calibrated", "--adversary.radius_kernel", "3"],
            "adversary.radius_kernel must be null with adversary.preset 'calibrated', was 3.0; use "
            "adversary.radius_convolution, radius_noise and radius_slope",
        ),
        (
            ["--adversary.radius_convolution", "3"],
            "adversary.radius_convolution must be null with adversary.preset 'symmetric', was 3.0; use "
            "adversary.radius_color, radius_kernel, radius_rest, radius_noise and radius_slope",
        ),
        (
            ["--adversary.radius_joint", "3"],
            "adversary.radius_joint must be null with adversary.preset 'symmetric'",
        ),
        (
            ["--adversary.preset=paper", "--adversary.radius_rest", "3"],
            "adversary.radius_rest must be null with adversary.preset 'paper', which has one joint ball",
        ),
        (["--adversary.radius_color=-1"], "adversary.radius_color must be a number of"),
        (
            [*(f"--adversary.radius_{name}=0" for name in PARTS)],
            "adversary.radius_color, radius_kernel, radius_rest, radius_noise or radius_slope must be above 0, all",
        ),
        (
            [*(f"--adversary.radius_{name}=0" for name in PARTS if name != "slope")],  # which is 0 by default
            "adversary.radius_color, radius_kernel, radius_rest, radius_noise or radius_slope must be above 0, all",
        ),
        (
            ["--adversary.preset=calibrated", "--adversary.symmetric_kernels=true"],
            "adversary.symmetric_kernels must be null with adversary.preset 'calibrated', which has one ball for whole "
            "convolutions, was true; set adversary.preset to 'symmetric'",
        ),
        (["--adversary.image_radius=random"], "adversary.image_radius"),
        *(
            (
                [f"--adversary.target_psnr={target}"],
                f"adversary.target_psnr must be a number from 10 to 60 (dB) or null, was {value}",
            )
            for target, value in ((9.9, "9.9"), (61, "61.0"), (-30, "-30.0"), (".nan", "nan"), (".inf", "inf"))
        ),
        *(
            (
                [f"--adversary.strategy={strategy}", "--adversary.target_psnr=30"],
                f"adversary.target_psnr must be null with adversary.strategy '{strategy}', which does not use it, was "
                "30.0; 'pgd', 'fast', 'random', 'pgd_random_start' or 'fast_random_start' would",
            )
            for strategy in ("none", "bicubic", "noise", "style", "synthetic")
        ),
        (
            ["--adversary.random_scale=2"],
            "adversary.random_scale must be null with adversary.strategy 'pgd', which does not use it, was 2.0; "
            "'random', 'pgd_random_start' or 'fast_random_start' would",
        ),
        (
            ["--adversary.strategy=random", "--adversary.random_scale=0"],
            "adversary.random_scale must be a number above 0, factors by name or null, was 0.0",
        ),
        (
            ["--adversary.strategy=random", "--adversary.random_scale={convolution: 2}"],
            "adversary.random_scale must name parts of the ball of adversary.preset 'symmetric', color, kernel, rest, "
            "noise and slope, was {'convolution': 2.0}",
        ),
        (
            ["--adversary.strategy=random", "--adversary.random_scale={kernel: -1, noise: 2}"],
            "adversary.random_scale.kernel must be a number of at least 0, was -1.0",
        ),
        (
            ["--adversary.strategy=random", "--adversary.random_scale={noise: 0}"],
            "adversary.random_scale must have a factor above 0, was {'noise': 0.0}",
        ),
        (
            ["--adversary.strategy=random", "--adversary.preset=paper", "--adversary.random_scale={noise: 2}"],
            "adversary.random_scale must be one number with adversary.preset 'paper', a joint ball, was {'noise': 2.0}",
        ),
        (
            ["--adversary.strategy=noise", "--adversary.lr_noise_radius=-1"],
            "adversary.lr_noise_radius must be a number above 0 or null, was -1.0",
        ),
        (
            ["--adversary.strategy=random", "--adversary.lr_noise_norm=linf"],
            "adversary.lr_noise_norm must be null with adversary.strategy 'random', which does not use it, was linf",
        ),
        (
            ["--adversary.strategy=synthetic", "--adversary.radius_noise=1"],
            "adversary.radius_noise must be null with adversary.strategy 'synthetic', which does not use it, was 1.0",
        ),
        (
            ["--adversary.strategy=none", "--adversary.step_size=0.3"],
            "adversary.step_size must be null with adversary.strategy 'none', which does not use it, was 0.3",
        ),
        (
            ["--adversary.strategy=bicubic", "--adversary.steps=3"],
            "adversary.steps must be 5, its default, with adversary.strategy 'bicubic', which has no ascent, was 3",
        ),
        (
            ["--net.lr_milestones=[5]"],
            "net.lr_milestones must be null with net.lr_schedule 'constant', was [5]; set net.lr_schedule to",
        ),
        (
            ["--gan.lr_schedule=cosine", "--gan.lr_gamma=0.5"],
            "gan.lr_gamma must be null with gan.lr_schedule 'cosine', was 0.5",
        ),
        (
            ["--net.lr_schedule=milestones", "--net.lr_milestones=[5, 3]"],
            "net.lr_milestones must be steps in increasing order, the first at least 1, was [5, 3]",
        ),
        (["--net.lr_schedule=milestones", "--net.lr_milestones=[]"], "net.lr_milestones must be steps in increasing"),
        (["--net.lr_schedule=milestones", "--net.lr_milestones=[0, 2]"], "net.lr_milestones must be steps in"),
        (
            ["--net.lr_schedule=milestones", "--net.lr_gamma=2"],
            "net.lr_gamma must be above 0 and at most 1, or null, was 2.0",
        ),
        (["--gan.lr_warmup=-1"], "gan.lr_warmup must be at least 0, was -1"),
        (
            ["--net.lr_schedule=cosine", "--net.steps=10", "--net.lr_warmup=10"],
            "net.lr_warmup must be below net.steps, 10, with net.lr_schedule 'cosine', was 10",
        ),
        (["--net.lr_schedule=cosin"], "net.lr_schedule must be 'constant', 'milestones' or 'cosine', was 'cosin'"),
        (["--validation.best_by=niqe"], "validation.best_by must be null without validation.hr, was 'niqe'"),
        (
            ["--validation.hr=[a]", "--validation.best_by=niqe", "--validation.crop_size=196"],
            "validation.crop_size must be at least 200 with validation.best_by 'niqe' (two blocks of 96",
        ),
        (
            ["--validation.hr=[a]", "--validation.best_by=lpips", "--validation.crop_size=36"],
            "validation.crop_size must be at least 39 with validation.best_by 'lpips', was 36",
        ),
        (
            ["--validation.hr=[a]", "--validation.best_by=psnr", "--validation.niqe_parameters=a.npz"],
            "validation.niqe_parameters must be null with validation.best_by 'psnr', was 'a.npz'",
        ),
        (
            ["--validation.hr=[a]", "--validation.lpips_weights=a.pth"],
            "validation.lpips_weights must be null with validation.best_by null, was 'a.pth'",
        ),
        (
            ["--adversary.strategy=noise", "--adversary.image_radius=uniform"],
            "adversary.image_radius must be null with adversary.strategy 'noise', which does not use it, was uniform",
        ),
        (
            ["--adversary.strategy=none", "--adversary.zero_mean_noise=true"],
            "adversary.zero_mean_noise must be null with adversary.strategy 'none', which does not use it, was true",
        ),
        (
            ["--adversary.strategy=fast", "--adversary.steps=3"],
            "adversary.steps must be 5, its default, with adversary.strategy 'fast', which has a number of its own",
        ),
        (
            ["--adversary.strategy=fast", "--adversary.step_size=0.3"],
            "adversary.step_size must be null with adversary.strategy 'fast', which does not use it, was 0.3",
        ),
        (
            ["--adversary.strategy=nose"],
            "adversary.strategy must be 'pgd', 'fast', 'none', 'bicubic', 'noise', 'random'",
        ),
        (
            ["--compile=true", "--reuse.discriminator_pass=true"],
            "reuse.discriminator_pass must be false or null with compile, was true",
        ),
        (
            ["--adversary.preset=strong", "--adversary.radius_joint", "3"],
            "adversary.radius_joint must be null with adversary.preset 'strong'",
        ),
        (
            ["--adversary.preset=paper", "--adversary.radius_slope", "3"],
            "adversary.radius_slope must be null with adversary.preset 'paper', which has one joint ball",
        ),
        (["--loss.gan=-1"], "loss.gan must be a number of at least 0, was -1.0"),
        (["--loss.l1", "0"], "loss.l1 must be above 0 for stage net, which has no other loss, was 0"),
        (["--loss.perceptual_layers", "{}"], "loss.perceptual_layers must name at least one layer"),
        (["--loss.perceptual_layers", "{conv5_5: 1}"], "was 'conv5_5'; did you mean 'conv5_4'?"),
        (
            ["--loss.perceptual_layers", "{conv5_4: 0}"],
            "loss.perceptual_layers.conv5_4 must be a number above 0, was 0.0",
        ),
        (["--loss.vgg_weights="], "loss.vgg_weights must be 'torchvision', 'random' or the path"),
        ([*GAN, "--loss.vgg_weights", "randm"], "was 'randm', which is not a file; did you mean 'random'?"),
        (["--net.steps", "0"], "net.steps must be at least 1, was 0"),
        (["--gan.steps", "0"], "gan.steps must be at least 1, was 0"),
        (["--net.lr", "0"], "net.lr must be a number above 0, was 0.0"),
        (["--gan.lr=-1"], "gan.lr must be a number above 0, was -1.0"),
        (["--gan.lr", ".inf"], "gan.lr must be a number above 0, was inf"),
        (["--net.betas", "[0.9, 1]"], "net.betas must be two numbers from 0 to below 1, was [0.9, 1.0]"),
        (["--data.patch_size", "0"], "data.patch_size must be at least 1, was 0"),
        (
            ["--data.patch_size", "66"],
            "data.patch_size must be divisible by 4 (scale 4), was 66; the nearest are 64 or 68",
        ),
        (
            ["--scale=2", "--data.patch_size", "66"],
            "data.patch_size must be divisible by 4 (scale 2), was 66",
        ),
        (
            [*GAN, "--data.patch_size", "160"],
            "data.patch_size must be 128 or 256 with discriminator.kind 'vgg', was 160; the nearest is 128",
        ),
        (
            [*GAN, "--discriminator.kind=unet", "--data.patch_size", "4"],
            "data.patch_size must be divisible by 8 (discriminator.kind 'unet'), was 4; the nearest are 8",
        ),
        (
            [*GAN, "--discriminator.kind=unet", "--data.patch_size", "8"],
            "data.patch_size must be at least 16 for VGG layer conv5_4, was 8",
        ),
        (["--data.workers=-1"], "data.workers must be at least 0, was -1"),
        (["--validation.lr", "x"], "validation.hr must be one folder when validation.lr names"),
        (["--validation.every", "0"], "validation.every must be at least 1, was 0"),
        (["--validation.crops", "0"], "validation.crops must be at least 1, was 0"),
        (["--validation.sheet=-1"], "validation.sheet must be at least 0, was -1"),
        (["--validation.crop_border=-1"], "validation.crop_border must be at least 0, was -1"),
        (["--validation.crop_size", "30"], "validation.crop_size must be divisible by 4 (scale 4), was 30"),
        (["--validation.crop_size", "16"], "validation.crop_size must be at least 19 (SSIM's window"),
    ],
)
def test_invalid_values_raise(arguments: list[str], message: str) -> None:
    assert message in error_of(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [*GAN, "--discriminator.kind=unet", "--data.patch_size=64", "--loss.vgg_weights=random"],
        [*GAN, "--data.patch_size=128", "--loss.l1=1", "--loss.perceptual=0", "--loss.gan=0"],
        ["--data.patch_size=68", "--scale=2", "--data.workers=0"],
        ["--adversary.preset=paper", "--adversary.radius_joint=3"],
        ["--adversary.radius_color=1", "--adversary.symmetric_kernels=false"],
        ["--adversary.radius_color=1", *(f"--adversary.radius_{x}=0" for x in PARTS)],
        ["--adversary.zero_mean_noise=true", "--adversary.image_radius=uniform"],
        ["--adversary.target_psnr=10", "--adversary.preset=paper"],
        ["--adversary.target_psnr=60", "--adversary.strategy=random"],
        ["--adversary.target_psnr=null", "--adversary.strategy=none"],
        [
            "--adversary.preset=calibrated",
            "--adversary.radius_convolution=0",
            "--adversary.radius_slope=0",
            "--adversary.radius_noise=1",
        ],
        ["--degradation.images_per_network=0", "--ema_decay=0"],
        ["--validation.hr=[a]", "--validation.lr=b", "--validation.sheet=0", "--validation.crop_border=0"],
        ["--init_weights=null", "--compile=true", "--precision=fp32"],
    ],
)
def test_valid_values_pass(arguments: list[str]) -> None:
    config_of(*arguments)


def test_device_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device must be 'auto' or 'cpu' here, was 'cuda': PyTorch sees no CUDA"):
        resolve_device("cuda")
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu' or 'cuda', was 'tpu'"):
        resolve_device("tpu")
    assert "device must be 'auto' or 'cpu' here" in error_of("--device", "cuda")
    assert "precision must be 'bf16' or 'fp32' without CUDA, was 'fp16'" in error_of("--precision", "fp16")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    assert config_of("--precision", "fp16").precision == "fp16"
    assert "precision must be" in error_of("--precision", "fp16", "--device", "cpu")
    assert config_of("--cuda_graph=true").cuda_graph
    assert "cuda_graph must be false or null without CUDA, was true" in error_of("--cuda_graph=true", "--device", "cpu")
