"""``python -m quickdrop_bench``."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence

from quickdrop_bench.commands import OVERVIEW, overview
from quickdrop_bench.listener import abandon_early, start_early
from quickdrop_bench.mirror import MODULE

__all__ = ["main"]

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where launchers put the number of a process; the first one's is 0, and it alone is mirrored."""

MIRRORED = {"table", "figure", "sweep", "train"}
"""Commands that are mirrored into W&B unless their options or the environment disable it."""


def main() -> int:
    """Run the process's command line; see :func:`quickdrop_bench.cli.main`."""
    if sys.argv[1:] and sys.argv[1] in OVERVIEW:
        overview(sys.argv[1:])
    if not _is_first():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends it
    if _is_likely_mirrored(sys.argv[1:]):
        start_early(MODULE)  # it imports while this process does
    gc.disable()  # looking for garbage takes a fifth of the seconds in which torch and Lightning are imported
    from quickdrop_bench.cli import main as run

    gc.freeze()
    gc.enable()
    try:
        return run()
    finally:
        gc.unfreeze()
        abandon_early()


def _is_first() -> bool:
    return all(os.environ.get(number, "0") == "0" for number in RANKS)


def _is_likely_mirrored(argv: Sequence[str]) -> bool:
    """A guess before anything is parsed; a wrong one costs a process that is ended, or its early start."""
    said = {*argv, os.environ.get("WANDB_MODE", "")}
    return _is_first() and bool(MIRRORED & {*argv[:1]}) and not {"disabled", "--wandb=disabled", "--help", "-h"} & said


if __name__ == "__main__":
    sys.exit(main())
