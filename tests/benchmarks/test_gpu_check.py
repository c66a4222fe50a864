"""-m benchmarks.gpu_check without a GPU: stages that fail or hang, the budget, the summary, and a run on the CPU."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine
from benchmarks.gpu_check import __main__ as command_line
from benchmarks.gpu_check import environment, profile_step, runner, stages
from benchmarks.gpu_check.runner import Run
from benchmarks.gpu_check.stages import STAGES, Skip, Stage, by_code
from benchmarks.report import summary
from benchmarks.suites import step_variants

ROOT = Path(__file__).resolve().parents[2]


def python(name: str, program: str, **options: Any) -> Stage:
    """A stage that runs a program."""
    options = {"reserve": 1.0, "limit": 30.0} | options
    return Stage(name, "a test", command=lambda run, limit: [sys.executable, "-c", program], **options)


def skipping(run: Run, limit: float) -> list[str]:
    raise Skip("nothing to do")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = command_line.parse(["--output", str(tmp_path / "out"), "--budget", "60"])
    return Run(options, scratch)


ROW = {"group": "g", "name": "test_a[x]", "min": 1.0, "median": 1.0, "mean": 1.0, "stddev": 0.0, "rounds": 3}
LINE = json.dumps(ROW | {"extra_info": {}}) + "\n"
APPEND = f"import os; open(os.environ['ANDFAST_BENCH_ROWS'], 'a').write({LINE!r})"


def test_a_stage_that_fails_hangs_or_cannot_start_does_not_keep_others_from_running(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    hanging = f"import subprocess, time; {APPEND}; print('child', subprocess.Popen(['sleep', '600']).pid, flush=True)"
    hanging += "; time.sleep(600)"
    chosen = [
        python("fails", "print('the cause'); raise SystemExit(3)"),
        python("hangs", hanging, limit=3.0),
        Stage("absent", "a test", 1, 30, lambda run, limit: ["/no/such/program"]),
        Stage("skips", "a test", 1, 30, skipping),
        python("unreadable", "print('no JSON')", verdict=stages.keep_rates),
        python("works", APPEND),
    ]
    runner.run_all(chosen, run)
    outcomes = {name: (outcome.status, outcome.reason) for name, outcome in run.outcomes.items()}
    assert outcomes["fails"] == ("failed", "exit code 3")
    assert outcomes["hangs"] == ("timed out", "killed after 3 s")
    assert outcomes["absent"][0] == "failed"
    assert "/no/such/program" in str(outcomes["absent"][1])
    assert outcomes["skips"] == ("skipped", "nothing to do")
    assert outcomes["unreadable"][0] == "failed"
    assert outcomes["works"] == ("passed", None)
    assert "    | the cause" in capfd.readouterr().out
    assert run.output is not None
    # Rows and output of a killed stage are kept.
    record = json.loads((run.output / "results.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["test_a[x]"] * 2
    assert "the cause" in (run.output / "log.txt").read_text()
    child = re.search(r"child (\d+)", (run.output / "log.txt").read_text())
    assert child
    state = Path(f"/proc/{child[1]}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert not list(run.output.glob(".*"))


def test_the_budget_is_kept_and_what_was_left_out_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "WRITING", 1.0)
    monkeypatch.setattr(runner, "MIN_SECONDS", 1.0)
    run.options.budget = 5.0
    begun = time.monotonic()
    runner.run_all([python("first", "import time; time.sleep(60)"), python("second", ""), python("third", "")], run)
    assert time.monotonic() - begun < run.options.budget
    assert run.outcomes["first"].status == "timed out"
    run.options.budget = 1.0
    runner.run_all([python("fourth", "")], run)
    assert run.outcomes["fourth"].as_dict() | {"seconds": 0} == {
        "status": "skipped",
        "seconds": 0,
        "reason": "no time left of 1 s",
    }


def test_later_stages_keep_their_reserves(run: Run) -> None:
    """The limits that stages get, as they see them."""
    seen = {}

    def command(name: str) -> Any:
        def note(run: Run, limit: float) -> list[str]:
            seen[name] = limit
            raise Skip("noted")

        return note

    chosen = [Stage(name, "", 20, 100, command(name)) for name in "abc"]
    run.options.budget = 100 + runner.WRITING
    runner.run_all(chosen, run)
    assert [round(seen[name]) for name in "abc"] == [60, 80, 100]
    run.options.budget = 30 + runner.WRITING + (time.monotonic() - run.begun)  # half of the reserves
    runner.run_all(chosen, run)
    assert [round(seen[name]) for name in "abc"] == [10, 15, 30]


def test_the_reserves_fit_into_the_budget() -> None:
    default = stages.of_parts(stages.DEFAULT_PARTS)
    assert sum(stage.reserve for stage in default) + runner.WRITING <= runner.BUDGET <= 300
    assert all(stage.reserve <= stage.limit for stage in STAGES)
    assert {stages.stage_of(name) for name in summary.FIGURES} <= {stage.name for stage in STAGES}
    names = [stage.name for stage in stages.of_parts(["tune", "ops"], tune_first=True)]
    assert names.index("build") < names.index("tune") < names.index("degradation_block")
    assert [stage.name for stage in stages.of_parts(["tests"])] == ["environment", "build", "tests"]
    assert sorted(stage.name for stage in stages.of_parts(stages.PARTS)) == sorted(stage.name for stage in STAGES)
    assert len({*stages.PRODUCTS, "summary.json", "results.json", "report.md", "roofline.png", "log.txt"}) <= 9


def test_tests_end_before_they_are_killed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_have", lambda *_: True)
    (stage,) = (stage for stage in STAGES if stage.name == "tests")
    command = stage.command(run, stage.limit)
    assert stage.limit - float(command[command.index("--session-timeout") + 1]) >= 15
    assert any(path.endswith("test_opcheck.py") for path in command)


def test_summary_names_every_figure(run: Run) -> None:
    run.outcomes["step"] = runner.Outcome("timed out", 3.0, "killed after 3 s")
    runner.write(run)
    assert run.output is not None
    record = json.loads((run.output / "summary.json").read_text())
    for name in summary.FIGURES:
        assert record[name] is None
        assert record["reasons"][name]
    assert record["reasons"]["overhead_exact_l1"].endswith("(its stage: timed out, killed after 3 s)")
    assert record["commit"] == "unknown"
    assert {"copy_bandwidth", "matrix_rate", "versions", "gpu", "stages"} <= record.keys()
    assert "killed after 3 s" in (run.output / "report.md").read_text()


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (0, "== 3 passed, 2 skipped in 4.10s ==", ("passed", "3 passed, 2 skipped")),
        (0, "39 skipped in 1.00s", ("skipped", "39 skipped")),
        (1, "1 failed, 3 passed in 4.10s", ("failed", "exit code 1: 1 failed, 3 passed")),
        (5, "no tests ran in 0.10s", ("skipped", "no tests ran")),
        (2, "1 passed, 1 error in 0.10s", ("failed", "exit code 2: 1 passed, 1 error")),
        (-9, "", ("failed", "exit code -9: no tests ran")),
    ],
)
def test_what_pytest_said(run: Run, code: int, said: str, expected: tuple[str, str]) -> None:
    assert stages.counted(run, code, said) == expected


def test_stages_without_what_they_need_say_so(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run.machine = {"device": "cpu", "capability": None}
    for name in ("sanitizer", "tune"):
        (stage,) = (stage for stage in STAGES if stage.name == name)
        with pytest.raises(Skip, match="no CUDA device"):
            stage.command(run, 10)
    with pytest.raises(Skip, match=r"there is no benchmarks/suites/no\.py"):
        stages.suite("no.py")(run, 10)
    monkeypatch.setattr(stages, "BENCHMARKS", tmp_path)
    (tmp_path / "gpu_check").mkdir()
    (tmp_path / "gpu_check" / "sanitize_blur_pool.py").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(stages.glob, "glob", lambda pattern: [])
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    run.machine = {"device": "cuda"}
    with pytest.raises(Skip, match="compute-sanitizer is neither on the PATH"):
        stages.sanitizer(run, 10)
    tool = tmp_path / "cuda" / "bin" / "compute-sanitizer"
    tool.parent.mkdir(parents=True)
    tool.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert stages.sanitizer(run, 10)[0] == str(tool)


def test_build_is_for_the_devices_capability(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    (tmp_path / "csrc").mkdir()
    run.machine = {"capability": "9.0"}
    assert stages.build_environment(run)["ANDFAST_CPU_ONLY"] == "1"  # there are no CUDA sources
    (tmp_path / "csrc" / "a.cu").touch()
    assert stages.build_environment(run)["ANDFAST_CUDA_ARCHS"] == "9.0a"
    run.machine = {"capability": None}
    assert stages.build_environment(run)["ANDFAST_CPU_ONLY"] == "1"


def test_wheels_are_taken_for_what_is_missing(tmp_path: Path) -> None:
    for name in (
        "numpy-9.9-py3-none-any.whl",
        "no_such_thing-1.0-py3-none-any.whl",
        "setuptools-81.0.0-py3-none-any.whl",
    ):
        (tmp_path / name).touch()
    assert [path.name for path in environment.missing_wheels(tmp_path)] == ["no_such_thing-1.0-py3-none-any.whl"]


def test_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert machine.commit() == "unknown"
    (tmp_path / machine.COMMIT_FILE).write_text("abc123\n")
    assert machine.commit() == "abc123"
    assert machine.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "steps"], "--part must be among tests, step"),
        (["--budget", "0"], "--budget must be a positive number"),
        (["--stage-limit", "nan"], "--stage-limit must be a positive number"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line.parse(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def check(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments]
    # pytest-benchmark measures nothing in a worker of pytest-xdist.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_a_run_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    names = ("environment", "rates", "blur_pool", "tune")
    monkeypatch.setattr(stages, "STAGES", [stage for stage in STAGES if stage.name in names])
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)  # pytest-benchmark measures nothing in a worker of pytest-xdist
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert command_line.main(["--allow-cpu", "--quick", "--part", "ops,tune", "--output", str(out)]) == 0
    assert "skipped: tune" in capsys.readouterr().out
    record = json.loads((out / "summary.json").read_text())
    assert record["quick"] is True
    assert record["rows"] > 10
    assert record["rows_failed"] == 0
    assert record["blur_pool_bandwidth_forward"] > 0
    assert record["copy_bandwidth"] > 0
    assert record["stages"]["tune"]["reason"] == "no CUDA device"
    assert record["overhead_exact_gan"] is None
    page = (out / "report.md").read_text()
    assert "### blur_pool x4 forward, (2, 3, 32, 32) bf16 nhwc" in page
    assert "depthwise convolution" in page
    assert "the numbers mean nothing" in page
    assert (out / "roofline.png").stat().st_size > 10_000


def test_a_profiled_step(tmp_path: Path) -> None:
    variant = next(variant for variant in step_variants.VARIANTS if variant.name == "naive bf16")
    record = profile_step.profile_step(step_variants.Step(variant, step_variants.TINY, "net", "cpu"), "plain", "cpu")
    assert (record["variant"], record["step"], record["stage"], record["batch"]) == ("naive bf16", "plain", "net", 2)
    assert record["launches"] == sum(group["launches"] for group in record["groups"]) > 100
    assert record["device_seconds"] == pytest.approx(sum(group["seconds"] for group in record["groups"]))
    assert 0 < record["host_seconds"] <= record["seconds"]


@pytest.mark.slow
def test_without_a_gpu_nothing_is_written(tmp_path: Path) -> None:
    done = check("--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr == "error: environment: torch finds no CUDA device; --allow-cpu tries the program without one\n"
    assert not (tmp_path / "out").exists()


def test_by_code(run: Run) -> None:
    assert by_code(run, 0, "") == ("passed", None)
    assert by_code(run, 99, "") == ("failed", "exit code 99")
