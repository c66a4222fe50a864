"""Configurations of tiny runs, the environment they are started in, and a run in this process."""

import os
from pathlib import Path

from andfast import train

CONFIG = """
stages: [net, gan]
seed: 3
device: cpu
precision: fp32
batch_size: 2
ema_decay: 0.5
generator: {features: 8, blocks: 1, growth: 4}
discriminator: {kind: unet, features: 4}
degradation: {channels: 8}
adversary: {steps: 2}
loss: {perceptual_layers: {conv1_2: 0.1}, vgg_weights: random}
net: {steps: 6, lr: 1.0e-3}
gan: {steps: 6, lr: 1.0e-4}
data:
  train: ["package:skimage/data"]
  include: [astronaut.png, chelsea.png]
  patch_size: 32
  workers: 2
validation: {hr: ["package:skimage/data"], include: [coffee.png], every: 4, crops: 2, crop_size: 32, sheet: 1}
log_every: 1
checkpoint_every: 3
"""

SMALLEST = """
stages: [net]
seed: 3
device: cpu
precision: fp32
batch_size: 1
ema_decay: 0.5
generator: {features: 4, blocks: 1, growth: 4}
degradation: {channels: 4}
adversary: {steps: 1}
loss: {perceptual: 0}
net: {steps: 3, lr: 1.0e-3}
data: {train: ["package:skimage/data"], include: [cell.png], patch_size: 16, workers: 0}
validation: {hr: [], every: 1000, crops: 1, crop_size: 20, sheet: 0}
tensorboard: false
log_every: 1
checkpoint_every: 1
"""
"""Runs in a second, in this process."""
VALIDATED = ("--validation.hr=[package:skimage/data]", "--validation.include=[coffee.png]", "--validation.every=1")


def train_here(folder: Path, *arguments: str) -> int:
    """Run SMALLEST in FOLDER/run, in this process; return the exit code of the command."""
    try:
        return train.main([*write_config(folder, SMALLEST), "--output", str(folder / "run"), *arguments])
    except SystemExit as end:
        return int(end.code or 0)


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "PYTHONPATH": path}


def write_config(folder: Path, text: str = CONFIG) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return ["--config", str(folder / "config.yaml")]
