"""The sample sheet and the loss curve: what is drawn where, and what is refused."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from andfast import drawing as pictures
from andfast import files
from andfast.drawing import loss_curve, sample_sheet

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


# ----------------------------------------------------------------------------------------------- sample sheet


def test_sheet_shows_every_pixel_of_hr_and_lr_in_repeated_pixels(tmp_path):
    hr, lr = noise(256), noise(64, seed=1)
    sample_sheet([[hr, lr]], tmp_path / "sheet.png", titles=["HR", "LR"], captions=[["", "20.00 dB"]])
    sheet = opened(tmp_path / "sheet.png")
    assert sheet.mode == "RGB"
    there = find(sheet, hr.permute(1, 2, 0).numpy())
    enlarged = lr.permute(1, 2, 0).numpy().repeat(4, 0).repeat(4, 1)
    besides = find(sheet, enlarged)
    assert there is not None
    assert besides is not None
    assert there[0] == besides[0]
    assert there[1] + 256 < besides[1]


def test_rows_and_columns_are_laid_out_in_order(tmp_path):
    rows = [[plain(RED, 256), plain(GREEN, 64)], [plain(GREEN, 256), plain(RED, 64)]]
    sample_sheet(rows, tmp_path / "sheet.png", titles=["a", "b"], captions=[["", ""], ["", ""]])
    page = np.asarray(opened(tmp_path / "sheet.png"))
    height, width = page.shape[:2]
    for y, x, colour in [(0.3, 0.3, RED), (0.3, 0.7, GREEN), (0.7, 0.3, GREEN), (0.7, 0.7, RED)]:
        assert tuple(page[int(y * height), int(x * width)]) == colour


def test_titles_captions_and_heading_leave_ink_and_keep_off_the_pictures(tmp_path):
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
        # Nothing runs over the edge.
        frame = np.concatenate([page[:4].reshape(-1, 3), page[-4:].reshape(-1, 3), page[:, :4].reshape(-1, 3)])
        assert (frame == 255).all()
        assert (page[:, -4:] == 255).all()
    assert inks[0] == 0
    assert min(inks[1:]) > 50


def test_small_pictures_are_enlarged_and_large_ones_show_the_same_middle(tmp_path):
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


def test_float_pictures_are_clamped_and_rounded(tmp_path):
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
            r"rows\[0\]\[1\] must fit 8x8, the row's largest, a whole number of times, was 3x3",
        ),
    ],
)
def test_sheets_that_do_not_fit_are_refused(tmp_path, rows, titles, captions, error, message):
    with pytest.raises(error, match=message):
        sample_sheet(rows, tmp_path / "s.png", titles=titles, captions=captions)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- loss curve


def write(path, records, end="\n"):
    path.write_text("\n".join(json.dumps(record) for record in records) + end)
    return path


def records(stage, steps, every=10):
    return [
        {
            "stage": stage,
            "step": step,
            "loss_clean": 0.05 + 1 / step,
            "loss": 0.08 + 1.3 / step,
            "lr_psnr": 24 + step % 3,
        }
        for step in range(every, steps + 1, every)
    ]


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures that are drawn, caught as they are saved."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figures = []
    save = Figure.savefig

    def catch(self, *arguments, **options):
        figures.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", catch)
    return figures


def lines(axis):
    return {line.get_label(): line.get_xydata() for line in axis.lines if not line.get_label().startswith("_")}


def test_curve_has_a_column_a_stage_with_losses_and_lr_psnr(tmp_path, drawn):
    net, gan = records("net", 200), records("gan", 100)
    other = [{"stage": "net", "step": 200, "psnr_y": 25.0}, {"event": "start"}]
    loss_curve(write(tmp_path / "metrics.jsonl", net + other + gan), tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width > image.height > 500
    (figure,) = drawn
    top_net, top_gan, bottom_net, bottom_gan = figure.axes
    assert [top_net.get_title(), top_gan.get_title()] == ["ANDNet (stage net)", "ANDGAN (stage gan)"]
    for axis, source in ((top_net, net), (top_gan, gan)):
        curves = lines(axis)
        for label, key in (("clean case", "loss_clean"), ("adversarial case", "loss")):
            np.testing.assert_allclose(curves[label], [[record["step"], record[key]] for record in source])
        assert "gain of the ascent" in [text.get_text() for text in axis.get_legend().get_texts()]
    for axis, source in ((bottom_net, net), (bottom_gan, gan)):
        (curve,) = lines(axis).values()
        np.testing.assert_allclose(curve, [[record["step"], record["lr_psnr"]] for record in source])
        assert axis.get_xlabel() == "training step"
    assert (top_net.get_ylabel(), bottom_net.get_ylabel()) == ("loss", "LR PSNR (dB)")
    assert "matplotlib.pyplot" not in sys.modules


def test_many_points_get_a_running_mean_over_the_raw_ones(tmp_path, drawn):
    source = records("net", 5000)
    loss_curve(write(tmp_path / "m.jsonl", source), tmp_path / "c.png")
    axis = drawn[0].axes[1]
    raw, smooth = (line.get_ydata() for line in axis.lines)
    np.testing.assert_allclose(raw, [record["lr_psnr"] for record in source])
    assert smooth.std() < raw.std() / 3
    assert smooth.mean() == pytest.approx(raw.mean(), abs=0.05)


def test_running_mean_at_the_ends_and_around_gaps():
    points = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    np.testing.assert_allclose(pictures._running_mean(points, 1), [1.5, 1.5, np.nan, 6.5, 6.5])


def test_a_resumed_run_draws_the_last_record_of_a_step(tmp_path, drawn):
    first = records("net", 100)
    again = [record | {"loss_clean": 0.5} for record in records("net", 100) if record["step"] > 50]
    loss_curve(write(tmp_path / "m.jsonl", first + again), tmp_path / "c.png")
    curve = lines(drawn[0].axes[0])["clean case"]
    assert curve[:, 0].tolist() == list(range(10, 101, 10))
    assert (curve[5:, 1] == 0.5).all()
    assert (curve[:5, 1] != 0.5).all()


def test_values_that_are_missing_or_not_finite_are_gaps(tmp_path, drawn):
    source = records("net", 100)
    source[3]["lr_psnr"] = float("inf")
    source[4]["loss_clean"] = "nan"
    for record in source:
        del record["loss"]
    loss_curve(write(tmp_path / "m.jsonl", source), tmp_path / "c.png")
    top, bottom = drawn[0].axes
    assert np.isnan(lines(bottom)["adversarial LR against clean LR"][3, 1])
    assert np.isnan(lines(top)["clean case"][4, 1])
    assert "adversarial case" not in lines(top)


def test_keys_can_be_named_and_one_record_is_enough(tmp_path, drawn):
    write(tmp_path / "m.jsonl", [{"stage": "net", "step": 5, "a": 1.0, "b": 2.0, "c": 30}])
    loss_curve(tmp_path / "m.jsonl", tmp_path / "c.png", clean="a", adversarial="b", lr_psnr="c")
    assert lines(drawn[0].axes[0])["clean case"].tolist() == [[5, 1]]


def test_a_line_still_being_written_is_left_out(tmp_path, drawn):
    path = write(tmp_path / "m.jsonl", records("net", 100), end='\n{"stage": "net", "st')
    loss_curve(path, tmp_path / "c.png")
    assert len(lines(drawn[0].axes[0])["clean case"]) == 10


def test_curves_that_cannot_be_drawn_are_refused(tmp_path):
    target = tmp_path / "c.png"
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl, there is none at"):
        loss_curve(tmp_path / "none.jsonl", target)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"stage": "net"}\n{oops}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2, must be a JSON object"):
        loss_curve(bad, target)
    bad.write_text("[1]\n")
    with pytest.raises(ValueError, match=r"line 1, must be a JSON object, was \[1\]"):
        loss_curve(bad, target)
    for nothing in ("", '{"stage": "net", "step": 3, "psnr_y": 20}\n'):
        bad.write_text(nothing)
        with pytest.raises(ValueError, match=r'must have lines with "stage", "step" and one of loss_clean'):
            loss_curve(bad, target)
    assert not target.exists()


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"andfast\[demo\]"):
        loss_curve(write(tmp_path / "m.jsonl", records("net", 20)), tmp_path / "c.png")


def test_a_failed_write_leaves_the_old_picture_and_no_litter(tmp_path, monkeypatch):
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
