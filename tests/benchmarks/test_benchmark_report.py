"""benchmarks/pages.py, figure.py and summary.py: tables, pictures and figures from rows with round numbers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import roofline
from benchmarks.rates import Rates
from benchmarks.report import __main__ as command_line
from benchmarks.report import figure, gaps, pages, profile, summary

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]


def row(group: str, median: float, **extra: Any) -> Row:
    name = f"test_{group}[{extra.get('implementation', 'x')}]"
    stats = {"min": median, "median": median, "mean": median, "stddev": 0.0, "rounds": 3}
    return {"group": group, "name": name, "passed": True, "extra_info": extra} | stats


def step(kind: str, stage: str, baseline: int, median: float, *, batch: int = 4, peak: int | None = 100) -> Row:
    parts = {"ascent": median * 0.75, "restoration": median * 0.25}
    named = {"variant": f"variant {baseline}", "baseline": baseline, "step": kind, "stage": stage}
    return row(f"{kind} {stage}", median, batch=batch, peak_memory=peak, parts=parts, **named)


STEPS = [
    *(step("plain", stage, 4, 1.0) for stage in ("net", "gan")),
    *(step("plain", stage, 1, 5.0) for stage in ("net", "gan")),
    step("and", "net", 4, 3.0, peak=110),
    step("and", "net", 4, 4.0, peak=900),  # slower, and so not what counts
    step("and", "gan", 4, 2.5, peak=105),
    step("and", "net", 1, 30.0),
    step("and", "gan", 1, 20.0),
    step("and", "net", 2, 24.0, batch=8),
]


def block(implementation: str, shape: str, direction: str, median: float, floor: float) -> Row:
    named = {"op": "degradation_block", "weights": "per image", "precision": "bf16", "shape": shape}
    named |= {"implementation": implementation, "direction": direction, "roofline_seconds": floor}
    return row(f"block {direction} {shape}", median, **named)


SHAPES = {"2x3->64x32x32": 1, "2x64->64x32x32": 4, "2x64->64x8x8": 5, "2x64->3x8x8": 1}
"""F's layers and how many of each it has."""


def test_figures_of_the_step() -> None:
    values, reasons = summary.figures(STEPS)
    assert values["overhead_exact_l1"] == 3.0
    assert values["overhead_exact_gan"] == 2.5
    assert values["speedup_vs_fp32_eager"] == 8.0  # gan, the smaller of 10 and 8
    assert values["speedup_vs_bf16_eager"] is None
    assert reasons["speedup_vs_bf16_eager"] == "no row of the and step, stage gan, baseline 2 was measured"
    assert values["peak_memory_ratio"] == 1.1
    assert reasons["rdb_frozen_vs_compile"].startswith("no row of residual_dense_block")
    assert values.keys() == summary.FIGURES.keys()


def test_steps_at_different_batches() -> None:
    rows = [step("plain", "net", 4, 1.0, batch=4), step("and", "net", 4, 3.0, batch=2)]
    values, reasons = summary.figures(rows)
    assert values["overhead_exact_l1"] == 6.0  # an image
    assert reasons["peak_memory_ratio"] == "the two steps ran at batches 2 and 4, stage net"


def test_figures_of_the_degradation_block_weigh_layers_as_the_network_does() -> None:
    rows = []
    for number, shape in enumerate(SHAPES, start=1):
        for direction in ("forward", "forward+backward"):
            rows += [
                block("triton", shape, direction, number, number / 2 if shape != "2x64->64x32x32" else number),
                block("convolution", shape, direction, 3 * number, 1.0),
                block("reference", shape, direction, 100.0, 1.0),
            ]
    values, _ = summary.figures(rows)
    weighted = 1 * 1 + 4 * 2 + 5 * 3 + 1 * 4
    floors = 1 * 0.5 + 4 * 2 + 5 * 1.5 + 1 * 2
    assert values["degradation_block_roofline_forward"] == floors / weighted
    assert values["degradation_block_roofline_training"] == floors / weighted
    assert values["degradation_block_vs_grouped"] == 3.0
    # A layer that is missing, or did not pass, leaves no figure.
    rows[0]["passed"] = False
    values, reasons = summary.figures(rows)
    assert values["degradation_block_roofline_forward"] is None
    assert "2x3->64x32x32" in reasons["degradation_block_roofline_forward"]


