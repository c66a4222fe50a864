"""Train AND on photographs: ``python -m andfast.train --config FILE --output DIR``; ``--help`` lists every setting."""

import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr

from andfast.config.command_line import fail, parse_train
from andfast.console import limit_spinning, log_to


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit code: 0 when all stages are done, 2 on invalid input, 3 on a non-finite loss or gradient, 4 when data
        workers died, 130 when a signal stopped the run; after 3, 4 and 130 it is saved and can be resumed.
    """
    limit_spinning()
    is_main = os.environ.get("RANK", "0") == "0"
    with nullcontext() if is_main else redirect_stderr(io.StringIO()):  # rank 0 reports what every rank meets
        config, options = parse_train(argv)
    # Imported after parsing: torch takes seconds.
    from andfast.training.checkpoint import CheckpointError  # noqa: PLC0415
    from andfast.training.cuda_graph import CaptureError  # noqa: PLC0415
    from andfast.training.data import DataLoadingError  # noqa: PLC0415
    from andfast.training.failure import NonFiniteLossError, NonFiniteStateError  # noqa: PLC0415
    from andfast.training.loop import Stopped, run  # noqa: PLC0415
    from andfast.training.run_lock import RunLockedError  # noqa: PLC0415

    try:
        with log_to("stdout", logging.INFO if is_main else logging.ERROR):
            run(config, options)
    except Stopped as stopped:
        if is_main:  # every rank is stopped
            print(stopped, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped at once; the steps since the newest checkpoint are lost, --resume repeats them", file=sys.stderr)
        return 130
    except DataLoadingError as error:
        fail(str(error), status=4)
    except (NonFiniteLossError, NonFiniteStateError) as error:
        if not is_main:  # every rank has it
            return 3
        fail(str(error), status=3)
    except CaptureError as error:
        fail(f"cuda_graph: the step cannot be captured as a CUDA graph: {error}; --cuda_graph=false disables it")
    except (OSError, ValueError, CheckpointError, RunLockedError) as error:
        fail(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
