"""``python -m quickdrop_bench``."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress

from quickdrop_bench.core.starting import importing


def main() -> int:
    """Run the process's command line; see :func:`quickdrop_bench.cli.main.main`."""
    with importing():
        from quickdrop_bench.cli.main import main as run
        from quickdrop_bench.core.errors import BadInput
        from quickdrop_bench.core.launcher import process_number

    with suppress(BadInput):  # the command line says so
        if process_number():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends it
    return run()


if __name__ == "__main__":
    sys.exit(main())
