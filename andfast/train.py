"""Train AND on photographs: ``python -m andfast.train --config FILE --output DIR``; ``--help`` lists every setting."""

import logging
import os
import sys
from collections.abc import Sequence

from andfast.config.command_line import fail, parse_train
from andfast.console import log_to


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit code: 0 when all stages are done, 2 on invalid input, 3 on a non-finite loss, 130 when a signal stopped the
        run, which is saved and can be resumed.
    """
    config, options = parse_train(argv)
    # Spinning threads make a CPU run ten times slower on shared cores. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imported after parsing: torch takes seconds.
    from andfast.training.checkpoint import CheckpointError  # noqa: PLC0415
    from andfast.training.cuda_graph import CaptureError  # noqa: PLC0415
    from andfast.training.failure import NonFiniteLossError  # noqa: PLC0415
    from andfast.training.loop import Stopped, run  # noqa: PLC0415

    is_main = os.environ.get("RANK", "0") == "0"
    try:
        with log_to("stdout", logging.INFO if is_main else logging.ERROR):
            run(config, options)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 130
    except NonFiniteLossError as error:
        fail(str(error), status=3)
    except CaptureError as error:
        fail(f"cuda_graph: the ascent cannot be replayed as a CUDA graph: {error}; --cuda_graph=false goes without")
    except (OSError, ValueError, CheckpointError) as error:
        fail(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
