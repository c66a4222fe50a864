"""Judge super-resolution on pairs of real pictures: ``python -m andfast.evaluate --data DIR --weights FILE``."""

import argparse
import sys
from collections.abc import Sequence

import torch

from andfast.data.pack import printable
from andfast.evaluation.fit import fit_niqe_to_folder
from andfast.evaluation.layouts import find_pairs
from andfast.evaluation.methods import load_weights, make_methods
from andfast.evaluation.options import parse
from andfast.evaluation.report import images_table, leave_out, table, write_json
from andfast.evaluation.run import Evaluation, check_pairs, judge_pairs
from andfast.evaluation.scores import Judge
from andfast.evaluation.sheet import Sheet
from andfast.inference.models import find_device
from andfast.metrics.lpips import LPIPS
from andfast.metrics.niqe import NIQE


def evaluate(options: argparse.Namespace) -> None:
    """Run what `andfast.evaluation.options.parse` returned."""
    if options.fit_niqe is not None:
        print(fit_niqe_to_folder(options.fit_niqe, options.niqe_parameters, protocol=options.protocol))
        if options.data is None:
            return
    for name, path in (("--json", options.json), ("--sheet", options.sheet)):
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"{name} must be in a folder that exists, {path.parent} does not")
    device = str(find_device(options.device))
    restorers = load_weights(options.sources, device=device, precision=options.precision)
    scale = options.scale or next((restorer.scale for restorer in restorers.values()), None)
    listing = find_pairs(options.data, layout=options.layout, scale=scale)
    ignored = f", {listing.ignored} other pictures left out" if listing.ignored else ""
    found = f"layout {listing.layout.name}, x{listing.scale}, {len(listing.pairs)} pairs{ignored}"
    print(f"{printable(str(options.data))}: {found}")

    judge = Judge(
        options.metrics,
        protocol=options.protocol,
        crop_border=options.crop_border,
        lpips=LPIPS(options.lpips_net, weights=options.lpips_weights, device=device)
        if "lpips" in options.metrics
        else None,
        niqe=NIQE(options.niqe_parameters) if "niqe" in options.metrics else None,
    )
    methods, missing = make_methods(
        options.sources, restorers, listing, device=device, tile=options.tile, overlap=options.overlap
    )
    unfit, reduced = check_pairs(listing, methods, max_shift=options.max_shift, progress=not options.quiet)
    evaluation = Evaluation(listing, judge, methods, listing.problems | missing | unfit, reduced)
    leave_out(listing, evaluation.left_out, allowed=options.skip_unfit)
    if reduced:
        print(f"{reduced} LR pictures have HR's size and are reduced by {listing.scale} (antialiased bicubic)")

    sheet = Sheet(rows=options.sheet_rows, scale=listing.scale) if options.sheet else None
    evaluation.results = judge_pairs(
        listing.pairs, listing.scale, methods, judge, sheet=sheet, progress=not options.quiet
    )
    if options.images:
        print(images_table(evaluation.results, judge.metrics))
    print(table(evaluation.results, evaluation.summaries, judge.metrics))
    print(judge.sentence())
    if options.json:
        write_json(options.json, evaluation.record(str(options.data), device))
    if sheet is not None:
        sheet.write(options.sheet, f"x{listing.scale}, crops where the methods differ most ({judge.sentence()})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 on an error, 130 when interrupted."""
    options = parse(None if arguments is None else list(arguments))
    try:
        evaluate(options)
    except torch.OutOfMemoryError:
        print("error: the device's memory does not hold a whole picture; try --tile 256", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was written is complete, the rest is not there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
