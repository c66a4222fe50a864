"""Tiling: agreement with whole images, no seams, size of the bands, argument checks."""

import pytest
import torch
from restorers import network_restorer, photograph
from torch import Tensor

from andfast.inference.models import Restorer, load_restorer
from andfast.inference.tiles import check_tile, count_tiles, restore_bands, restore_tiled, spans

GREY_LEVEL = 1 / 255


def identity_restorer(scale: int = 1, multiple: int = 1) -> Restorer:
    def enlarge(x: Tensor) -> Tensor:
        return x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    return Restorer("nearest", enlarge, architecture="none", scale=scale, device=torch.device("cpu"), multiple=multiple)


@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 100, 127, 128, 129, 257, 1000])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 32), (64, 0), (33, 7), (1, 0), (0, 16)])
@pytest.mark.parametrize(("scale", "multiple"), [(4, 1), (3, 1), (2, 2), (1, 4)])
def test_spans_cover_the_axis_once(size: int, tile: int, overlap: int, scale: int, multiple: int) -> None:
    if tile == 1 and multiple > 1:
        tile = multiple
    restorer = identity_restorer(scale, multiple)
    tiles = spans(size, tile, overlap, restorer)
    total = torch.zeros(size * scale)
    for span in tiles:
        total[span.first : span.last] += span.weights
        assert span.start % multiple == 0
        assert 0 <= span.start < span.stop <= size
        assert span.stop - span.start <= (tile or size)
        assert (span.weights > 0).all()
        # The border of a tile, where the network saw padding, has no weight except at the border of the image.
        quarter = overlap * scale / 4
        assert span.first == 0 if span.start == 0 else span.first - span.start * scale >= quarter - 1
        assert span.last == size * scale if span.stop == size else span.stop * scale - span.last >= quarter - 1
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 70, 41), (1, 3, 5, 200), (1, 3, 131, 130)])
@pytest.mark.parametrize(("scale", "multiple"), [(1, 1), (3, 1), (2, 2)])
def test_tiling_is_exact_for_pointwise_restorers(shape: tuple[int, ...], scale: int, multiple: int) -> None:
    x = torch.rand(shape)
    restorer = identity_restorer(scale, multiple)
    tiled = restore_tiled(restorer, x, tile=40, overlap=10)
    assert tiled.shape == (*shape[:2], shape[2] * scale, shape[3] * scale)
    assert torch.allclose(tiled, restorer.restore(x), atol=1e-6)


def test_tiled_bicubic_matches_whole_image() -> None:
    x = photograph(150, 170)
    restorer = load_restorer("bicubic", scale=3)
    assert torch.allclose(restore_tiled(restorer, x, tile=64, overlap=16), restorer.restore(x), atol=1e-5)


@pytest.mark.parametrize("scale", [4, 2])
def test_no_seam_on_a_photograph(scale: int) -> None:
    x = photograph(96, 128)
    restorer = network_restorer(scale)
    whole = restorer.restore(x)
    tiled = restore_tiled(restorer, x, tile=80, overlap=32)
    assert (whole - tiled).abs().max() < GREY_LEVEL
    # Without overlap, the receptive field makes seams, which this test detects.
    without_overlap = restore_tiled(restorer, x, tile=64, overlap=0)
    assert (whole - without_overlap).abs().max() > 5 * GREY_LEVEL


def test_bands_are_small_and_tiles_counted() -> None:
    x = torch.rand(1, 3, 500, 90)
    restorer = identity_restorer(2)
    calls: list[int] = []
    bands = list(restore_bands(restorer, x, tile=64, overlap=16, on_tile=lambda: calls.append(1)))
    assert sum(band.shape[2] for band in bands) == 1000
    assert max(band.shape[2] for band in bands) <= 2 * 64
    assert len(calls) == count_tiles(restorer, 500, 90, tile=64, overlap=16) > len(bands) > 5


@pytest.mark.parametrize(("dtype", "top"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_integer_samples(dtype: torch.dtype, top: int) -> None:
    x = (torch.rand(1, 3, 50, 40) * top).round()
    restorer = identity_restorer()
    assert torch.allclose(restore_tiled(restorer, x.to(dtype), tile=20, overlap=4), x / top)


@pytest.mark.parametrize(
    ("tile", "overlap", "multiple", "message"),
    [
        (16, 32, 1, "tile must be at least 64 with an overlap of 32, or 0 for no tiles, was 16"),
        (63, 32, 1, "tile must be at least 64"),
        (64, 32, 64, "tile must be at least 128"),
        (-1, 0, 1, "tile must be at least 1"),
        (64, -1, 1, "overlap must be at least 0, was -1"),
    ],
)
def test_rejects_invalid_tiles(tile: int, overlap: int, multiple: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tile(tile, overlap, multiple)
    with pytest.raises(ValueError, match=message):
        restore_tiled(identity_restorer(multiple=multiple), torch.rand(1, 3, 8, 8), tile=tile, overlap=overlap)


def test_rejects_invalid_tensors() -> None:
    with pytest.raises(ValueError, match=r"lr must have shape \(N, C, H, W\).*was \(3, 8, 8\)"):
        restore_tiled(identity_restorer(), torch.rand(3, 8, 8), tile=0, overlap=0)
    with pytest.raises(TypeError, match=r"lr must be a floating-point tensor, was torch\.int64"):
        restore_tiled(identity_restorer(), torch.zeros(1, 3, 8, 8, dtype=torch.int64), tile=0, overlap=0)