def test_figures_of_blur_pool_and_of_the_dense_block() -> None:
    pool = {"op": "blur_pool", "precision": "bf16", "memory_format": "nhwc"}
    rows = [
        row("p", 1.0, implementation="cuda", direction="forward", bytes=10, fraction_of_roofline=0.9, **pool),
        row("p", 1.0, implementation="cuda", direction="forward", bytes=1, fraction_of_roofline=0.2, **pool),
        row("p", 1.0, implementation="avg_pool2d", direction="forward", bytes=90, fraction_of_roofline=0.1, **pool),
    ]
    dense = {"op": "residual_dense_block", "precision": "bf16", "direction": "frozen forward+backward"}
    rows += [row("d", 3.0, implementation="compiled", **dense), row("d", 2.0, implementation="triton", **dense)]
    values, _ = summary.figures(rows)
    assert values["blur_pool_bandwidth_forward"] == 0.9
    assert values["blur_pool_bandwidth_backward"] is None
    assert values["rdb_frozen_vs_compile"] == 1.5


def test_targets() -> None:
    assert summary.met("overhead_exact_l1", 3.5)
    assert not summary.met("overhead_exact_l1", 3.6)
    assert summary.met("speedup_vs_compile", 2.1)
    assert not summary.met("speedup_vs_compile", 1.9)


RATES = {"name": "toy", "source": "measured", "bandwidth": 1e9, "matrix": {"bf16": 1e12, "fp32": 1e11}}


def results() -> dict[str, Any]:
    facts = {"op": "toy op", "direction": "forward", "bytes": 1e6, "intensity": 100.0, "rates": RATES}
    rows = [
        row("g", 2e-3, implementation="slow", error=1e-3, tflop_per_s=0.05, gb_per_s=0.5, **facts),
        row("g", 1e-3, implementation="fast", error=2e-3, tflop_per_s=0.1, gb_per_s=1.0, **facts),
        *STEPS,
    ]
    return pages.collect(rows, {"name": "toy device", "commit": "abc", "packages": {"torch": "1.0", "triton": None}})


def test_shares_of_the_host() -> None:
    rows = [step("and", "net", 4, 2.0, batch=48), step("and", "net", 4, 0.5, batch=6)]
    _, reasons = summary.figures(rows)
    assert "batch 48 was not measured" in reasons["host_share_net"]
    for row, host in zip(rows, (0.1, 0.2), strict=True):
        row["extra_info"]["host_seconds"] = host
    values, _ = summary.figures(rows)
    assert values["host_share_net"] == 0.4  # batch 6, the larger share


def test_kernels_are_grouped_by_name() -> None:
    kernels = [("_convolution_kernel", 10, 5e3), ("void cudnn::engine", 2, 1e3), ("mystery", 1, 1.0)]
    groups = profile.grouped([*kernels, ("_convolution_kernel", 1, 1e3)])
    assert [(entry["group"], entry["launches"]) for entry in groups] == [
        ("dense blocks and tail (Triton)", 11),
        ("cuDNN convolutions", 2),
        ("other", 1),
    ]
    assert groups[0]["seconds"] == pytest.approx(6e-3)
    record = {"variant": "toy", "step": "and", "stage": "net", "batch": 2, "device_seconds": 0.01, "host_seconds": 0.02}
    page = profile.markdown([record | {"launches": 14, "groups": groups}])
    assert "| dense blocks and tail (Triton) | 11 | 6 | 60% |" in page
    assert "enqueued by the host in 20 ms" in page


def test_each_triton_kernel_has_a_group_and_a_name_of_its_own() -> None:
    groups = {
        "ascent_step": "ascent step",
        "degradation_block": "degradation block",
        "identity_gradients": "closed-form first step",
        "mean_distance": "distances (losses)",
        "residual_dense_block": "dense blocks",
        "upsampled_convolution": "dense blocks and tail (Triton)",
    }
    names: dict[str, Path] = {}
    for file in sorted((ROOT / "kernels").glob("*/*.py")):
        for name in re.findall(r"^@triton\.jit(?:\([^)]*\))?\ndef (\w+_kernel)\(", file.read_text(), re.MULTILINE):
            assert name not in names, f"{name} is in {file} and in {names[name]}"
            names[name] = file
            assert profile.group_of(name).startswith(groups[file.parent.name]), name
    assert len(names) >= 20


def test_the_section_of_the_readme() -> None:
    begin, end = pages.SPEED_MARKERS
    assert pages.with_speed_section(f"a\n{begin}\nold\n{end}\nz", "new") == f"a\n{begin}\nnew\n{end}\nz"
    with pytest.raises(ValueError, match="must hold"):
        pages.with_speed_section("no markers", "new")
    assert pages.README.read_text() == pages.with_speed_section(pages.README.read_text(), pages.speed_section())


