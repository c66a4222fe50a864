"""Measured rows as Markdown: tables by group, figures against their targets, docs/results.md."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation import report as ablation
from benchmarks.report import profile, summary

ROOT = Path(__file__).resolve().parents[2]

RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
SPEED_MARKERS = ("<!-- speed: begin -->", "<!-- speed: end -->")
NAMES = ("implementation", "variant")

Row = dict[str, Any]
Results = dict[str, Any]


# ----------------------------------------------------------------------------------------------------------- reading


def load(path: Path) -> Results:
    """{"machine", "rates", "rows"} of a file; rows have group, name, min, median, rounds, passed and extra_info.

    Raises:
        ValueError: the file is neither pytest-benchmark's JSON nor a results.json.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(contents, dict) and "rows" in contents:
        return contents
    if not (isinstance(contents, dict) and "benchmarks" in contents):
        raise ValueError(f"{path} must be pytest-benchmark's JSON or a results.json of make gpu-check")
    rows = [
        {"group": entry["group"], "name": entry["name"], "passed": True, "extra_info": entry["extra_info"]}
        | {key: entry["stats"][key] for key in ("min", "median", "mean", "stddev", "rounds")}
        for entry in contents["benchmarks"]
    ]
    return collect(rows, contents["machine_info"].get("andfast", {}))


def collect(rows: Iterable[Row], machine: dict[str, Any]) -> Results:
    """Results of rows as they were measured; the machine's rates, which each row names, are kept once."""
    rows = [dict(row, extra_info=dict(row["extra_info"])) for row in rows]
    rates = [row["extra_info"].pop("rates") for row in rows if row["extra_info"].get("rates")]
    return {"machine": machine, "rates": rates[0] if rates else None, "rows": rows}


# ------------------------------------------------------------------------------------------------------------ tables

Column = tuple[str, Callable[[Row], object]]


def _extra(key: str, factor: float = 1.0, form: str = ".3g") -> Callable[[Row], object]:
    def cell(row: Row) -> object:
        value = row["extra_info"].get(key)
        return None if value is None else format(factor * value, form)

    return cell


def _error(row: Row) -> object:
    value = row["extra_info"].get("error", row["extra_info"].get("loss_error"))
    return None if value is None else f"{value:.1e}"


COLUMNS: Sequence[Column] = (
    ("median, ms", lambda row: f"{1e3 * row['median']:.4g}"),
    ("rounds", lambda row: row["rounds"]),
    ("error", _error),
    ("GB/s", _extra("gb_per_s", form=".4g")),
    ("TFLOP/s", _extra("tflop_per_s")),
    ("roofline, ms", _extra("roofline_seconds", 1e3)),
    ("of roofline", _extra("fraction_of_roofline", form=".1%")),
    ("peak memory, MB", _extra("peak_memory_bytes", 1e-6, ".4g")),
    ("images/s", _extra("images_per_second", form=".4g")),
    ("over plain step", _extra("overhead", form=".3f")),
    ("TFLOP/s of the step", _extra("flops_per_second", 1e-12, ".4g")),
    ("peak memory, GB", _extra("peak_memory", 1e-9)),
    ("crops/s", _extra("crops_per_second", form=".4g")),
    ("pictures/s", _extra("pictures_per_second", form=".4g")),
)


