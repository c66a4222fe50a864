"""The gallery of one photograph as files: settings in, gallery.png and gallery.json out."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from andfast import __version__
from andfast.adversary import Ball
from andfast.config.machine import resolve_device
from andfast.config.schema import TrainConfig
from andfast.data.images import UnusableImageError, decode
from andfast.diagnosis.machine import gigabytes, host_memory
from andfast.files import atomic_file, check_writable
from andfast.gallery.cases import Case, Degrader, configuration_lines, cut
from andfast.gallery.sheet import Cell, gallery_sheet
from andfast.nn import RRDBNet
from andfast.nn.interpolation_start import start_as_interpolation
from andfast.nn.weights import generator_from_weights
from andfast.training.frozen_attack import build_frozen_attack, check_precision, read_attack_settings, target_note

_FILES = ("gallery.png", "gallery.json")
_BYTES_A_PIXEL = 260  # of HR and for a channel of F, as measured on crops of 64 to 256 with 64 channels


def run(options: argparse.Namespace, settings: Sequence[str]) -> str:
    """Degrade a photograph as the command line of :mod:`andfast.degrade` says.

    Returns:
        A text for the terminal: a table, the configuration lines that were asked for, and the files.

    Raises:
        ValueError: an option, a setting, the photograph or the weights cannot be used.
        OSError: a file cannot be read or written.
    """
    _check(options)
    generator, origin = _generator(options.weights)
    config = read_attack_settings(options.config, settings, generator.scale)
    degrader = _degrader(options, config, generator)
    adversary = degrader.attack.settings
    cases = list(_with_progress(degrader, options))
    record: dict[str, Any] = {
        "image": str(options.image),
        "hr_size": list(degrader.hr.shape[2:]),
        "generator": origin,
        "scale": generator.scale,
        "seed": options.seed,
        "precision": options.precision,
        "device": str(degrader.hr.device),
        "adversary": {
            "radii": dict(zip(adversary.ball.names, adversary.ball.radii, strict=True)),
            "patch_size": adversary.patch_size,
            "joint": adversary.ball.joint,
            "steps": adversary.steps,
            "step_size": adversary.step_size,
            "channels": adversary.channels,
        },
        "cases": [_finite(case.numbers()) for case in cases],
    }
    text = [f"G: {origin}", *target_note(config), _table(cases)]
    if options.target_psnr is not None:
        record["calibration"] = _calibrate(degrader, options, text)
    record["versions"] = {"andfast": __version__, "torch": torch.__version__}
    options.output.mkdir(parents=True, exist_ok=True)
    _draw(options.output / _FILES[0], cases, degrader, options)
    with atomic_file(options.output / _FILES[1]) as file:
        file.write((json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
    return "\n".join([*text, *(f"  {options.output / name}" for name in _FILES)])


def _check(options: argparse.Namespace) -> None:
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output must be a folder, {options.output} is a file")
    earlier = [name for name in _FILES if (options.output / name).exists()]
    if earlier and not options.overwrite:
        raise ValueError(f"{options.output / earlier[0]} is there already; --overwrite replaces it")
    for name in _FILES:
        check_writable(options.output / name)
    if options.crop < 0:
        raise ValueError(f"--crop must be at least 0, was {options.crop}")
    if not 0 <= options.seed < 2**63:
        raise ValueError(f"--seed must be from 0 to {2**63 - 1}, was {options.seed}")
    for factor in options.factors:
        if not (math.isfinite(factor) and factor >= 0):
            raise ValueError(f"--factors must be numbers of at least 0, was {factor}")
    if options.each_group and options.target_psnr is None:
        raise ValueError("--each-group must come with --target-psnr")


def _generator(weights: Path | None) -> tuple[RRDBNet, str]:
    """G and what it is, in words."""
    if weights is not None:
        return generator_from_weights(weights), str(weights)
    with torch.random.fork_rng(devices=[]):
        generator = RRDBNet(4, features=3, blocks=1, growth=1)
    start_as_interpolation(generator)
    return generator, "no weights were given: sharpened bilinear interpolation, x4"


def _degrader(options: argparse.Namespace, config: TrainConfig, generator: RRDBNet) -> Degrader:
    device = torch.device(resolve_device(options.device))
    check_precision(options.precision, device)
    try:
        picture = decode(options.image)
    except UnusableImageError as error:
        raise ValueError(f"{options.image}: {error}") from error
    scale = generator.scale
    if scale == 1:
        raise ValueError(f"{options.weights}: weights must be for scale 2 or 4, are for scale 1")
    hr = cut(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None], options.crop, max(scale, 4), options.at)
    _check_memory(hr.shape[2] * hr.shape[3] * config.degradation.channels * _BYTES_A_PIXEL, device)
    attack = build_frozen_attack(config, generator, device, options.precision)
    return Degrader(attack, hr.to(device).float() / 255, options.seed, options.networks)


def _check_memory(needed: int, device: torch.device) -> None:
    """Refuse what the operating system would end without a word."""
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_memory()[0]
    if needed > available > 0:
        raise ValueError(
            f"--crop must be smaller: F would take about {gigabytes(needed)} for so many pixels, and "
            f"{gigabytes(available)} are available"
        )


def _with_progress(degrader: Degrader, options: argparse.Namespace) -> tqdm:
    count = 2 + degrader.attack.settings.steps + len(degrader.groups) + len(options.factors)
    return tqdm(degrader.cases(options.factors), total=count, desc="gallery", unit="case", disable=options.quiet)


def _calibrate(degrader: Degrader, options: argparse.Namespace, text: list[str]) -> dict[str, Any]:
    """Find radii; adds what to print."""
    record: dict[str, Any] = {"target_psnr": options.target_psnr, "networks": options.networks}
    before = degrader.attack.settings.ball

    def find(name: str, groups: Sequence[str]) -> Ball:
        with tqdm(desc=f"radii, {name}", unit="try", disable=options.quiet) as bar:

            def report(factor: float, psnr: float) -> None:
                bar.set_postfix_str(f"x {factor:.3g}: {psnr:.2f} dB")
                bar.update()

            ball, calibration = degrader.calibrate(options.target_psnr, groups, report=report)
        record[name] = {
            "factor": calibration.factor,
            "lr_psnr": calibration.quality,
            "radii": dict(zip(ball.names, ball.radii, strict=True)),
            "patch_size": degrader.attack.settings.patch_size,
        }
        text.append(f"# {name}: LR PSNR {calibration.quality:.2f} dB at the radii times {calibration.factor:.4g}")
        return ball

    text.append(configuration_lines(find("all groups together", before.names), degrader.attack.settings.patch_size))
    if options.each_group:
        alone = {name: find(f"{name} alone", [name]) for name in degrader.groups}
        radii = {name: dict(zip(ball.names, ball.radii, strict=True))[name] for name, ball in alone.items()}
        if before.joint:
            rows = ", ".join(f"{group} {radius:.4g}" for group, radius in radii.items())
            text.append(f"# radii alone, for the size of the photograph: {rows}; a joint ball takes them together only")
        else:
            text.append(configuration_lines(before.with_radii(radii), degrader.attack.settings.patch_size))
    return record


def _table(cases: Sequence[Case]) -> str:
    lines = [f"{'case':<18}{'LR PSNR, dB':>12}{'loss':>10}{'gain':>10}{'SR PSNR-Y, dB':>15}"]
    lines += [
        f"{case.name:<18}{case.lr_psnr:>12.2f}{case.loss:>10.4f}{case.loss_gain:>+10.4f}{case.sr_psnr_y:>15.2f}"
        for case in cases
    ]
    return "\n".join(lines)


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """For JSON, which knows no infinity and no NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in numbers.items()
    }