def test_tables() -> None:
    page = pages.tables(results())
    lines = page.splitlines()
    assert lines[:3] == ["### g", "", "|  | times the fastest | median, ms | rounds | error | GB/s | TFLOP/s |"]
    assert lines[4] == "| fast | 1.00 | 1 | 3 | 2.0e-03 | 1 | 0.1 |"
    assert lines[5].startswith("| slow | 2.00 | 2 |")
    assert "| variant 1 |" in page
    assert pages.tables({"rows": []}) == "No rows were measured."
    failed = row("h", 1.0, implementation="wrong") | {"passed": False}
    assert "| wrong (FAILED) |" in pages.tables({"rows": [failed]})


def test_rates_are_kept_once() -> None:
    record = results()
    assert record["rates"] == RATES
    assert not any("rates" in entry["extra_info"] for entry in record["rows"])
    said = pages.machine_text(record)
    assert "torch 1.0" in said
    assert "triton" not in said
    assert "copy 1 GB/s" in said


def test_figure(tmp_path: Path) -> None:
    for name, record in (("full", results()), ("empty", {"machine": {}, "rates": None, "rows": []})):
        path = tmp_path / f"{name}.png"
        figure.draw(record, path)
        assert path.stat().st_size > 5_000


def test_parts_beside_their_floors() -> None:
    """Of the faster of two bf16 rows; the optimizer, which is not counted, has no floor."""
    record = results()
    sizes = {"hr": 128, "blocks": 2, "features": 64, "batch": 2, "stage": "net", "step": "and", "baseline": 4}
    for median in (1.0, 2.0):
        parts = {"ascent": 0.6 * median, "restoration": 0.3 * median, "optimizer": 0.1 * median}
        record["rows"].append(row("AND", median, variant=f"bf16 {median:g}", parts=parts, **sizes))
    entries = {entry["part"]: entry for entry in gaps.gaps(record)}
    assert [*entries] == ["ascent", "restoration", "optimizer", "all"]
    assert {entry["variant"] for entry in entries.values()} == {"bf16 1"}
    assert entries["optimizer"]["floor"] is None
    assert entries["all"]["seconds"] == 1.0
    assert entries["all"]["floor"] == entries["ascent"]["floor"] + entries["restoration"]["floor"]
    floor = roofline.step_seconds(Rates(**RATES), "net", batch=2, hr_size=128, blocks=2)
    assert entries["all"]["floor"] == pytest.approx(floor)
    page = pages.gaps_table(record)
    assert page is not None
    assert f"| bf16 1, and net | all | 1000 | {1e3 * floor:.4g} | {1 / floor:.2f} |" in page
    assert "| bf16 1, and net | optimizer | 100 |  |  |" in page
    assert pages.gaps_table({"rows": []}) is None
    assert "The step against its floors" not in pages.tables(record)


def test_report_against_targets() -> None:
    values, reasons = summary.figures(STEPS)
    record = values | {"reasons": reasons, "stages": {"step": {"status": "failed", "seconds": 3.2, "reason": "exit 1"}}}
    page = pages.gpu_report(record, results())
    assert "| `overhead_exact_l1` | 3 | at most 3.5 | met |" in page
    assert "| `speedup_vs_bf16_eager` |  | at least 5 | no row of the and step" in page
    assert "| step | failed | 3 | exit 1 |" in page


def test_docs_page(tmp_path: Path) -> None:
    assert "**Not measured yet.**" in pages.docs_page(tmp_path)
    folder = tmp_path / "toy"
    folder.mkdir()
    values, reasons = summary.figures(STEPS)
    (folder / "summary.json").write_text(json.dumps(values | {"reasons": reasons}))
    (folder / "results.json").write_text(json.dumps(results()))
    page = pages.docs_page(tmp_path)
    assert "Not measured yet" not in page
    assert "## toy device" in page
    assert "| `overhead_exact_gan` | 2.5 | at most 3.2 | met |" in page
    assert "(../benchmarks/results/toy/report.md)" in page


def test_the_committed_page_is_what_the_results_give() -> None:
    assert pages.DOCS.read_text() == pages.docs_page()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = {
        "machine_info": {"andfast": {"name": "toy device"}},
        "benchmarks": [
            {"group": entry["group"], "name": entry["name"], "extra_info": entry["extra_info"]}
            | {"stats": {key: entry[key] for key in ("min", "median", "mean", "stddev", "rounds")}}
            for entry in results()["rows"]
        ],
    }
    file = tmp_path / "benchmarks.json"
    file.write_text(json.dumps(raw))
    assert (
        command_line.main([str(file), "--markdown", str(tmp_path / "a.md"), "--figure", str(tmp_path / "a.png")]) == 0
    )
    assert "toy device" in (tmp_path / "a.md").read_text()
    assert command_line.main([str(file)]) == 0
    assert "### g" in capsys.readouterr().out
    for content, message in (("no", "is not JSON"), ("{}", "must be pytest-benchmark's JSON")):
        file.write_text(content)
        assert command_line.main([str(file)]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line.main([])
