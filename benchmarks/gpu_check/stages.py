"""The stages of gpu-check: the command of each, its time limit, and how its outcome is read."""

import glob
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
RATES = "rates.json"
"""The measured rates, which the suites then need not measure again."""
PROFILE = "profile.json"
PRODUCTS = ("tuning.json", "configs.py", PROFILE)
"""Files that stages leave in the scratch folder and that are copied to the results."""
PYTEST = ("-v", "--tb=short", "-W", "default")
"""Do not fail on warnings on unknown machines."""
PARTS = ("tests", "step", "profile", "ops", "tune", "sanitizer")
DEFAULT_PARTS = PARTS[:4]
"""The order is the order in which they run: what matters most first."""


class Skip(Exception):
    """A stage has nothing to do on this machine; the text is the reason."""


Verdict = tuple[str, str | None]


def by_code(run: Any, code: int, said: str) -> Verdict:
    """Passed if the process says so."""
    return ("passed", None) if code == 0 else ("failed", f"exit code {code}")


@dataclass(frozen=True)
class Stage:
    """One process of the check.

    Attributes:
        name, title: for the command line and the terminal.
        reserve: seconds that earlier stages leave for this one.
        limit: maximum run time in seconds.
        command: maps the run and the limit in seconds to the command; raises Skip where there is nothing to do.
        verdict: maps the run, the exit code and the output to ("passed", "failed" or "skipped", reason).
        environment: extra environment variables of the process.
        parts: the parts of the check that need this stage.
    """

    name: str
    title: str
    reserve: float
    limit: float
    command: Callable[[Any, float], list[str]]
    verdict: Callable[[Any, int, str], Verdict] = by_code
    environment: Callable[[Any], dict[str, str]] = lambda run: {}
    parts: tuple[str, ...] = PARTS


# ------------------------------------------------------------------------------------------------------- environment


def environment(run: Any, limit: float) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu_check.environment", str(run.scratch), str(ROOT / "wheels")]


def keep_machine(run: Any, code: int, said: str) -> Verdict:
    """Keep the machine's description, which the stage wrote."""
    if code:
        return "failed", said.strip().splitlines()[-1] if said.strip() else f"exit code {code}"
    run.machine = json.loads((run.scratch / "machine.json").read_text())
    if run.machine["device"] != "cuda" and not run.options.allow_cpu:
        return "failed", "torch finds no CUDA device; --allow-cpu tries the program without one"
    lacking = ", ".join(run.machine["missing"])
    return "passed", f"{run.machine['name']}" + (f"; not installed: {lacking}" if lacking else "")


# ------------------------------------------------------------------------------------------------------------- build


def build(run: Any, limit: float) -> list[str]:
    """The extension and, side by side, Triton's kernels into its cache."""
    command = [sys.executable, "-m", "benchmarks.gpu_check.build", "--seconds", f"{max(5.0, limit - 10):.0f}"]
    capability = run.machine.get("capability")
    return command if capability is None else [*command, "--architecture", capability]


def build_environment(run: Any) -> dict[str, str]:
    """Build for this GPU alone; without one, or without CUDA sources, for the CPU."""
    variables = {"ANDFAST_REQUIRE_EXT": "1", "MAX_JOBS": str(os.cpu_count() or 1)}
    if run.machine.get("capability") and list((ROOT / "csrc").rglob("*.cu")):
        capability = run.machine["capability"]
        return variables | {"ANDFAST_CUDA_ARCHS": "9.0a" if capability == "9.0" else capability}  # wgmma needs 9.0a
    return variables | {"ANDFAST_CPU_ONLY": "1"}


def rates(run: Any, limit: float) -> list[str]:
    quick = ["--quick"] if run.options.quick else []
    return [sys.executable, "-m", "benchmarks.roofline", "--device", "this", "--json", *quick]


def keep_rates(run: Any, code: int, said: str) -> Verdict:
    if code:
        return by_code(run, code, said)
    run.rates = json.loads(said[said.index("{\n") :])["rates"]
    (run.scratch / RATES).write_text(json.dumps(run.rates))
    gigabytes, bf16 = run.rates["bandwidth"] / 1e9, run.rates["matrix"]["bf16"] / 1e12
    return "passed", f"copy {gigabytes:.4g} GB/s, bf16 {bf16:.4g} TFLOP/s"


# ------------------------------------------------------------------------------------------------------------- tests


def tests(run: Any, limit: float) -> list[str]:
    """Tests marked gpu, last time's failures first; only from files that have some, as others need more packages."""
    marked = {path for path in (ROOT / "tests").rglob("*.py") if "mark.gpu" in path.read_text()}
    # A fixture of a folder's conftest.py may mark tests of the files next to it.
    files = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if {path, path.with_name("conftest.py")} & marked
    ]
    if not files:
        raise Skip("no test is marked gpu")
    command = [
        sys.executable,
        "-m",
        "pytest",
        *map(str, files),
        "-m",
        "gpu",
        *PYTEST,
        "--failed-first",
        "--durations=10",
    ]
    command += ["--continue-on-collection-errors", *(["--benchmark-disable"] if _have(run, "pytest_benchmark") else [])]
    if _have(run, "pytest_timeout"):  # a session that ends by itself prints its failures; a killed one does not
        # Counted from the start of each process of pytest-xdist, which takes seconds.
        command += ["--session-timeout", f"{max(10.0, limit - 15):.0f}"]
    return [*command, "-n", str(min(8, os.cpu_count() or 1))] if _have(run, "xdist") else command


