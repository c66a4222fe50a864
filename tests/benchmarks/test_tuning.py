"""Tuning of the degradation block without a GPU: the table's text, candidates, compiling, choosing; the row timer.

Tests that launch kernels run in Triton's interpreter, by re-running this file with TRITON_INTERPRET=1.
"""

import json
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import triton_interpreter
from reference_triton import only_with_reference_triton
from triton_interpreter import INTERPRETED

from andfast.kernels.common.config import PRECISIONS, KernelConfig
from andfast.kernels.degradation_block.configs import ROWS_CANDIDATES, TABLE
from benchmarks import measure
from benchmarks.tuning import candidates as tuning_candidates
from benchmarks.tuning import config_table
from benchmarks.tuning import degradation_block as tune_degradation_block
from benchmarks.tuning.candidates import KERNELS, Candidate, candidates
from benchmarks.tuning.degradation_block import Bench, ranked, tuned

KEY = ("forward", "half")


def test_the_table_is_regenerated_as_it_is() -> None:
    source = config_table.FILE.read_text()
    assert config_table.rewritten(source, TABLE) == source


def test_another_table_is_written_and_read_back() -> None:
    table = {name: dict(entries) for name, entries in TABLE.items()}
    table["9.0"]["grad_weight", "half"] = KernelConfig(4, 32, 16, 4, 2, 264, registers=96)
    table["8.0"][KEY] = KernelConfig(16, 16, 32, 8, 3)
    source = config_table.rewritten(config_table.FILE.read_text(), table)
    assert '        ("grad_weight", "half"): KernelConfig(4, 32, 16, 4, 2, 264, registers=96),\n' in source
    module = types.ModuleType("andfast.kernels.degradation_block.written")
    module.__package__ = "andfast.kernels.degradation_block"
    exec(source, module.__dict__)
    assert {
        arch: {key: tuple(candidate) for key, candidate in entries.items()} for arch, entries in module.TABLE.items()
    } == table
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(config_table.FILE), "-"],
            input=source, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    with pytest.raises(ValueError, match="source must hold one TABLE"):
        config_table.rewritten("TABLE = {}", TABLE)


@only_with_reference_triton
@pytest.mark.parametrize("architecture", ROWS_CANDIDATES)
def test_kernels_by_rows_are_tried_first_and_compile_for_every_layer(architecture: str) -> None:
    for kernel, configs in ROWS_CANDIDATES[architecture].items():
        entries = candidates(architecture, kernel, "half", reduced=True)
        assert [entry.config for entry in entries[1 : 1 + len(configs)]] == list(configs)
        _, used, why = tuning_candidates.compiled(entries[1])
        assert why is None
        assert used is not None
        assert set(used["registers"]) == {"aligned", "odd"}


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("architecture", TABLE)
def test_candidates(architecture: str, kernel: str, precision: str, reduced: bool) -> None:
    ranking = candidates(architecture, kernel, precision, reduced=reduced)
    assert ranking[0].config == TABLE[architecture][kernel, precision]
    assert [candidate.distance for candidate in ranking] == sorted(candidate.distance for candidate in ranking)
    assert len({candidate.config for candidate in ranking}) == len(ranking)
    assert 5 < len(ranking) < (30 if reduced else 3000)
    assert all((candidate.config.programs > 0) == (kernel == "grad_weight") for candidate in ranking)


def test_groups_take_turns() -> None:
    counts = zip(KERNELS, (1, 3, 2), strict=True)
    groups = [candidates("9.0", kernel, "half", reduced=True)[:count] for kernel, count in counts]
    kernels = [candidate.kernel for candidate in tuning_candidates.in_turns(groups)]
    assert kernels == ["forward", "grad_input", "grad_weight", "grad_input", "grad_weight", "grad_input"]


def row(config: KernelConfig, weighted: float | None, distance: int = 1) -> dict[str, Any]:
    ranking = {"kernel": KEY[0], "precision": KEY[1], "config": config._asdict(), "distance": distance}
    return ranking if weighted is None else ranking | {"weighted": weighted}


