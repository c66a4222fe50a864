"""The configuration of a tiny run, and the environment it is started in."""

import os
from pathlib import Path

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
loss: {perceptual_layers: {conv1_2: 0.1}, vgg_weights: random}
net: {steps: 10, lr: 1.0e-3}
gan: {steps: 10, lr: 1.0e-4}
data:
  train: ["package:skimage/data"]
  include: [astronaut.png, chelsea.png]
  patch_size: 32
  workers: 2
validation: {hr: ["package:skimage/data"], include: [coffee.png], every: 4, crops: 2, crop_size: 32, sheet: 1}
log_every: 1
checkpoint_every: 3
"""


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "PYTHONPATH": path}


def write_config(folder: Path, text: str = CONFIG) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return ["--config", str(folder / "config.yaml")]
