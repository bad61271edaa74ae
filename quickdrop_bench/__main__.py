"""``python -m quickdrop_bench``."""

from __future__ import annotations

import gc
import os
import signal
import sys

from quickdrop_bench.commands import OVERVIEW, overview

__all__ = ["main"]

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where launchers put the number of a process; the first one's is 0."""


def main() -> int:
    """Run the process's command line; see :func:`quickdrop_bench.cli.main`."""
    if sys.argv[1:] and sys.argv[1] in OVERVIEW:
        overview(sys.argv[1:])
    if any(os.environ.get(number, "0") != "0" for number in RANKS):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends it
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