def test_the_fastest_that_compiles_everywhere_wins() -> None:
    now = TABLE["9.0"][KEY]
    fast, second, close = (now._replace(stages=stages) for stages in (2, 3, 4))
    rows = [row(now, 1.0, 0), row(second, 0.8), row(fast, 0.5), row(close, 0.99), row(now._replace(warps=4), None)]
    assert [candidate["weighted"] for candidate in ranked(rows, *KEY)] == [0.5, 0.8]
    tried_configs = []

    def fits(tried: Sequence[Candidate]) -> dict[Candidate, str | None]:
        tried_configs.extend(candidate.config for candidate in tried)
        return {candidate: "spills 8 bytes" if candidate.config == fast else None for candidate in tried}

    table = tuned(rows, "9.0", fits)
    assert tried_configs == [fast, second]
    assert table["9.0"][KEY] == second
    assert {**table["9.0"], KEY: now} == TABLE["9.0"]
    assert table["8.0"] == TABLE["8.0"]
    # In time for none of them, or without a time of the present entry, nothing changes.
    assert tuned(rows, "9.0", lambda tried: {}) == TABLE
    assert tuned(rows[1:], "9.0", fits) == TABLE


def test_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune_degradation_block.main([]) == 1
    assert capsys.readouterr().err == "error: no CUDA device; --compile-only needs none\n"


@pytest.mark.slow
def test_compile_only(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that spills is out, with the reason; the rest go on. In processes, as on a GPU machine."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    now = TABLE["9.0"]["grad_input", "half"]
    spills = Candidate("9.0", "grad_input", "half", now._replace(warps=4, registers=96), 2)
    ((ranking, resources, why),) = tuning_candidates.in_parallel(tuning_candidates.compiled, [spills], 1e18, 2)
    assert ranking == spills
    assert resources is None
    assert str(why).startswith("spills ")
    arguments = ["--compile-only", "--kernel", "forward", "--precision", "half", "--limit", "1", "--processes", "1"]
    assert tune_degradation_block.main([*arguments, "--json", str(tmp_path / "all.json")]) == 0
    assert config_table.config_text(TABLE["9.0"][KEY]) in capfd.readouterr().out
    (row,) = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert row["status"] == "compiled"
    assert row["resources"]["registers"].keys() == {"aligned", "odd"}
    assert row["resources"]["registers"]["aligned"] <= TABLE["9.0"][KEY].registers


if INTERPRETED:
    triton_interpreter.repair()

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    @pytest.mark.parametrize("kernel", KERNELS)
    def test_errors(kernel: str) -> None:
        """Candidates are launched and compared on the CPU as on a GPU; a wrong result is detected."""
        bench = Bench(1, 16, "cpu")
        for candidate in candidates("9.0", kernel, "tf32x3", reduced=True)[1:2]:
            assert bench.error(candidate, side=5) < 1e-5
        for inputs in bench._inputs.values():
            inputs["saved"].zero_()  # signs, and z, that are not those of this forward pass
        if kernel != "forward":
            assert bench.error(candidate, side=5) > 1e-3

else:

    @pytest.mark.slow
    def test_launches_in_the_interpreter() -> None:
        triton_interpreter.run(__file__, keyword="test_errors")


class Event:
    """A CUDA event of a device that needs a millisecond a call, and a host that needs two."""

    spin = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def query(self) -> bool:
        return Event.spin < 1 << 24  # passed already: the host was not ahead

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "Event") -> float:
        return 40.0


def test_the_host_is_ahead_before_a_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: setattr(Event, "spin", cycles))
    seen = []
    queue = measure.DeviceQueue(seen.append, [(1,), (2,)])
    assert queue.seconds(20) == 2e-3  # 40 ms over 20 calls
    assert queue.ahead
    assert queue.spin == 1 << 24
    assert len(seen) == 20 * 3
    assert seen[:4] == [1, 2, 1, 2]
    assert queue.calibrate(0.1) == 3
