"""benchmarks/ablation/report.py: tables from the results of several seeds, and the page in docs/."""

import os
import sys

import pytest

from benchmarks.ablation import report
from benchmarks.report import pages


def method(label, *values):
    entries = {
        str(seed): {
            "unseen": {"camera": value},
            "clean": {"camera": value + 1},
            "damage": {"camera": {"clean": value + 1, "noise": value}},
            "pairs": {part: {"psnr": value + 2, "niqe": None} for part in ("chosen", "reported", "all")},
            "curve": [],
        }
        for seed, value in enumerate(values)
    }
    return {"label": label, "seeds": entries}


def example():
    return {
        "size": "cpu",
        "steps": 1000,
        "start_steps": 4000,
        "seeds": [0, 1],
        "machine": {"name": "a CPU", "packages": {"torch": "2.11.0"}, "commit": "0123456789"},
        "protocol": "Y of studio-range BT.601",
        "pairs": {"chosen": ["a"], "reported": ["b", "c"]},
        "held_out": ["d"],
        "sources": {"camera": "HR of the reported pairs"},
        "conditions": {"clean": "pooled HR", "noise": "Gaussian noise"},
        "methods": {
            "bicubic": {"label": "bicubic", "seeds": {"all": method("bicubic", 20.0)["seeds"]["0"]}},
            "and": method("AND", 30.0, 31.0),
        },
    }


def test_tables_show_mean_and_spread():
    text = report.markdown(example())
    assert "| bicubic | 20.00 | 21.00 |\n" in text
    assert "| AND | 30.50 ± 0.71 | 31.50 ± 0.71 |\n" in text
    assert "| AND | 32.50 ± 0.71 | 32.50 ± 0.71 |" in text
    assert "NIQE |" not in text  # a column that no row has
    assert "| Gaussian noise | 20.00 | 30.50 ± 0.71 |" in text


def test_tables_show_numbers_of_seeds_that_differ():
    results = example()
    results["methods"]["noise"] = {"label": "noise", "seeds": {"0": results["methods"]["and"]["seeds"]["0"]}}
    text = report.markdown(results)
    assert "|  | seeds | unseen" in text
    assert "| bicubic |  | 20.00 |" in text
    assert "| AND | 2 | 30.50 ± 0.71 |" in text
    assert "| noise | 1 | 30.00 |" in text


def test_docs_page_has_the_ablation(tmp_path):
    report.write(tmp_path / "ablation-cpu.json", example())
    page = pages.docs_page(tmp_path)
    assert "## Ablation, size cpu" in page
    assert "| AND | 30.50 ± 0.71 |" in page
    assert "## Ablation" not in pages.docs_page(tmp_path / "none")


def test_report_needs_no_torch():
    # The path of this process: with PYTHONSAFEPATH the checkout is not on a new one's.
    program = (
        f"import sys; sys.path[:] = {sys.path}; from benchmarks.ablation import report; "
        "assert 'torch' not in sys.modules"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program]) == 0


def test_reading_a_foreign_file(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"must be the JSON of python -m benchmarks\.ablation"):
        report.read(tmp_path / "a.json")
