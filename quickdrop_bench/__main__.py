"""``python -m quickdrop_bench``."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> int:
    """Run the process's command line; see :func:`quickdrop_bench.cli.main`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job ignores it
        signal.signal(signal.SIGINT, _leave)  # libraries that are interrupted half imported say all kinds of things
    from quickdrop_bench.cli.commands import OVERVIEW, PROGRAM, overview
    from quickdrop_bench.core.errors import BadInput
    from quickdrop_bench.core.launcher import forget_leftovers, process_number

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
    from quickdrop_bench.cli.main import main as run

    gc.freeze()
    gc.enable()
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run()
    finally:
        gc.unfreeze()


def _leave(number: int, frame: FrameType | None) -> None:
    """End before anything was begun."""
    os.write(2, b"quickdrop-bench: interrupted; nothing was begun\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
