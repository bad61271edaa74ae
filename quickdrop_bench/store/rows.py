"""Rows: one JSON object per measured value, the truth from which every table and figure is made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import read_bytes, write_text

__all__ = ["KEY", "LARGEST", "LAST", "LOCK", "RowFile", "is_row"]

KEY = ("artefact", "dataset", "clients", "distribution", "method", "seed", "request", "stage", "metric", "spec_hash")
"""Columns that identify a value; of several rows with one key the last one counts."""

WHOLE = ("clients", "seed")
"""Those of them that are whole numbers; the others are text."""

LAST = (("total", "diverged"), ("fl-training", "diverged"))
"""Stage and metric of the row that a run writes last; without it the run was cut off while writing."""

LARGEST = 2**31
"""Bytes of a file that is still read; a row has about one thousand."""

LOCK = ".rows.lock"
"""Name of the lock of a results folder."""


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def is_row(row: object) -> bool:
    """Whether a line's content can be a row: each column of the key has its type, and the value is a number or null.

    ``versions`` alone is a table of its own; other columns hold single values.
    """
    return (
        isinstance(row, dict)
        and all(type(row.get(name)) is (int if name in WHOLE else str) for name in KEY)
        and isinstance(row.get("value"), int | float | None)
        and all(not isinstance(value, list | dict) for name, value in row.items() if name != "versions")
        and all(abs(value) < 2**63 for value in row.values() if type(value) is int)  # else pandas makes it an object
    )


class RowFile:
    """``rows.jsonl`` in a results folder: read at once, written a run at a time.

    Several processes may write to one file; each waits for the other's write to end.

    Args:
        path: the file; it need not exist.

    Raises:
        BadInput: it exists and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._lock = FileLock(path.with_name(LOCK))
        self._torn = False
        self._read()

    def _read(self) -> None:
        try:
            there = os.path.lexists(self.path)
            text = read_bytes(self.path, LARGEST).decode("utf-8", errors="replace") if there else ""
        except OSError as error:
            folder = self.path.parent
            raise BadInput("--results-dir", folder, f"{self.path.name} cannot be read ({error.strerror})") from error
        self.rows = []
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the line that an interrupted process left unfinished
            if is_row(row):
                self.rows.append(row)
        self._torn = bool(text) and not text.endswith("\n")

    def check_writable(self) -> None:
        """Raise :class:`BadInput` now rather than after hours of work."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, self.path.open("a", encoding="utf-8"):
                pass
        except OSError as error:
            raise BadInput(
                "--results-dir", self.path.parent, f"it cannot be written ({error.strerror}); choose another folder"
            ) from error

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the rows of one finished run, in the place of any that are there under its spec hash.

        They are on disk before this returns; a process that dies meanwhile leaves the old rows or the new ones.
        """
        new = [dict(row) for row in rows]
        with self._lock:
            self._read()
            hashes = {row["spec_hash"] for row in new}
            kept = [row for row in self.rows if row["spec_hash"] not in hashes]
            if self._torn or len(kept) < len(self.rows):
                write_text(self.path, "".join(map(_line, [*kept, *new])))
            else:
                with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write("".join(map(_line, new)))
                    file.flush()
                    os.fsync(file.fileno())
            self._torn = False
            self.rows = [*kept, *new]

    def marked(self, spec_hash: str) -> bool:
        """Whether a run diverged or failed."""
        own = (row for row in self.rows if row["spec_hash"] == spec_hash)
        return any(row["metric"] in ("diverged", "failed") and row["value"] for row in own)

    def has(self, spec_hash: str) -> bool:
        """Whether a run's rows are all there: its last one is, see :data:`LAST`."""
        return any(row["spec_hash"] == spec_hash and (row["stage"], row["metric"]) in LAST for row in self.rows)

    def frame(self, spec_hashes: Iterable[str]) -> pd.DataFrame:
        """The rows of some specs, one line per key."""
        wanted = set(spec_hashes)
        chosen = [row for row in self.rows if row["spec_hash"] in wanted]
        columns = [*KEY, "value"]
        frame = pd.DataFrame(chosen, columns=None if chosen else columns)
        # Rows about single rounds differ in these two columns only.
        key = [*KEY, *(name for name in ("phase", "round") if name in frame)]
        return frame.drop_duplicates(key, keep="last").reset_index(drop=True)
