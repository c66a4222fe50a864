"""Write noise images, pack them, and check the contents of a pack."""

import json

import numpy as np
from PIL import Image

from andfast.data.pack import pack_images
from andfast.data.store import PackedImages


def save_noise(path, size=(20, 30), seed=0, **options):
    """Write an image of noise; return its (H, W, 3) pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def build(sources, output, **options):
    """pack_images in this process, without a progress bar."""
    settings = {"min_size": 8, "workers": 0, "progress": False} | options
    return pack_images(sources if isinstance(sources, list) else [sources], output, **settings)


def check_pack(output, expected):
    """The pack holds exactly the images {name: pixels}, and its folder holds nothing else."""
    images = PackedImages(output)
    assert set(images.names) == set(expected)
    for name, pixels in zip(images.names, [images[i] for i in range(len(images))], strict=True):
        np.testing.assert_array_equal(pixels, expected[name])
    index = json.loads((output / "index.json").read_text())
    assert {path.name for path in output.iterdir()} == {"index.json", "pack.lock", *index["shards"]}
