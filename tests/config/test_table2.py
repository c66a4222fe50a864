"""The rows of the paper's table 2 in configs/table2: each is valid over every configuration, and trains."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_steps import crops

from andfast.config.adversary import AdversaryConfig
from andfast.config.parsing import parse_arguments
from andfast.config.schema import DegradationConfig, DiscriminatorConfig, GeneratorConfig, TrainConfig
from andfast.training.build import build_generator, build_strategy
from andfast.training.distributed import ProcessGroup
from andfast.training.state import StageState

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = sorted((CONFIGS / "table2").glob("*.yaml"))
STRATEGIES = {
    "adversarial_noise": "noise",
    "and_fast_random_start": "fast_random_start",
    "and_random_start": "pgd_random_start",
    "classical_bicubic": "bicubic",
    "classical_pooling": "none",
    "complete_and": "pgd",
    "real_esrgan": "synthetic",
    "style_shift": "style",
    "synthetic_augmentation": "random",
    "synthetic_augmentation_equal_psnr": "random",
}


def config_of(base: str, row: Path) -> TrainConfig:
    arguments = ["--config", str(CONFIGS / f"{base}.yaml"), "--adversary", str(row), "--output", "x", "--device=cpu"]
    if base.startswith("andgan"):
        arguments += ["--stages=[net, gan]", "--init_weights=null"]
    return parse_arguments(arguments)[0]


def test_every_row_is_there() -> None:
    assert {row.stem: config_of("andnet_x4", row).adversary.strategy for row in ROWS} == STRATEGIES


@pytest.mark.parametrize("base", ["andnet_x2", "andnet_x4", "andgan_x4", "demo"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.stem)
def test_row_is_valid_over_every_configuration(base: str, row: Path) -> None:
    config_of(base, row)


def test_complete_and_is_the_default() -> None:
    complete = config_of("andnet_x4", CONFIGS / "table2" / "complete_and.yaml").adversary
    assert replace(complete, step_size=None) == AdversaryConfig()
    assert build_strategy(complete).uses_ball


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.stem)
def test_row_trains(row: Path) -> None:
    config = replace(
        config_of("demo", row),
        batch_size=2,
        generator=GeneratorConfig(features=8, blocks=1, growth=4),
        discriminator=DiscriminatorConfig(kind="unet", features=4),
        degradation=DegradationConfig(channels=8),
    )
    config.data.patch_size = 32
    torch.manual_seed(0)
    generator = build_generator(config)
    before = torch.cat([weight.detach().flatten() for weight in generator.parameters()])
    state = StageState(config, "net", generator, ProcessGroup(0, 1, torch.device("cpu")))
    for _ in range(2):
        values = state.gradients([crops(2)])
        state.update()
        assert all(value.isfinite() for value in values.values()), values
    after = torch.cat([weight.detach().flatten() for weight in generator.parameters()])
    assert state.done == 2
    assert not torch.equal(before, after)