def title(row: Row) -> str:
    """Name of a row within its group: the implementation or variant, else the test's parameters."""
    for key in NAMES:
        if key in row["extra_info"]:
            return str(row["extra_info"][key])
    return str(row["name"].partition("[")[2].rstrip("]") or row["name"])


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table; None is an empty cell."""
    cells = [["" if cell is None else str(cell) for cell in line] for line in [header, *lines]]
    cells.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def tables(results: Results) -> str:
    """One table a group, the fastest row first; columns that no row of a group has are left out."""
    groups: dict[str, list[Row]] = {}
    for row in results["rows"]:
        groups.setdefault(row["group"] or "other", []).append(row)
    blocks = []
    for group, rows in groups.items():
        rows.sort(key=lambda row: row["median"])
        columns = [(name, cell) for name, cell in COLUMNS if any(cell(row) is not None for row in rows)]
        header = ["", "times the fastest", *(name for name, _ in columns)]
        lines = [
            [
                title(row) + ("" if row.get("passed", True) else " (FAILED)"),
                f"{row['median'] / rows[0]['median']:.2f}",
                *(cell(row) for _, cell in columns),
            ]
            for row in rows
        ]
        blocks.append(f"### {group}\n\n{table(header, lines)}")
    return "\n\n".join(blocks) or "No rows were measured."


def machine_text(results: Results) -> str:
    """Where and with what the rows were measured."""
    machine, rates = results["machine"], results.get("rates")
    packages = ", ".join(f"{name} {number}" for name, number in machine.get("packages", {}).items() if number)
    lines = [
        f"- device: {machine.get('name', 'unknown')}, driver {machine.get('driver')}, CUDA {machine.get('cuda')}",
        f"- commit: {machine.get('commit', 'unknown')}",
        f"- Python {machine.get('python')}, {packages}",
    ]
    if rates:
        matrix = ", ".join(f"{name} {rate / 1e12:.4g}" for name, rate in rates["matrix"].items())
        lines.append(
            f"- {rates['source']}: copy {rates['bandwidth'] / 1e9:.4g} GB/s; matrix products, TFLOP/s: {matrix}"
        )
    return "\n".join(lines)


def figures_table(contents: dict[str, Any]) -> str:
    """The figures of a summary.json against their targets."""
    lines = []
    for name, figure in summary.FIGURES.items():
        value = contents.get(name)
        state = contents["reasons"].get(name, "not measured") if value is None else _verdict(name, value)
        lines.append(
            [f"`{name}`", None if value is None else f"{value:.3g}", f"{figure.bound} {figure.target:g}", state]
        )
    return table(["figure", "measured", "target on an H100 or H200", ""], lines)


def _verdict(name: str, value: float) -> str:
    return "met" if summary.met(name, value) else "not met"


def gaps_table(results: Results) -> str | None:
    """Parts of the step beside their floors; None where no step of the counted networks was measured."""
    if not any(row["extra_info"].get("parts") for row in results["rows"]):
        return None
    from benchmarks.report.gaps import gaps  # noqa: PLC0415  # torch is slow to import, and most pages do without

    contents = gaps(results)
    lines = [
        [f"{entry['variant']}, {entry['step']} {entry['stage']}", entry["part"], f"{1e3 * entry['seconds']:.4g}"]
        + (
            [f"{1e3 * entry['floor']:.4g}", f"{entry['seconds'] / entry['floor']:.2f}"]
            if entry["floor"]
            else [None, None]
        )
        for entry in contents
    ]
    return table(["step", "part", "median, ms", "floor, ms", "times the floor"], lines) if contents else None


def stages_table(stages: dict[str, dict[str, Any]]) -> str:
    lines = [[name, entry["status"], f"{entry['seconds']:.0f}", entry.get("reason")] for name, entry in stages.items()]
    return table(["stage", "status", "seconds", ""], lines)


def gpu_report(contents: dict[str, Any], results: Results, profiles: Sequence[dict[str, Any]] = ()) -> str:
    """The report.md of a run of gpu-check, from its summary.json, results and profiled steps."""
    meanings = "\n".join(f"- `{name}`: {figure.meaning}" for name, figure in summary.FIGURES.items())
    parts = [
        f"# {results['machine'].get('name', 'unknown device')}",
        "Written by `make gpu-check`."
        + " Tiny sizes (`--quick`): the numbers mean nothing." * bool(contents.get("quick")),
        machine_text(results),
        "## Figures",
        figures_table(contents),
        meanings,
        *(["## Stages", stages_table(contents["stages"])] if contents["stages"] else []),
        *(["## The step against its floors", floors] if (floors := gaps_table(results)) else []),
        *(["## Kernels of a step", profile.markdown(profiles)] if profiles else []),
        "## Rows",
        tables(results),
    ]
    return "\n\n".join(parts) + "\n"


def steps_table(results: Results) -> str | None:
    """Whole steps by variant and stage: plain and AND step, their ratio, peak memory; None where none was measured."""
    cells: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in results["rows"]:
        extra = row["extra_info"]
        if row.get("passed", True) and "step" in extra and "variant" in extra:
            cells.setdefault((extra["stage"], extra["variant"], extra["batch"]), {})[extra["step"]] = row
    if not cells:
        return None
    lines = []
    for (stage, variant, batch), steps in cells.items():
        milliseconds = {kind: f"{1e3 * row['median']:,.0f}" for kind, row in steps.items()}
        last = steps.get("and", steps.get("plain"))
        assert last is not None
        overhead, peak = last["extra_info"].get("overhead"), last["extra_info"].get("peak_memory")
        lines.append(
            [
                *(stage, variant, batch, milliseconds.get("plain"), milliseconds.get("and")),
                None if overhead is None else f"{overhead:.2f}",
                None if peak is None else f"{peak / 1e9:.1f}",
            ]
        )
    header = ["stage", "variant", "batch", "plain step, ms", "AND step, ms", "AND over plain", "peak, GB"]
    return table(header, lines)


def docs_page(folder: Path = RESULTS) -> str:
    """docs/results.md, from all folders of committed results."""
    parts = [
        "# Results",
        "Measured figures and rows, generated by `make docs-results` from the JSON under `benchmarks/results/`, which "
        "`make gpu-check` and `python -m benchmarks.ablation` write. Nothing here is typed by hand. Targets are for "
        "batch 48, HR 256, 23 blocks, bf16.",
    ]
    summaries = sorted(folder.glob("*/summary.json"))
    if not summaries:
        parts += [
            "**Not measured yet.** No run on a GPU has been committed. On a machine with an NVIDIA GPU of compute "
            "capability 8.0 or newer, torch with CUDA and nvcc, run `make gpu-check` (at most five minutes, no "
            "network), commit the folder that it writes, and run `make docs-results`.",
            table(
                ["figure", "target on an H100 or H200", "meaning"],
                [
                    [f"`{name}`", f"{figure.bound} {figure.target:g}", figure.meaning]
                    for name, figure in summary.FIGURES.items()
                ],
            ),
        ]
    for file in summaries:
        figures, results = json.loads(file.read_text()), load(file.with_name("results.json"))
        profiles = _profiles(file.parent)
        parts += [
            f"## {results['machine'].get('name', file.parent.name)}",
            machine_text(results),
            *([steps] if (steps := steps_table(results)) else []),
            figures_table(figures),
            "\n".join(f"- `{name}`: {figure.meaning}" for name, figure in summary.FIGURES.items()),
            *(["### The step against its floors", floors] if (floors := gaps_table(results)) else []),
            *([profile.markdown(profiles)] if profiles else []),
            f"All rows: [report](../benchmarks/results/{file.parent.name}/report.md).",
        ]
    for file in sorted(folder.glob("ablation-*.json")):
        results = ablation.read(file)
        parts += [f"## Ablation, size {results['size']}", ablation.markdown(results)]
    return "\n\n".join(parts) + "\n"


def _profiles(folder: Path) -> list[dict[str, Any]]:
    file = folder / "profile.json"
    return list(json.loads(file.read_text())["profiles"]) if file.is_file() else []


def speed_section(folder: Path = RESULTS) -> str:
    """The table of measured steps in README.md, between its two markers."""
    blocks = []
    for file in sorted(folder.glob("*/summary.json")):
        results = load(file.with_name("results.json"))
        if steps := steps_table(results):
            machine = results["machine"]
            packages = machine.get("packages", {})
            caption = f"{machine.get('name')}, torch {packages.get('torch')}, commit {machine.get('commit', '')[:7]}"
            blocks.append(f"{caption}; median of whole steps, HR 256, 23 blocks, bf16:\n\n{steps}")
    return "\n\n".join(blocks) or "No run on a GPU has been committed."


def with_speed_section(readme: str, section: str) -> str:
    """README.md's text with the section between its markers replaced.

    Raises:
        ValueError: the text must hold each marker once.
    """
    begin, end = SPEED_MARKERS
    if readme.count(begin) != 1 or readme.count(end) != 1:
        raise ValueError(f"README.md must hold {begin} and {end} once")
    before, _, rest = readme.partition(begin)
    return f"{before}{begin}\n{section}\n{end}{rest.partition(end)[2]}"
