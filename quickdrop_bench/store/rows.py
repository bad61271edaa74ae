"""Rows: one JSON object per measured value, the truth from which every table and figure is made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from filelock import FileLock

from quickdrop_bench.core.errors import BadInput, printable
from quickdrop_bench.core.files import file_size, remove_unfinished, write_atomically, writing

Row = dict[str, Any]

KEY = ("artefact", "dataset", "clients", "distribution", "method", "seed", "request", "stage", "metric", "spec_hash")
"""Columns that identify a value; of several rows with one key the last one counts."""

WHOLE = ("clients", "seed")
"""Those of them that are whole numbers; the others are text."""

NUMBERS = ("value", "scale", "fine_tuning", "round")
"""Columns of numbers, which may be null or, but for the value, missing."""

LAST = (("total", "diverged"), ("fl-training", "diverged"))
"""Stage and metric of the row that a run writes last; without it the run was cut off while writing."""

LARGEST = 2**31
"""Bytes of a file that is still read; a row has about one thousand."""

LONGEST = 2**20
"""Bytes of a line that is still read."""

MOST_COLUMNS = 200
"""Columns of a row that is still taken for one; ours have about forty."""

LOCK = ".rows.lock"
"""Name of the lock of a results folder."""


def _line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"
    return text.encode("utf-8", errors="backslashreplace")  # a lone surrogate, escaped as JSON does


def is_row(row: object) -> bool:
    """Whether a line's content can be a row: each column of the key has its type, and numbers are such or null.

    A value may be infinite or no number, as a diverged run's; what is counted is finite.

    ``versions`` alone is a table of its own; other columns hold single values.
    """
    return (
        isinstance(row, dict)
        and len(row) <= MOST_COLUMNS
        and all(type(row.get(name)) is (int if name in WHOLE else str) for name in KEY)
        and all(type(row.get(name)) in (int, float, NoneType) for name in NUMBERS)
        and all(math.isfinite(row.get(name) or 0) for name in NUMBERS if name != "value")
        and all(not isinstance(value, list | dict) for name, value in row.items() if name != "versions")
        and all(abs(value) < 2**63 for value in row.values() if type(value) is int)  # else pandas makes it an object
    )


def is_last(row: Mapping[str, Any]) -> bool:
    """Whether a row is the one that its run wrote last."""
    return (row["stage"], row["metric"]) in LAST


def read_lines(path: Path) -> Iterator[tuple[bytes, Row | None]]:
    """The lines of a row file, each with the row that it holds, or None; nothing if there is no file.

    A line that is too long comes in pieces, so that no file costs more memory than its rows. :class:`BadInput` if the
    file cannot be read or is no UTF-8 text.
    """
    if not os.path.lexists(path):
        return
    try:
        if file_size(path) > LARGEST:
            raise OSError(0, f"it is larger than {LARGEST} bytes")
        with path.open("rb") as file:
            if b"\0" in file.read(1000):
                raise OSError(0, "it is no UTF-8 text; save it as such")
            file.seek(0)
            begins = True
            while piece := file.readline(LONGEST):
                yield piece, _parsed(piece) if begins else None
                begins = piece.endswith(b"\n")
    except OSError as error:
        raise BadInput("--results-dir", path.parent, f"{path.name} cannot be read ({error.strerror})") from error


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line.decode("utf-8-sig"), object_hook=_printable)
    except (ValueError, RecursionError):
        return None  # the line that an interrupted process left unfinished, or another program's
    return row if is_row(row) else None


def _is_torn(line: bytes) -> bool:
    """Whether it is what a killed writer of rows left: a short line without an end that is no JSON."""
    if line.endswith(b"\n") or len(line) == LONGEST:
        return False
    try:
        json.loads(line, parse_int=str)  # an integer may have any number of digits
    except RecursionError:
        return False
    except ValueError:
        return True
    return False


def _printable(values: Row) -> Row:
    """What commands no terminal, wherever it is shown."""
    if all(text.isprintable() for text in (*values, *values.values()) if isinstance(text, str)):
        return values
    return {printable(n): printable(value) if isinstance(value, str) else value for n, value in values.items()}


class RowFile:
    """``rows.jsonl`` in a results folder: read at once, written a run at a time.

    Several processes may write to one file; each waits for the other's write to end. Lines that are no rows stay. The
    file need not exist; :class:`BadInput` if it exists and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runs: dict[str, list[Row]] = {}
        self._lock = FileLock(path.with_name(LOCK))
        self._torn = False
        self._seen: tuple[int, ...] | None = None
        self._read()

    @property
    def rows(self) -> list[Row]:
        """All rows, run by run."""
        return [row for run in self._runs.values() for row in run]

    def of(self, spec_hash: str) -> Sequence[Row]:
        """The rows of a run, in the order in which they were written."""
        return self._runs.get(spec_hash, ())

    @property
    def stamp(self) -> tuple[int, ...]:
        """Changes when the file does; empty if there is none."""
        if not os.path.exists(self.path):
            return ()
        found = os.stat(self.path)
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _read(self) -> None:
        stamp, self._seen, self._runs, self._torn = self.stamp, None, {}, False
        for line, row in read_lines(self.path):
            self._torn = not line.endswith(b"\n")
            if row is not None:
                self._runs.setdefault(row["spec_hash"], []).append(row)
        self._seen = stamp

    def check_writable(self) -> None:
        """Raise :class:`BadInput` now rather than after hours of work."""
        with writing("--results-dir", self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, self.path.open("ab"):
                remove_unfinished(self.path.parent)

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the rows of one finished run, in the place of any that are there under its spec hash.

        They are on disk before this returns; a process that dies meanwhile leaves the old rows or the new ones.
        :class:`BadInput` if they cannot be written.
        """
        new = [dict(row) for row in rows]
        with writing("--results-dir", self.path.parent), self._lock:
            if self.stamp != self._seen:  # others have written; a long sweep need not read its own rows again
                self._read()
            old = {row["spec_hash"] for row in new} & self._runs.keys()
            if old or self._torn:
                write_atomically(self.path, lambda temporary: self._rewrite(temporary, old, new))
            else:
                with self.path.open("ab") as file:
                    file.writelines(map(_line, new))
                    file.flush()
                    os.fsync(file.fileno())
            self._read_in(old, new)

    def _rewrite(self, path: Path, old: set[str], new: Sequence[Row]) -> None:
        """The same file without some runs, and with others; the line that a writer was killed in goes."""
        with path.open("wb") as file:
            begins = True
            for line, row in read_lines(self.path):  # a line, or a piece of a long one
                if (row is not None and row["spec_hash"] in old) or (begins and _is_torn(line)):
                    continue
                file.write(line)
                begins = line.endswith(b"\n")
            file.write(b"" if begins else b"\n")
            file.writelines(map(_line, new))

    def _read_in(self, old: set[str], new: Sequence[Row]) -> None:
        self._torn, self._seen = False, self.stamp
        for spec_hash in old:
            del self._runs[spec_hash]
        for row in new:
            self._runs.setdefault(row["spec_hash"], []).append(row)

    def marked(self, spec_hash: str) -> bool:
        """Whether a run diverged or failed."""
        return any(row["metric"] in ("diverged", "failed") and row["value"] for row in self.of(spec_hash))

    def measured_by(self, spec_hash: str) -> list[str] | None:
        """The metrics that a run was measured with, as ``name@digest``; None unless its rows are all there."""
        found = [str(row.get("measured_by") or "").split() for row in self.of(spec_hash) if is_last(row)]
        return found[-1] if found else None
