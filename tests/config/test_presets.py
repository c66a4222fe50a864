"""The presets in configs/."""

import dataclasses
from pathlib import Path

import pytest

from andfast.config.files import build, read_settings
from andfast.config.schema import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_presets_are_valid(path: Path) -> None:
    build({"output": "runs/x"} | read_settings(path)).validate()


def preset(name: str) -> TrainConfig:
    return build(read_settings(CONFIGS / f"{name}.yaml") | {"output": "x"})


def test_presets_have_the_numbers_of_the_paper() -> None:
    for scale in (2, 4):
        net, gan = preset(f"andnet_x{scale}"), preset(f"andgan_x{scale}")
        for config in (net, gan):
            assert config.scale == scale
            assert (config.batch_size, config.data.patch_size, config.accumulate) == (48, 256, 1)
            assert (config.adversary.steps, config.adversary.step_size) == (5, 6 / 20)
            assert (config.generator.features, config.generator.blocks, config.generator.growth) == (
                64,
                23,
                32,
            )
            assert config.degradation.channels == 64
        assert net.stages == ["net"]
        assert gan.stages == ["gan"]
        assert (net.net.steps, net.net.lr) == (10**6, 1e-4)
        assert (gan.gan.steps, gan.gan.lr, gan.loss.gan, gan.loss.gan_kind) == (
            5 * 10**5,
            1e-4,
            0.1,
            "vanilla",
        )
        assert gan.init_weights == Path(f"runs/andnet_x{scale}/weights/andnet.safetensors")


def test_demo_differs_in_sizes_only() -> None:
    demo, full = preset("demo"), TrainConfig(output=Path("x"))
    assert demo.stages == ["net", "gan"]
    assert demo.adversary.preset == full.adversary.preset == "symmetric"
    radii = (demo.adversary.radius_kernel, demo.adversary.radius_rest, demo.adversary.radius_noise)
    assert all(radius is not None and radius > 0 for radius in radii)  # all groups of its ball take part
    assert demo.generator.growth == 32  # the only growth that spandrel's ESRGAN supports
    assert dataclasses.replace(demo.degradation, channels=64) == full.degradation
    assert not set(demo.data.include) & set(demo.validation.include)
