"""A process of its own that is told things as lines of JSON: telling it never blocks, and its failures never spread."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

__all__ = ["PATIENCE", "Listener", "abandon_early", "encode", "listener", "start_early"]

PATIENCE = 75.0
"""Seconds without an answer after which a process that is waited for is given up: more than W&B's own limits."""


class Listener:
    """Runs a module in a process of its own.

    The module reads one JSON object a line from its standard input until that ends, answers each with one on its
    standard output, and exits with 0. It is in a process group of its own: a terminal's Ctrl-C does not reach it.

    Args:
        module: its full name.
    """

    def __init__(self, module: str) -> None:
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._heard: deque[dict[str, Any]] = deque()
        self._answered = 0.0
        self._last_words = ""
        self._errors: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # A script's process does not import from the current folder, and neither does this one then.
        safe = [] if {"", os.getcwd()} & {*sys.path} else ["-P"]
        try:
            self._errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - it is read when the process fails
            self._process = subprocess.Popen(
                [sys.executable, *safe, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                process_group=0,
            )
        except OSError as error:
            self._problem = f"its process could not be started: {error}"
            self._close_errors()
            return
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        threading.Thread(target=self._write, args=(self._process.stdin,), daemon=True).start()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Leave an event for the process.

        Raises:
            ConnectionError: there is no process any more.
        """
        process = self._started()
        if process.poll() is not None:
            raise self._ended(process)
        self._waiting.put(encode(event))

    def answers(self) -> Iterator[dict[str, Any]]:
        """What it answered since this was last asked."""
        with suppress(IndexError):
            while True:
                yield self._heard.popleft()

    @property
    def errors(self) -> str:
        """What it wrote to its standard error."""
        if self._errors:
            self._errors.seek(0)
            self._last_words = self._errors.read().decode(errors="replace")
        return self._last_words

    def close(self) -> None:
        """Tell the process that nothing follows, and wait for its end.

        Raises:
            ConnectionError: it did not end well.
            TimeoutError: it answered nothing for :data:`PATIENCE` seconds, and was killed.
        """
        process = self._started()
        self._waiting.put(None)
        self._answered = time.monotonic()
        # The end of its answers wakes this thread at once, which waiting for a process does not.
        while self._reader.is_alive() and (left := self._left()) > 0:
            self._reader.join(left)
        try:
            process.wait(max(0.0, self._left()))
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"its process answered nothing for {PATIENCE:g} seconds") from None
        finally:
            self.abandon()
        if process.returncode:
            raise self._ended(process)

    def abandon(self) -> None:
        """End the process at once, if it still runs."""
        if self._process:
            self._waiting.put(None)
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # the system may keep it, as while a disk does not answer
                self._process.wait(5)
            self._reader.join(5)
        self._close_errors()

    def _started(self) -> subprocess.Popen[bytes]:
        if not self._process:
            raise ConnectionError(self._problem)
        return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> ConnectionError:
        return ConnectionError(
            ": ".join([f"its process ended with {process.returncode}", *self.errors.splitlines()[-1:]])
        )

    def _left(self) -> float:
        return self._answered + PATIENCE - time.monotonic()

    def _close_errors(self) -> None:
        _ = self.errors
        if self._errors:
            self._errors.close()
            self._errors = None

    def _write(self, pipe: IO[bytes]) -> None:
        with suppress(OSError), pipe:  # whoever tells more finds that the process is gone
            while (line := self._waiting.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _read(self, pipe: IO[bytes]) -> None:
        with suppress(ValueError), pipe:  # half a line is the last of a process that was killed
            for line in pipe:
                self._heard.append(json.loads(line))
                self._answered = time.monotonic()


_early: dict[str, Listener] = {}


def start_early(module: str) -> None:
    """Start a process before anybody can say whether it will be needed."""
    _early[module] = Listener(module)


def listener(module: str) -> Listener:
    """The process that was started early, or a new one."""
    return _early.pop(module, None) or Listener(module)


def abandon_early() -> None:
    """End the processes that nobody needed."""
    while _early:
        _early.popitem()[1].abandon()


def encode(event: Mapping[str, Any]) -> bytes:
    """An event as a line; NumPy's numbers are numbers, and of what JSON does not know there is the text."""

    def plain(value: Any) -> Any:
        return value.item() if getattr(value, "ndim", None) == 0 else str(value)

    return json.dumps(event, default=plain).encode() + b"\n"