def _have(run: Any, module: str) -> bool:
    installed = importlib.util.find_spec(module) is not None
    return installed or any((Path(folder) / module).is_dir() for folder in run.site())


def counted(run: Any, code: int, said: str) -> Verdict:
    """Of pytest: what its last line counts; no test that ran is no pass."""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", _last(said))}
    text = ", ".join(f"{number} {word}" for word, number in counts.items()) or "no tests ran"
    if code not in (0, 5) or counts.keys() & {"failed", "error", "errors"}:
        return "failed", f"exit code {code}: {text}"
    return ("passed" if counts.get("passed") else "skipped"), text


def _last(said: str) -> str:
    """pytest's line of counts."""
    lines = [line for line in said.splitlines() if re.search(r"\bin [\d.]+s\b", line)]
    return lines[-1] if lines else ""


def sanitizer(run: Any, limit: float) -> list[str]:
    script = BENCHMARKS / "gpu_check" / "sanitize_blur_pool.py"
    if run.machine.get("device") != "cuda":
        raise Skip("no CUDA device")
    if not script.is_file():
        raise Skip(f"there is no {script.name}")
    tool = find_sanitizer()
    if tool is None:
        raise Skip("compute-sanitizer is neither on the PATH nor in a CUDA toolkit")
    return [tool, "--tool", "memcheck", "--error-exitcode", "99", sys.executable, str(script)]


def find_sanitizer() -> str | None:
    """The tool's path, or None."""
    if path := shutil.which("compute-sanitizer"):
        return path
    homes = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), *sorted(glob.glob("/usr/local/cuda*"))]
    for home in filter(None, homes):
        for place in ("bin", "compute-sanitizer"):
            if (path := Path(home) / place / "compute-sanitizer").is_file():
                return str(path)
    return None


# -------------------------------------------------------------------------------------------------------- benchmarks


def suite(file: str) -> Callable[[Any, float], list[str]]:
    """Command of a benchmark suite."""

    def command(run: Any, limit: float) -> list[str]:
        path = BENCHMARKS / "suites" / file
        if not path.is_file():
            raise Skip(f"there is no benchmarks/suites/{file}")
        if not _have(run, "pytest_benchmark"):
            raise Skip("pytest-benchmark is not installed, and not in wheels/")
        return [sys.executable, "-m", "pytest", str(path), "--benchmark-columns=median", *PYTEST]

    return command


def tune(run: Any, limit: float) -> list[str]:
    if run.machine.get("device") != "cuda":
        raise Skip("no CUDA device")
    script = [sys.executable, "-m", "benchmarks.tuning.degradation_block", "--reduced"]
    files = ["--json", str(run.scratch / PRODUCTS[0]), "--table", str(run.scratch / PRODUCTS[1])]
    return [
        *script,
        "--seconds",
        f"{max(10.0, limit - 10):.0f}",
        *files,
        *(["--apply"] if run.options.apply_tuning else []),
    ]


def profile(run: Any, limit: float) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check.profile_step", "--json", str(run.scratch / PROFILE)]
    return [*command, "--seconds", f"{max(10.0, limit - 10):.0f}", *(["--quick"] if run.options.quick else [])]


def stage_of(figure: str) -> str:
    """The stage whose rows a figure of the summary is computed from."""
    for start, name in (("degradation", "degradation_block"), ("blur", "blur_pool"), ("rdb", "residual_dense_block")):
        if figure.startswith(start):
            return name
    return "step"


def _ops(name: str, reserve: float, limit: float) -> Stage:
    return Stage(name, "benchmarks", reserve, limit, suite(f"test_{name}.py"), counted, parts=("ops",))


STAGES = (
    Stage("environment", "device, versions, commit", 8, 60, environment, keep_machine),
    Stage("build", "the extension for this device, and Triton's kernels beside it", 45, 200, build,
          environment=build_environment),
    Stage("rates", "copy bandwidth and matrix rate", 8, 45, rates, keep_rates, parts=("step", "ops", "profile")),
    Stage("tests", "tests marked gpu", 90, 100, tests, counted, parts=("tests",)),
    Stage("step", "whole training steps", 70, 260, suite("test_step.py"), counted, parts=("step",)),
    Stage("profile", "kernels of a step by group, host against device", 20, 120, profile, parts=("profile",)),
    _ops("residual_dense_block", 10, 70),
    _ops("degradation_block", 17, 160),
    _ops("upsampled_convolution", 6, 60),
    _ops("blur_pool", 6, 80),
    _ops("ascent", 6, 60),
    _ops("mean_distance", 4, 60),
    Stage("tune", "configurations of the degradation block, reduced", 60, 240, tune, parts=("tune",)),
    Stage("sanitizer", "compute-sanitizer memcheck over the CUDA extension", 20, 120, sanitizer,
          environment=lambda run: {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, parts=("sanitizer",)),
)  # fmt: skip


def of_parts(parts: Sequence[str], tune_first: bool = False) -> list[Stage]:
    """The stages that these parts need; with ``tune_first``, tuning runs before what it makes faster."""
    chosen = [stage for stage in STAGES if set(stage.parts) & set(parts)]
    if tune_first:
        chosen.sort(key=lambda stage: (stage.parts != PARTS, stage.name != "tune"))
    return chosen
