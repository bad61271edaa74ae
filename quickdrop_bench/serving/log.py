"""The request log of a trained federation: which model version came from which request.

``requests.jsonl`` holds one JSON object per version, ``versions/NNNN.safetensors`` its parameters. The model is on disk
before the log names it, and the log is replaced as a whole: that one rename makes the new version the current one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.errors import BadInput
from quickdrop_bench.files import read_bytes, refuse_links, write_text

__all__ = ["LOG", "VERSIONS", "Entry", "locked", "read_log", "write_log"]

LOG = "requests.jsonl"
VERSIONS = "versions"
LOCK = ".lock"

ACTIONS = ("unlearn", "relearn")
LARGEST = 64 * 2**20
"""Bytes of a log that is still read."""


@dataclass(frozen=True)
class Entry:
    """One served request.

    Attributes:
        version: of the model that it made, from 1; 0 is the model as it was trained.
        parent: the version that it started from.
        action: ``unlearn`` or ``relearn``.
        request: what was forgotten or learnt again, e.g. ``class-9``.
        method: that served it.
        hyper_parameters: of the method.
        forgotten: all that this version is not to know, in order.
        cost: by stage and metric, as in rows.
        before, after: accuracies in [0, 1] by name, of the parent and of this version: F-Set is about the request,
            R-Set leaves out the classes that are forgotten with it; None without the data.
        sha256: of the version's file.
        absent: clients that could not take part.
        provenance: as in rows.
    """

    version: int
    parent: int
    action: str
    request: str
    method: str
    hyper_parameters: Mapping[str, Any]
    forgotten: tuple[str, ...]
    cost: Mapping[str, Mapping[str, float]]
    before: Mapping[str, float] | None
    after: Mapping[str, float] | None
    sha256: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"action {self.action!r}")
        if not re.fullmatch(r"[\w.-]+", self.method):
            raise ValueError(f"method {self.method!r}")
        for text in (self.request, *self.forgotten):
            UnlearningRequest.parse(text)
        if not 0 <= self.parent < self.version:
            raise ValueError(f"version {self.version} from {self.parent}")

    @property
    def requests(self) -> tuple[UnlearningRequest, ...]:
        """:attr:`forgotten`, parsed."""
        return tuple(map(UnlearningRequest.parse, self.forgotten))


def read_log(folder: Path) -> list[Entry]:
    """The entries of a run's log, oldest first; none if nothing was requested yet.

    Raises:
        BadInput: the log cannot be read or is damaged.
    """
    path = folder / LOG
    try:
        versions = [int(p.stem) for p in (folder / VERSIONS).glob("[0-9]*.safetensors") if p.stem.isdigit()]
        if not os.path.lexists(path) and max(versions, default=0) <= 1:
            return []
        content = read_bytes(path, LARGEST).decode("utf-8")
        entries = [_entry(json.loads(line)) for line in content.split("\n") if line]
        if [entry.version for entry in entries] != list(range(1, len(entries) + 1)):
            raise ValueError("versions")
        if max(versions, default=0) > len(entries) + 1:
            raise ValueError("entries are missing")
        _check_chain(entries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput("RUN", folder, f"{LOG} is damaged or cannot be read ({type(error).__name__})") from error
    return entries


def _entry(values: Mapping[str, Any]) -> Entry:
    numbers, texts = ("version", "parent"), ("action", "request", "method", "sha256")
    if not all(type(values[name]) is int for name in numbers) or not all(type(values[name]) is str for name in texts):
        raise TypeError("a field has another type")
    for side in (values["before"], values["after"], *values["cost"].values()):
        if side is not None and not all(isinstance(number, int | float) for number in side.values()):
            raise TypeError("a field has another type")
    for mapping in (values["provenance"], values["hyper_parameters"]):
        if not isinstance(mapping, dict):
            raise TypeError("a field has another type")
    if not isinstance(values["provenance"].get("created_at", ""), str):
        raise TypeError("a field has another type")
    lists = {name: tuple(values[name]) for name in ("forgotten", "absent")}
    return Entry(**{**values, **lists})


def _check_chain(entries: Sequence[Entry]) -> None:
    """Raise :class:`ValueError` unless each entry's forgotten targets follow from its parent's and its request."""
    targets: list[set[tuple[str, int]]] = [set()]
    for entry in entries:
        own, before = _targets([UnlearningRequest.parse(entry.request)]), targets[entry.parent]
        after = before | own if entry.action == "unlearn" else before - own
        if _targets(entry.requests) != after:
            raise ValueError("forgotten")
        targets.append(after)


def _targets(requests: Iterable[UnlearningRequest]) -> set[tuple[str, int]]:
    return {(request.level, target) for request in requests for target in request.targets}


def write_log(folder: Path, entries: Sequence[Entry]) -> None:
    """Replace the log.

    Raises:
        OSError: it cannot be written; the old one is left as it was.
    """
    write_text(folder / LOG, "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run for oneself; the operating system lets go of it when this process ends, however it does.

    Raises:
        BadInput: another command holds it, or the folder cannot be written or holds a symbolic link.
    """
    refuse_links(folder, folder, "RUN")
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput("RUN", folder, "another command is working on it; try again when that has ended") from None
    except OSError as error:
        raise BadInput("RUN", folder, f"it cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()
