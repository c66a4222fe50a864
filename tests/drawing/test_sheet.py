"""Sample sheets: layout, pixels, text and errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from andfast import files
from andfast.drawing import sample_sheet

RED, GREEN = (200, 30, 30), (30, 160, 30)


def plain(colour, side):
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, side, side).contiguous()


def opened(path):
    with Image.open(path) as image:
        return image.copy()


def count(sheet, colour):
    return int((np.asarray(sheet) == colour).all(-1).sum())


def noise(side, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)


def find(sheet, picture):
    """Top left corner of an (H, W, 3) array inside the sheet, or None."""
    page = np.asarray(sheet)
    first = np.argwhere((page[:, :, :] == picture[0, 0]).all(-1))
    height, width = picture.shape[:2]
    for top, left in first:
        if np.array_equal(page[top : top + height, left : left + width], picture):
            return int(top), int(left)
    return None


def test_sheet_has_hr_and_enlarged_lr_pixel_by_pixel(tmp_path):
    hr, lr = noise(256), noise(64, seed=1)
    sample_sheet([[hr, lr]], tmp_path / "sheet.png", titles=["HR", "LR"], captions=[["", "20.00 dB"]])
    sheet = opened(tmp_path / "sheet.png")
    assert sheet.mode == "RGB"
    hr_corner = find(sheet, hr.permute(1, 2, 0).numpy())
    enlarged = lr.permute(1, 2, 0).numpy().repeat(4, 0).repeat(4, 1)
    lr_corner = find(sheet, enlarged)
    assert hr_corner is not None
    assert lr_corner is not None
    assert hr_corner[0] == lr_corner[0]
    assert hr_corner[1] + 256 < lr_corner[1]


def test_rows_and_columns_are_laid_out_in_order(tmp_path):
    rows = [[plain(RED, 256), plain(GREEN, 64)], [plain(GREEN, 256), plain(RED, 64)]]
    sample_sheet(rows, tmp_path / "sheet.png", titles=["a", "b"], captions=[["", ""], ["", ""]])
    page = np.asarray(opened(tmp_path / "sheet.png"))
    height, width = page.shape[:2]
    for y, x, colour in [(0.3, 0.3, RED), (0.3, 0.7, GREEN), (0.7, 0.3, GREEN), (0.7, 0.7, RED)]:
        assert tuple(page[int(y * height), int(x * width)]) == colour


def test_text_is_drawn_outside_the_images(tmp_path):
    path = tmp_path / "sheet.png"
    bare = {"titles": ["", ""], "captions": [["", ""]]}
    texts = [
        bare,
        bare | {"titles": ["HR", "SR"]},
        bare | {"captions": [["", "31.07 dB"]]},
        bare | {"titles": ["a very long title indeed, longer than the picture is wide " * 2, "SR"]},
        bare | {"heading": "step 400"},
    ]
    inks = []
    for text in texts:
        sample_sheet([[plain(RED, 256), plain(GREEN, 64)]], path, **text)
        sheet = opened(path)
        assert count(sheet, RED) == count(sheet, GREEN) == 256 * 256
        page = np.asarray(sheet)
        inks.append(page.shape[0] * page.shape[1] - count(sheet, (255, 255, 255)) - 2 * 256 * 256)
        # Nothing is drawn over the edge.
        frame = np.concatenate([page[:4].reshape(-1, 3), page[-4:].reshape(-1, 3), page[:, :4].reshape(-1, 3)])
        assert (frame == 255).all()
        assert (page[:, -4:] == 255).all()
    assert inks[0] == 0
    assert min(inks[1:]) > 50


def test_small_images_are_enlarged_and_large_ones_cropped_to_the_same_part(tmp_path):
    sample_sheet([[plain(RED, 32)]], tmp_path / "s.png", titles=["t"], captions=[["c"]])
    assert count(opened(tmp_path / "s.png"), RED) == 224**2

    # A marker of four LR pixels in the middle of HR and of LR must lie at the same place of both cells.
    hr, lr = plain(GREEN, 1200), plain(GREEN, 300)
    hr[:, 592:608, 592:608] = plain(RED, 16)
    lr[:, 148:152, 148:152] = plain(RED, 4)
    sample_sheet([[hr, lr]], tmp_path / "l.png", titles=["HR", "LR"], captions=[["", ""]])
    sheet = opened(tmp_path / "l.png")
    assert count(sheet, GREEN) + count(sheet, RED) == 2 * 512**2
    red = np.argwhere((np.asarray(sheet) == RED).all(-1))
    assert len(red) == 2 * 16**2
    left = red[red[:, 1] < sheet.width / 2]
    right = red[red[:, 1] >= sheet.width / 2]
    cell = 512 + 10
    np.testing.assert_array_equal(right - [0, cell], left)


def test_float_images_are_clamped_and_rounded(tmp_path):
    picture = torch.tensor([1.7, 0.5, -0.2]).view(3, 1, 1).expand(3, 256, 256)
    sample_sheet([[picture.requires_grad_()]], tmp_path / "s.png", titles=[""], captions=[[""]])
    assert count(opened(tmp_path / "s.png"), (255, 128, 0)) == 256**2
    broken = torch.full((3, 256, 256), float("nan"))
    sample_sheet([[broken]], tmp_path / "s.png", titles=[""], captions=[[""]])
    assert count(opened(tmp_path / "s.png"), (0, 0, 0)) == 256**2


def test_rows_may_have_different_sizes(tmp_path):
    rows = [
        [torch.rand(3, 240, 320), torch.rand(3, 60, 80)],
        [torch.rand(3, 320, 240), torch.rand(3, 80, 60)],
    ]
    sample_sheet(rows, tmp_path / "s.png", titles=["HR", "LR"], captions=[["", ""], ["", ""]])
    assert opened(tmp_path / "s.png").width > 2 * 320


@pytest.mark.parametrize(
    ("rows", "titles", "captions", "error", "message"),
    [
        ([], ["a"], [], ValueError, "rows and titles must not be empty"),
        (
            [[torch.zeros(3, 8, 8)]],
            ["a"],
            [],
            ValueError,
            "captions must have a row for each of the 1 rows, was 0",
        ),
        ([[torch.zeros(3, 8, 8)]], ["a", "b"], [["", ""]], ValueError, r"rows\[0\] must have 2 entries"),
        ([[torch.zeros(3, 8, 8)]], ["a"], [["", ""]], ValueError, r"captions\[0\] must have 1 entries"),
        ([[torch.zeros(1, 8, 8)]], ["a"], [[""]], ValueError, r"rows\[0\]\[0\] must have shape \(3, H, W\)"),
        (
            [[torch.zeros(3, 8, 8).long()]],
            ["a"],
            [[""]],
            TypeError,
            r"rows\[0\]\[0\] must be a floating-point",
        ),
        ([[np.zeros((3, 8, 8))]], ["a"], [[""]], TypeError, r"rows\[0\]\[0\] must be a torch.Tensor"),
        (
            [[torch.zeros(3, 8, 8), torch.zeros(3, 3, 3)]],
            ["a", "b"],
            [["", ""]],
            ValueError,
            r"rows\[0\]\[1\] must divide 8x8, the row's largest, by an integer, was 3x3",
        ),
    ],
)
def test_invalid_sheets_raise(tmp_path, rows, titles, captions, error, message):
    with pytest.raises(error, match=message):
        sample_sheet(rows, tmp_path / "s.png", titles=titles, captions=captions)
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "s.png"
    sample_sheet([[plain(RED, 256)]], path, titles=[""], captions=[[""]])
    before = path.read_bytes()

    def full(*_arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        sample_sheet([[plain(GREEN, 256)]], path, titles=[""], captions=[[""]])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["s.png"]