def _draw(path: Path, cases: Sequence[Case], degrader: Degrader, options: argparse.Namespace) -> None:
    steps = degrader.attack.settings.steps
    titles = {
        "ascent": f"From the identity network, F's parameters are pushed up G's loss in {steps} steps "
        "(above: LR with its PSNR against the clean LR; below: what G makes of it, with its PSNR-Y against HR)",
        "one group alone": f"Only one group of F's parameters, and the same {steps} steps within other radii",
    }
    sections: dict[str, list[Cell]] = {title: [] for title in titles.values()}
    sections[titles["ascent"]].append(Cell("HR", (degrader.hr[0],), (options.image.name,)))
    for case in cases:
        gain = "" if case.name == "identity" else f", loss {case.loss_gain:+.3f}"
        captions = (
            "clean LR" if case.name == "identity" else f"{case.lr_psnr:.1f} dB{gain}",
            f"{case.sr_psnr_y:.1f} dB",
        )
        cell = Cell(case.name, (case.lr, case.sr), captions)
        sections[titles.get(case.section, titles["one group alone"])].append(cell)
    against = "interpolation" if options.weights is None else options.weights.name
    heading = f"{options.image.name}, x{degrader.attack.degradation.scale}, against {against}"
    gallery_sheet(path, heading, [(title, cells) for title, cells in sections.items() if cells])
