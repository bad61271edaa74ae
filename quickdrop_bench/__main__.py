"""``python -m quickdrop_bench``."""

from __future__ import annotations

import gc
import signal
import sys

from quickdrop_bench.commands import OVERVIEW, PROGRAM, overview
from quickdrop_bench.errors import BadInput
from quickdrop_bench.launcher import forget_leftovers, process_number

__all__ = ["main"]


def main() -> int:
    """Run the process's command line; see :func:`quickdrop_bench.cli.main`."""
    if sys.argv[1:] and sys.argv[1] in OVERVIEW:
        overview(sys.argv[1:])
    try:
        forget_leftovers()  # before Lightning looks at them
        if process_number():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends it
    except BadInput as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    gc.disable()  # looking for garbage takes a fifth of the seconds in which torch and Lightning are imported
    from quickdrop_bench.cli import main as run

    gc.freeze()
    gc.enable()
    try:
        return run()
    finally:
        gc.unfreeze()


if __name__ == "__main__":
    sys.exit(main())
