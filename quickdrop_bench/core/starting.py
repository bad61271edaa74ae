"""Importing the large libraries: quickly, and left at once when interrupted."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def importing() -> Iterator[None]:
    """For blocks that import what takes seconds, before anything is begun.

    Libraries that are interrupted half imported say all kinds of things: the process ends instead, with one sentence
    and exit code 130. Looking for garbage takes a fifth of the time.
    """
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a background job ignores it
    if handled:
        signal.signal(signal.SIGINT, _leave)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    """End before anything was begun."""
    os.write(2, b"quickdrop-bench: interrupted; nothing was begun\n")
    os._exit(130)
