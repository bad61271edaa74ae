"""``python -m quickdrop_bench``."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from quickdrop_bench.core.processes import allow_copies
from quickdrop_bench.core.starting import importing


def main() -> int:
    """Run the process's command line; see :func:`quickdrop_bench.cli.main.main`."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this; the next file opened would take its number
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
    with importing():
        from quickdrop_bench.cli.main import main as run
        from quickdrop_bench.core.errors import BadInput
        from quickdrop_bench.core.launcher import process_number

    with suppress(BadInput):  # the command line says so
        if process_number():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends it
    return run()


def command() -> None:
    """Run the command as all that this process is for: others may be copies of it, and it ends as the command does."""
    code: list[int] = []
    atexit.register(_leave, code)
    allow_copies(_share)
    code.append(main())
    sys.exit(code[0])


def _share(number: int) -> int:
    """What a copy of this process does as the one with this number."""
    from quickdrop_bench.cli.main import follow

    os.environ["LOCAL_RANK"] = str(number)
    return follow(sys.argv[1:], number)


def _leave(code: Sequence[int]) -> None:
    """After a command that ended, and all that is to be done at the end: to take libraries down takes over a second."""
    if code:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code[0])


if __name__ == "__main__":
    command()
