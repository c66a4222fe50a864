"""Evaluate super-resolution on pairs of real images: ``python -m andfast.evaluate --data DIR --weights FILE``."""

import argparse
import sys
from collections.abc import Sequence

import torch

from andfast.evaluation.fit import fit_niqe_to_folder
from andfast.evaluation.layouts import find_pairs
from andfast.evaluation.methods import build_methods, load_restorers
from andfast.evaluation.options import parse
from andfast.evaluation.report import color_warnings, images_table, remove_invalid, table, write_json
from andfast.evaluation.run import Evaluation, check_pairs, score_pairs
from andfast.evaluation.scores import Scorer
from andfast.evaluation.sheet import Sheet
from andfast.files import check_output_path, printable
from andfast.inference.models import find_device
from andfast.metrics.lpips import LPIPS
from andfast.metrics.niqe import NIQE


def evaluate(options: argparse.Namespace) -> None:
    """Run an evaluation with the options returned by `andfast.evaluation.options.parse`."""
    for name, path in (("--json", options.json), ("--sheet", options.sheet)):
        if path is not None:
            check_output_path(name, path)
    if options.fit_niqe is not None:
        print(fit_niqe_to_folder(options.fit_niqe, options.niqe_parameters, protocol=options.protocol))
        if options.data is None:
            return
    device = str(find_device(options.device))
    restorers = load_restorers(options.sources, device=device, precision=options.precision)
    scale = options.scale or next((restorer.scale for restorer in restorers.values()), None)
    listing = find_pairs(options.data, layout=options.layout, scale=scale)
    ignored = f", {listing.ignored} other images ignored" if listing.ignored else ""
    summary = f"layout {listing.layout.name}, x{listing.scale}, {len(listing.pairs)} pairs{ignored}"
    print(f"{printable(str(options.data))}: {summary}")

    scorer = Scorer(
        options.metrics,
        protocol=options.protocol,
        crop_border=options.crop_border,
        lpips=LPIPS(options.lpips_net, weights=options.lpips_weights, device=device)
        if "lpips" in options.metrics
        else None,
        niqe=NIQE(options.niqe_parameters) if "niqe" in options.metrics else None,
    )
    methods, missing = build_methods(
        options.sources, restorers, listing, device=device, tile=options.tile, overlap=options.overlap
    )
    check = check_pairs(
        listing, methods, max_shift=options.max_shift, modcrop=options.modcrop, progress=not options.quiet
    )
    evaluation = Evaluation(listing, scorer, methods, listing.problems | missing | check.problems, check)
    remove_invalid(listing, evaluation.skipped, allowed=options.skip_invalid)
    if check.downscaled:
        print(
            f"{check.downscaled} LR images have HR's size and are downscaled by {listing.scale} (antialiased bicubic)"
        )
    if check.cropped:
        print(f"{check.cropped} HR images are cropped to a multiple of {listing.scale}")

    sheet = Sheet(rows=options.sheet_rows, scale=listing.scale) if options.sheet else None
    evaluation.results = score_pairs(
        listing, methods, scorer, modcrop=options.modcrop, sheet=sheet, progress=not options.quiet
    )
    if options.images:
        print(images_table(evaluation.results, scorer.metrics))
    print(table(evaluation.results, evaluation.summaries, scorer.metrics))
    print(scorer.summary())
    for warning in color_warnings(evaluation.results, evaluation.summaries):
        print(printable(warning), file=sys.stderr)
    if options.json:
        write_json(options.json, evaluation.record(str(options.data), device))
    if sheet is not None:
        sheet.write(options.sheet, f"x{listing.scale}, crops where the methods differ most ({scorer.summary()})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 on error, 130 if interrupted."""
    options = parse(None if arguments is None else list(arguments))
    try:
        evaluate(options)
    except torch.OutOfMemoryError:
        print("error: out of device memory; try --tile 256", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: no partial results were written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
