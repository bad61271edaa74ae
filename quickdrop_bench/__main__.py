"""``python -m quickdrop_bench``."""

from __future__ import annotations

import sys

from quickdrop_bench.commands import OVERVIEW, overview

__all__ = ["main"]


def main() -> int:
    """Run the process's command line; see :func:`quickdrop_bench.cli.main`."""
    if sys.argv[1:] and sys.argv[1] in OVERVIEW:
        overview(sys.argv[1:])
    from quickdrop_bench.cli import main as run  # importing torch and Lightning takes seconds

    return run()


if __name__ == "__main__":
    sys.exit(main())
