"""The stages of gpu-check: what each runs, how long it may take, and what its end means."""

import glob
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
RATES = "rates.json"
"""The measured rates, which the suites then need not measure again."""
PRODUCTS = ("tuning.json", "configs.py")
"""Files that stages leave in the scratch folder and that belong to the results."""
PYTEST = ("-p", "no:cacheprovider", "-v", "--tb=short", "-W", "default")
"""A warning, which is an error where the tests are developed, is none on a machine that nobody knows."""


class Skip(Exception):
    """A stage has nothing to do here; says why."""


Verdict = tuple[str, str | None]


def by_code(run: Any, code: int, said: str) -> Verdict:
    """Passed if the process says so."""
    return ("passed", None) if code == 0 else ("failed", f"exit code {code}")


@dataclass(frozen=True)
class Stage:
    """One part of the check.

    Attributes:
        name, title: for the command line and the terminal.
        reserve: seconds that earlier stages leave to this one.
        limit: seconds that it gets at most.
        command: the process, given the run and its limit in seconds; raises Skip where there is nothing to do.
        verdict: ("passed", "failed" or "skipped", reason) of the run, the exit code and the output.
        environment: further variables of the process.
    """

    name: str
    title: str
    reserve: float
    limit: float
    command: Callable[[Any, float], list[str]]
    verdict: Callable[[Any, int, str], Verdict] = by_code
    environment: Callable[[Any], dict[str, str]] = lambda run: {}


# ------------------------------------------------------------------------------------------------------- environment


def environment(run: Any, limit: float) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu_check.environment", str(run.scratch), str(ROOT / "wheels")]


def keep_machine(run: Any, code: int, said: str) -> Verdict:
    """Keep the machine's description, which the stage wrote."""
    if code:
        return "failed", said.strip().splitlines()[-1] if said.strip() else f"exit code {code}"
    run.machine = json.loads((run.scratch / "machine.json").read_text())
    if run.machine["device"] != "cuda" and not run.given.allow_cpu:
        return "failed", "torch finds no CUDA device; --allow-cpu tries the program without one"
    lacking = ", ".join(run.machine["missing"])
    return "passed", f"{run.machine['name']}" + (f"; not installed: {lacking}" if lacking else "")


# ------------------------------------------------------------------------------------------------------------- build


def build(run: Any, limit: float) -> list[str]:
    return [sys.executable, "setup.py", "build_ext", "--inplace"]


def build_environment(run: Any) -> dict[str, str]:
    """For this GPU alone; without one, or without CUDA sources, for the CPU."""
    found = {"ANDFAST_REQUIRE_EXT": "1", "MAX_JOBS": str(os.cpu_count() or 1)}
    if run.machine.get("capability") and list((ROOT / "csrc").rglob("*.cu")):
        return found | {"ANDFAST_CUDA_ARCHS": run.machine["capability"]}
    return found | {"ANDFAST_CPU_ONLY": "1"}


def kernels(run: Any, limit: float) -> list[str]:
    """Into Triton's cache, for this GPU; a newer one than the table's compiles its own when they are launched."""
    if not run.machine.get("capability"):
        raise Skip("no CUDA device")
    from andfast.kernels.degradation_block.configs import TABLE  # noqa: PLC0415

    if run.machine["capability"] not in TABLE:
        raise Skip(f"kernels are compiled ahead for {', '.join(TABLE)}, this GPU is {run.machine['capability']}")
    return [
        sys.executable,
        "-m",
        "benchmarks.gpu_check.compile_kernels",
        "--architecture",
        run.machine["capability"],
        "--seconds",
        f"{max(5.0, limit - 10):.0f}",
    ]


def rates(run: Any, limit: float) -> list[str]:
    quick = ["--quick"] if run.given.quick else []
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
    """The tests marked gpu; only files that hold some, as others may want packages that are not here."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    if not files:
        raise Skip("no test is marked gpu")
    command = [sys.executable, "-m", "pytest", *map(str, files), "-m", "gpu", *PYTEST]
    command += ["--continue-on-collection-errors", *(["--benchmark-disable"] if _have(run, "pytest_benchmark") else [])]
    # Compilation of kernels is most of it.
    return [*command, "-n", "2"] if _have(run, "xdist") else command


def _have(run: Any, module: str) -> bool:
    found = importlib.util.find_spec(module) is not None
    return found or any((Path(folder) / module).is_dir() for folder in run.site())


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
    if found := shutil.which("compute-sanitizer"):
        return found
    homes = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), *sorted(glob.glob("/usr/local/cuda*"))]
    for home in filter(None, homes):
        for place in ("bin", "compute-sanitizer"):
            if (path := Path(home) / place / "compute-sanitizer").is_file():
                return str(path)
    return None


# -------------------------------------------------------------------------------------------------------- benchmarks


def suite(file: str) -> Callable[[Any, float], list[str]]:
    """The command of one file of benchmarks."""

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
        *(["--apply"] if run.given.apply_tuning else []),
    ]


def stage_of(figure: str) -> str:
    """The stage whose rows a figure of the summary is made of."""
    for start, name in (("degradation", "degradation_block"), ("blur", "blur_pool"), ("rdb", "residual_dense_block")):
        if figure.startswith(start):
            return name
    return "step"


STAGES = (
    Stage("environment", "device, versions, commit", 15, 60, environment, keep_machine),
    Stage("build", "the extension, in place, for this device", 60, 200, build, environment=build_environment),
    Stage("kernels", "Triton's kernels compiled in parallel", 35, 90, kernels),
    Stage("rates", "copy bandwidth and matrix rate", 15, 45, rates, keep_rates),
    Stage("tests", "tests marked gpu", 80, 200, tests, counted),
    Stage("degradation_block", "benchmarks", 67, 160, suite("test_degradation_block.py"), counted),
    Stage("blur_pool", "benchmarks", 30, 80, suite("test_blur_pool.py"), counted),
    Stage("residual_dense_block", "benchmarks", 25, 70, suite("test_residual_dense_block.py"), counted),
    Stage("upsampled_convolution", "benchmarks", 15, 60, suite("test_upsampled_convolution.py"), counted),
    Stage("ascent", "benchmarks", 20, 60, suite("test_ascent.py"), counted),
    Stage("mean_distance", "benchmarks", 10, 60, suite("test_mean_distance.py"), counted),
    Stage("step", "benchmarks", 100, 260, suite("test_step.py"), counted),
    Stage(
        "sanitizer", "compute-sanitizer memcheck over the CUDA extension", 20, 60, sanitizer,
        environment=lambda run: {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    ),
    Stage("tune", "configurations of the degradation block, reduced", 40, 90, tune),
)  # fmt: skip


def ordered(tune_first: bool) -> list[Stage]:
    """The stages; with ``tune_first``, tuning comes before what it makes faster."""
    stages = list(STAGES)
    if tune_first:
        first = next(place for place, stage in enumerate(stages) if stage.name == "tests")
        stages.insert(first, stages.pop())
    return stages
