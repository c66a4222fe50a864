"""Train AND on photographs: ``python -m andfast.train --config FILE --output DIR``; ``--help`` lists every setting."""

import os
import sys
from collections.abc import Sequence

from andfast.config.command_line import fail, parse_train


def main(argv: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        0 when all stages are done; 2 for what cannot be used; 3 for a loss that is not finite; 130 when a signal
        stopped the run, which has saved and can be resumed.
    """
    config, options = parse_train(argv)
    # Threads that spin while they wait make a CPU run ten times slower where something else uses the cores too. OpenMP
    # reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # After the command line is known to be good: these take seconds.
    from andfast.training.checkpoint import CheckpointError  # noqa: PLC0415
    from andfast.training.cuda_graph import CaptureError  # noqa: PLC0415
    from andfast.training.failure import NonFiniteLossError  # noqa: PLC0415
    from andfast.training.loop import Stopped, run  # noqa: PLC0415

    try:
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
