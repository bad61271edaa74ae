"""``quickdrop-bench``, with an account of what mirroring into W&B held it up for; see ``tracking_cost.py``."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quickdrop_bench.listener import start_early
from quickdrop_bench.mirror import MODULE

ACCOUNT = "WATCHED_ACCOUNT"
"""Variable with the file that the account goes to."""


def main() -> int:
    """Run the command line in the order of :mod:`quickdrop_bench.__main__`, and write the account.

    It is JSON: seconds in ``hooks``, and in the ``wait`` at the end.
    """
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if is_first and "disabled" not in sys.argv:
        start_early(MODULE)
    gc.disable()
    from quickdrop_bench.cli import main as run
    from quickdrop_bench.tracking import Tracker

    gc.enable()
    spent = {"hooks": 0.0, "wait": 0.0}
    depth = 0

    def timed(method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            began, depth = time.perf_counter(), depth + 1
            try:
                return method(*args, **kwargs)
            finally:
                depth -= 1
                if not depth:  # a hook that calls another is one
                    spent[part] += time.perf_counter() - began

        return call

    for name in [name for name in vars(Tracker) if name.startswith(("on_", "log_", "finalize", "close"))]:
        setattr(Tracker, name, timed(getattr(Tracker, name), "wait" if name == "close" else "hooks"))
    code = run()
    if is_first:
        Path(os.environ[ACCOUNT]).write_text(json.dumps(spent), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
