"""The loss curve: the values drawn, and errors."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from andfast.drawing import loss_curve
from andfast.drawing.curve import _running_mean


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
    """The matplotlib figures that were saved."""
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


def test_curve_has_a_column_per_stage(tmp_path, drawn):
    net, gan = records("net", 200), records("gan", 100)
    ignored = [{"stage": "net", "step": 200, "psnr_y": 25.0}, {"event": "start"}]
    loss_curve(write(tmp_path / "metrics.jsonl", net + ignored + gan), tmp_path / "curve.png")
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


def test_many_points_get_a_running_mean(tmp_path, drawn):
    source = records("net", 5000)
    loss_curve(write(tmp_path / "m.jsonl", source), tmp_path / "c.png")
    axis = drawn[0].axes[1]
    raw, smooth = (line.get_ydata() for line in axis.lines)
    np.testing.assert_allclose(raw, [record["lr_psnr"] for record in source])
    assert smooth.std() < raw.std() / 3
    assert smooth.mean() == pytest.approx(raw.mean(), abs=0.05)


def test_running_mean_ignores_gaps_and_shrinks_at_the_ends():
    points = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    np.testing.assert_allclose(_running_mean(points, 1), [1.5, 1.5, np.nan, 6.5, 6.5])


def test_last_record_of_a_repeated_step_is_drawn(tmp_path, drawn):
    first = records("net", 100)
    again = [record | {"loss_clean": 0.5} for record in records("net", 100) if record["step"] > 50]
    loss_curve(write(tmp_path / "m.jsonl", first + again), tmp_path / "c.png")
    curve = lines(drawn[0].axes[0])["clean case"]
    assert curve[:, 0].tolist() == list(range(10, 101, 10))
    assert (curve[5:, 1] == 0.5).all()
    assert (curve[:5, 1] != 0.5).all()


def test_missing_and_infinite_values_are_gaps(tmp_path, drawn):
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


@pytest.mark.parametrize(
    ("key", "labels"),
    [
        ("loss_start", ["before the ascent", "adversarial case", "gain of the ascent"]),
        ("other", ["adversarial case"]),
    ],
)
def test_gain_is_drawn_where_the_loss_before_the_ascent_is_known(tmp_path, drawn, key, labels):
    source = [{key if name == "loss_clean" else name: value for name, value in r.items()} for r in records("net", 90)]
    loss_curve(write(tmp_path / "m.jsonl", source), tmp_path / "curve.png")
    top = drawn[0].axes[0]
    assert top.get_legend_handles_labels()[1] == labels
    if key == "loss_start":
        np.testing.assert_allclose(lines(top)["before the ascent"][:, 1], [r["loss_start"] for r in source])


def test_factor_on_the_radii_has_an_axis(tmp_path, drawn):
    source = [record | {"radius_factor": 1 / record["step"]} for record in records("net", 100)]
    loss_curve(write(tmp_path / "m.jsonl", source + records("gan", 50)), tmp_path / "c.png")
    *axes, right = drawn[0].axes
    assert len(axes) == 4  # stage gan has no such axis
    assert right.get_yscale() == "log"
    expected = [[record["step"], record["radius_factor"]] for record in source]
    np.testing.assert_allclose(lines(right)["factor on the radii"], expected)
    assert right.get_ylabel() == "factor on the radii"


def test_one_record_is_enough(tmp_path, drawn):
    write(tmp_path / "m.jsonl", [{"stage": "net", "step": 5, "loss_clean": 1.0, "loss": 2.0, "lr_psnr": 30}])
    loss_curve(tmp_path / "m.jsonl", tmp_path / "c.png")
    assert lines(drawn[0].axes[0])["clean case"].tolist() == [[5, 1]]


def test_incomplete_last_line_is_ignored(tmp_path, drawn):
    path = write(tmp_path / "m.jsonl", records("net", 100), end='\n{"stage": "net", "st')
    loss_curve(path, tmp_path / "c.png")
    assert len(lines(drawn[0].axes[0])["clean case"]) == 10


def test_invalid_metrics_raise(tmp_path):
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


def test_missing_matplotlib_raises_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"andfast\[demo\]"):
        loss_curve(write(tmp_path / "m.jsonl", records("net", 20)), tmp_path / "c.png")
