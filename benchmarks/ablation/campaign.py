"""The ablation from beginning to end: checks, trainings, scores, report."""

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

from andfast.config.machine import resolve_device
from andfast.training.checkpoint import checkpoints
from andfast.training.run_folder import weights_path
from benchmarks import machine
from benchmarks.ablation import report
from benchmarks.ablation.damage import DAMAGES
from benchmarks.ablation.photographs import split_photographs
from benchmarks.ablation.rows import ROWS, SIZES
from benchmarks.ablation.score import (
    SOURCES,
    Tests,
    cached_interpolation,
    cached_score,
    curve_point,
    open_tests,
    pair_means,
)
from benchmarks.ablation.sheets import write_sheets
from benchmarks.ablation.train import (
    STAGE,
    Plan,
    check_rows,
    is_done,
    mean_lr_psnr,
    open_output,
    seconds_per_step,
    steps_done,
    train,
)


def run(options: argparse.Namespace) -> None:
    """Run an ablation; see :func:`benchmarks.ablation.__main__.parse` for the options.

    Raises:
        Stopped: a signal stopped a training; all is saved.
        OSError, ValueError, CheckpointError, RunLockedError: it cannot start or continue; the message says why.
    """
    plan, tests, notes = _prepare(options)
    results = _new_results(options, plan, tests, notes)
    bicubic = cached_score(plan.output / "scores" / "bicubic.json", None, [], tests)
    results["methods"]["bicubic"] = {"label": "bicubic, no training", "seeds": {"all": _entry(bicubic, tests)}}
    results["methods"]["start"] = {"label": "the start", "seeds": {}}
    for name in options.rows:
        settings = SIZES[plan.size].settings_of(name) | options.set.get("", {}) | options.set.get(name, {})
        results["methods"][name] = {"label": ROWS[name].label, "settings": settings, "seeds": {}}
    for seed in options.seeds:
        if options.report and plan.start_weights is None and not is_done(plan.config(seed, None)):
            continue
        start = _start(plan, seed, tests)
        results["methods"]["start"]["seeds"][str(seed)] = _entry(start, tests)
        for number, name in enumerate(options.rows, start=1):
            if options.report and not is_done(plan.config(seed, name)):
                continue
            _show(f"seed {seed}, row {number} of {len(options.rows)}: {name}, {plan.steps} steps")
            entry = _train_and_score(plan, seed, name, tests)
            _interpolate(options, plan, seed, name, tests, entry)
            entry["curve"] = [curve_point(0, start), *entry["curve"]]
            results["methods"][name]["seeds"][str(seed)] = entry
            _write(results, plan.output, options.json)
    first = options.seeds[0]
    heading = f"Ablation, size {plan.size}, seed {first}"
    weights = {
        name: weights_path(plan.folder(first, name), STAGE)
        for name in options.rows
        if results["methods"][name]["seeds"].get(str(first), {}).get("damage")
    }
    write_sheets(plan.output, weights, tests, heading)
    report.curves(results, plan.output / "curves.png")
    drawn = ["results.json", "results.md", "curves.png", "pairs.png", "damage.png"]
    if options.interpolate:
        report.trade_off(results, plan.output / "trade_off.png")
        drawn.append("trade_off.png")
    print(report.damage_summary(results["methods"], SOURCES), report.pairs_table(results["methods"]), sep="\n\n")
    print(f"{plan.output}: {', '.join(drawn)}")


def _prepare(options: argparse.Namespace) -> tuple[Plan, Tests, list[str]]:
    """Check everything that can be checked before the first training."""
    size = SIZES[options.size]
    scale = int(size.settings["scale"])
    patch = int(size.settings["data.patch_size"])
    if importlib.util.find_spec("matplotlib") is None:  # curves, and those of each training
        raise ValueError("matplotlib must be installed for the curves: pip install 'andfast[demo]'")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise FileNotFoundError(f"--json must be in an existing folder, was {options.json}")
    if options.start_weights is not None and not options.start_weights.is_file():
        raise FileNotFoundError(f"--start-weights must be a weights file, was {options.start_weights}")
    photographs = split_photographs(options.photos, min_size=patch, crop_size=size.test_crop, scale=scale)
    plan = Plan(
        options.output.resolve(),
        options.size,
        photographs,
        options.steps or size.steps,
        options.start_steps or size.start_steps,
        options.start_weights,
        options.device,
        options.set,
    )
    check_rows(plan, options.seeds, options.rows)
    tests, notes = open_tests(
        options.pairs,
        photographs.crops,
        crop_size=size.test_crop,
        scale=scale,
        niqe_parameters=options.niqe_parameters,
        device=resolve_device(options.device),
    )
    open_output(plan)
    for note in notes:
        _show(note)
    _show(f"{len(photographs.trained)} photographs to train on, {len(photographs.held_out)} held out, "
         f"{len(tests.listing.pairs)} real pairs")  # fmt: skip
    return plan, tests, notes


