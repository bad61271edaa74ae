"""Standard output and error of a command: what cannot be shown or written there ends no work."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds for which a user is left without a word."""


class Output:
    """A stream that escapes characters which it cannot encode, and keeps the error when it cannot be written.

    Attributes:
        problem: the first error; None if all was written.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.problem: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write as far as that can be done."""
        if self.problem is None:
            try:
                encoding = self._stream.encoding or "utf-8"
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Likewise."""
        if self.problem is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.problem = error
        try:  # what is left in its buffer would be an error again when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # it is no file of the system
            pass


@contextmanager
def forgiving_output() -> Iterator[Output]:
    """Put an :class:`Output` before standard output, which is given, and before standard error."""
    out = Output(sys.stdout)
    with redirect_stdout(out), redirect_stderr(Output(sys.stderr)):
        yield out
        out.flush()


def counted(items: Iterable[T], label: str, of: int) -> Iterator[T]:
    """Items as they come; where they take long, standard error says how many there were, e.g. ``points: 7/9``."""
    since = time.monotonic()
    for number, item in enumerate(items, 1):
        if time.monotonic() - since > PATIENCE:
            since = time.monotonic()
            print(f"{label}: {number}/{of}", file=sys.stderr)
        yield item
