"""Pairs, output images and small networks for tests of the evaluate command, and a function that runs it."""

import numpy as np
import torch
from PIL import Image
from skimage import data

from andfast.evaluate import main
from andfast.evaluation.pairs import downscale
from andfast.nn import RRDBNet
from andfast.nn.weights import save_weights

NAMES = ("astronaut", "chelsea", "coffee")


def photograph(name, height=208, width=200):
    return torch.from_numpy(
        np.asarray(getattr(data, name)())[60 : 60 + height, 90 : 90 + width].transpose(2, 0, 1).copy()
    )


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def make_pairs(folder):
    """HR/ and LR/ of three photographs, x4."""
    for name in NAMES:
        save(photograph(name), folder / "HR" / f"{name}.png")
        save(downscale(photograph(name), 4), folder / "LR" / f"{name}.png")
    return folder


def make_outputs(folder):
    """Output images of an external method: HR plus noise."""
    generator = torch.Generator().manual_seed(0)
    for name in NAMES:
        hr = photograph(name)
        noisy = hr + 6 * torch.randn(hr.shape, generator=generator)
        save(noisy.clamp(0, 255).byte(), folder / f"{name}_out.png")
    return folder


def weights(path, *, seed=0, scale=4):
    torch.manual_seed(seed)
    path.parent.mkdir(exist_ok=True)
    save_weights(path, RRDBNet(scale=scale, features=8, blocks=1, growth=4))
    return str(path)


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments] + ["--quiet"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
