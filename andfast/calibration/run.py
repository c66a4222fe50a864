"""The calibration of a folder of pairs: options in, a text, calibration.json and calibration.png out."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from andfast import __version__
from andfast.adversary import Attack
from andfast.calibration.measure import PARTS, Measurements, fit_files, measure, table
from andfast.calibration.radii import attacked_images, check_ball, find_radii, record, together
from andfast.calibration.sheet import parts_sheet
from andfast.config.machine import resolve_device
from andfast.evaluation.layouts import Listing, find_pairs
from andfast.evaluation.pairs import read_pair
from andfast.evaluation.report import remove_invalid
from andfast.evaluation.run import check_pairs
from andfast.files import atomic_file, check_writable, printable
from andfast.gallery.cases import configuration_lines, cut
from andfast.nn.weights import generator_from_weights
from andfast.progress import Progress
from andfast.training.frozen_attack import build_frozen_attack, check_precision, read_attack_settings

_FILES = ("calibration.json", "calibration.png")
_PRESET = "--adversary.preset=symmetric"


def run(options: argparse.Namespace, settings: Sequence[str]) -> str:
    """Measure pairs, and find radii for G, as the command line of :mod:`andfast.calibrate` says.

    Returns:
        A text for the terminal: a table, configuration lines, and the files.

    Raises:
        ValueError: an option, a setting, a pair or the weights cannot be used.
        OSError: a file cannot be read or written.
    """
    _check_output(options)
    if settings and options.weights is None:
        raise ValueError(f"settings of the adversary must come with --weights, were {' '.join(settings)}")
    attack = _attack(options, settings) if options.weights is not None else None
    listing = _listing(options, attack)
    with Progress("measuring", len(listing.pairs), unit="pair", enabled=not options.quiet) as bar:
        measurements = measure(listing, max_shift=options.max_shift, modcrop=options.modcrop, report=bar.advance)
    for kind in ("misregistered", "unusable"):
        for name, reason in getattr(measurements, kind).items():
            print(printable(f"{kind} pair {name}: {reason}"), file=sys.stderr)
    left_out = len(measurements.misregistered) + len(measurements.unusable)
    quantiles = measurements.quantiles
    text = [
        f"{printable(str(options.pairs))}: layout {listing.layout.name}, x{listing.scale}, "
        f"{len(measurements.pairs)} pairs, {left_out} left out",
        table(quantiles),
    ]
    result: dict[str, Any] = {
        "data": str(options.pairs),
        "layout": listing.layout.name,
        "max_shift": options.max_shift if math.isfinite(options.max_shift) else None,
        **measurements.record(),
    }
    if attack is not None:
        result["calibration"] = {
            "weights": str(options.weights),
            **_radii(options, attack, listing, measurements, text),
        }
    result["versions"] = {"andfast": __version__, "torch": torch.__version__}
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        with atomic_file(options.output / _FILES[0]) as file:
            file.write((json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
        _draw(options.output / _FILES[1], options, listing, measurements.typical_pair())
        text += [f"  {options.output / name}" for name in _FILES]
    return "\n".join(text)


def _check_output(options: argparse.Namespace) -> None:
    if options.output is None:
        return
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output must be a folder, {options.output} is a file")
    earlier = [name for name in _FILES if (options.output / name).exists()]
    if earlier and not options.overwrite:
        raise ValueError(f"{options.output / earlier[0]} is there already; --overwrite replaces it")
    for name in _FILES:
        check_writable(options.output / name)


def _attack(options: argparse.Namespace, settings: Sequence[str]) -> Attack:
    """The attack on G, checked before the pairs are read."""
    generator = generator_from_weights(options.weights)
    if options.scale not in (None, generator.scale):
        raise ValueError(
            f"{options.weights}: weights must be for scale {options.scale}, that of --scale, are for scale "
            f"{generator.scale}"
        )
    if generator.scale == 1:
        raise ValueError(f"{options.weights}: weights must be for scale 2 or 4, are for scale 1")
    config = read_attack_settings(options.config, settings, generator.scale, [_PRESET])
    device = torch.device(resolve_device(options.device))
    check_precision(options.precision, device)
    attack = build_frozen_attack(config, generator, device, options.precision)
    check_ball(attack.settings.ball)
    return attack


def _listing(options: argparse.Namespace, attack: Attack | None) -> Listing:
    """The readable pairs of fitting sizes."""
    scale = options.scale if attack is None else attack.degradation.scale
    listing = find_pairs(options.pairs, layout=options.layout, scale=scale)
    check = check_pairs(listing, [], max_shift=float("inf"), modcrop=options.modcrop, progress=not options.quiet)
    try:
        remove_invalid(listing, listing.problems | check.problems, allowed=options.skip_invalid)
    except ValueError as error:
        if attack is None or listing.pairs:
            raise
        raise ValueError(f"{error} of scale {scale}, which is that of --weights") from error
    return listing


def _radii(
    options: argparse.Namespace, attack: Attack, listing: Listing, measurements: Measurements, text: list[str]
) -> dict[str, Any]:
    """Find radii; adds what to print."""
    files = [pair for pair in listing.pairs if pair.name in measurements.pairs]
    count = min(options.images, len(files))
    chosen = [files[len(files) * number // count] for number in range(count)]
    scale, device = listing.scale, next(attack.generator.parameters()).device
    crops = [
        cut(read_pair(pair, scale, modcrop=options.modcrop).hr[None], options.crop, max(scale, 4)).to(device) / 255
        for pair in chosen
    ]
    images = attacked_images(attack, crops, options.seed)
    targets = {part: measurements.quantiles[f"psnr_of_{part}"][1] for part in PARTS}
    with Progress("radii", len(PARTS), unit="part", enabled=not options.quiet) as bar:
        last = PARTS[0]

        def report(part: str, factor: float, lr_psnr: float) -> None:
            nonlocal last
            if part != last:
                bar.advance()
                last = part
            bar.show(f"{part} x {factor:.3g}: {lr_psnr:.2f} dB")

        ball, radii = find_radii(attack, images, targets, report)
        lr_psnr = together(attack, images, ball)
    text.append(f"# radii for which the attack on {options.weights} takes LR as far as the median pair, part by part:")
    for name, part in radii.items():
        reached = "negligible" if part.lr_psnr is None else f"LR PSNR {part.lr_psnr:.2f} dB"
        text.append(f"# {name}: {reached} (pairs: {part.target:.2f})")
    registered = measurements.quantiles["psnr_registered"][1]
    text.append(f"# all at once, slope as configured: {lr_psnr:.2f} dB (pairs: {registered:.2f} after registration)")
    text.append(configuration_lines(ball, attack.settings.patch_size))
    return {"images": [pair.name for pair in chosen], "crop": options.crop, **record(attack, ball, radii, lr_psnr)}


def _draw(path: Path, options: argparse.Namespace, listing: Listing, name: str) -> None:
    files = next(pair for pair in listing.pairs if pair.name == name)
    pair = read_pair(files, listing.scale, modcrop=options.modcrop)
    parts_sheet(path, name, pair.hr, fit_files(pair, listing.scale))
