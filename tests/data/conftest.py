"""Fixtures of the data tests."""

import pytest
from packs import save_noise


@pytest.fixture
def photos(tmp_path):
    """A folder of four images, nested, two with the same file name, one with a non-ASCII name; and their pixels."""
    folder = tmp_path / "photos"
    pixels = {
        "a.png": save_noise(folder / "a.png", (20, 30), 1),
        "sub/a.png": save_noise(folder / "sub/a.png", (31, 17), 2),
        "sub/deep/b.TIFF": save_noise(folder / "sub/deep/b.TIFF", (16, 16), 3, format="TIFF"),
        "Füße 犬.bmp": save_noise(folder / "Füße 犬.bmp", (9, 40), 4),
    }
    return folder, pixels