def _new_results(options: argparse.Namespace, plan: Plan, tests: Tests, notes: list[str]) -> dict[str, Any]:
    return {
        "format": 1,
        "size": plan.size,
        "settings": dict(SIZES[plan.size].settings),
        "steps": plan.steps,
        "start_steps": plan.start_steps if plan.start_weights is None else None,
        "seeds": options.seeds,
        "machine": machine.describe(),
        "protocol": tests.scorer.summary(),
        "pairs": {"chosen": tests.chosen, "reported": tests.reported},
        "held_out": list(plan.photographs.held_out),
        "sources": SOURCES,
        "conditions": {name: damage.description for name, damage in DAMAGES.items()},
        "notes": notes,
        "methods": {},
    }


def _start(plan: Plan, seed: int, tests: Tests) -> dict[str, Any]:
    """Train the start of a seed if there is none; its scores."""
    if plan.start_weights is None:
        _show(f"seed {seed}, start: {plan.start_steps} steps")
        config = plan.config(seed, None)
        if (failed := train(config, None)) is not None:
            raise ValueError(f"{config.output}: the start cannot be trained: {failed}")
    return cached_score(plan.output / f"seed-{seed}" / "scores" / "start.json", plan.start(seed), [], tests)


def _train_and_score(plan: Plan, seed: int, name: str, tests: Tests) -> dict[str, Any]:
    config = plan.config(seed, name)
    began, before = time.monotonic(), steps_done(config.output)
    failed = train(config, name)
    if steps_done(config.output) > before:
        _show(f"  trained in {time.monotonic() - began:.0f} s; scoring")
    weights = weights_path(config.output, STAGE)
    path = plan.output / f"seed-{seed}" / "scores" / f"{name}.json"
    try:
        entry = _entry(cached_score(path, weights, checkpoints(config.output), tests), tests)
    except ValueError as error:
        if failed is None:
            raise
        _show(f"  {failed}; no scores: {error}")
        return {"damage": {}, "pairs": {}, "curve": [], "failed": f"{failed}; no scores: {error}"}
    for source, description in SOURCES.items():
        _show(f"  {description}: unseen damage {entry['unseen'][source]:.2f}, clean LR {entry['clean'][source]:.2f} dB")
    entry["lr_psnr"] = mean_lr_psnr(config.output)
    seconds = seconds_per_step(config.output)
    if seconds is not None:
        entry["milliseconds_per_step"] = 1e3 * seconds
    if failed is not None:
        _show(f"  {failed}")
        entry["failed"] = failed
    return entry


def _interpolate(
    options: argparse.Namespace, plan: Plan, seed: int, name: str, tests: Tests, entry: dict[str, Any]
) -> None:
    """Add the scores of interpolated weights to a row's record; with --report those that are known."""
    if not options.interpolate or not entry["damage"]:
        return
    mixed = cached_interpolation(
        plan.output / f"seed-{seed}" / "interpolated" / f"{name}.json",
        weights_path(plan.folder(seed, name), STAGE),
        plan.start(seed),
        options.interpolate,
        tests,
        compute=not options.report,
    )
    if mixed is not None:
        entry["interpolated"] = mixed


def _entry(scores: dict[str, Any], tests: Tests) -> dict[str, Any]:
    """A method's record for one seed."""
    parts = {"chosen": tests.chosen, "reported": tests.reported, "all": tests.chosen + tests.reported}
    return {
        "unseen": scores["unseen"],
        "clean": scores["clean"],
        "damage": scores["damage"],
        "pairs": {part: pair_means(scores["pairs"], names) for part, names in parts.items()},
        "curve": scores["curve"],
    }


def _write(results: dict[str, Any], output: Path, copy: Path | None) -> None:
    report.write(output / "results.json", results)
    if copy is not None:
        report.write(copy, results)
    (output / "results.md").write_text(f"# Ablation\n\n{report.markdown(results)}\n", encoding="utf-8")


def _show(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
