"""The request log of a trained federation: which model version came from which request.

``requests.jsonl`` holds one JSON object per version, each with the hash of the one before, and
``versions/NNNN.safetensors`` its parameters and, in the file's metadata, what the request was. A model is written under
a hidden name, the log is replaced as a whole, and the model gets its own name. A command that was killed in between has
served: the newest model counts under its hidden name too, whether or not the log names it. So a version under its own
name that the log does not know is never what a killed command left: the log was lost, and is rebuilt only when that is
asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import (
    LOG,
    VERSIONS,
    open_tensors,
    read_bytes,
    refuse_links,
    remove_unfinished,
    sha256,
    write_text,
    writing,
)
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.serving.versions import hidden_name, on_disk, own_name
from quickdrop_bench.store.schema import typed

LOCK = ".lock"

ACTIONS = ("unlearn", "relearn")
LARGEST = 64 * 2**20
"""Bytes of a log that is still read."""

FACTS = ("version", "parent", "action", "request", "method", "hyper_parameters", "forgotten", "absent")
"""What a version's file says of its entry: all that the same request gives again, to the same bytes."""

WAY_BACK = f"the command 'show RUN --recover-log' rebuilds it from {VERSIONS}/"

MISREAD = (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a log or a version of another content than expected raises."""


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
        previous: hash of the entry before; empty for the first one.
    """

    version: int
    parent: int
    action: str
    request: str
    method: str
    hyper_parameters: dict[str, Any]
    forgotten: tuple[str, ...]
    cost: dict[str, dict[str, float]]
    before: dict[str, float] | None
    after: dict[str, float] | None
    sha256: str
    provenance: dict[str, Any]
    absent: tuple[int, ...]
    previous: str

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"action {self.action!r}")
        for text in (self.request, *self.forgotten):
            UnlearningRequest.parse(text)
        if not 0 <= self.parent < self.version:
            raise ValueError(f"version {self.version} from {self.parent}")

    @property
    def requests(self) -> tuple[UnlearningRequest, ...]:
        """:attr:`forgotten`, parsed."""
        return tuple(map(UnlearningRequest.parse, self.forgotten))

    @property
    def metadata(self) -> dict[str, str]:
        """Of the version's file."""
        return {"entry": json.dumps({name: getattr(self, name) for name in FACTS})}

    @property
    def line(self) -> str:
        """As it stands in the log."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


def chained_to(entries: Sequence[Entry]) -> str:
    """What the next entry after these gives as ``previous``."""
    return hashlib.sha256(entries[-1].line.encode()).hexdigest() if entries else ""


def read_log(folder: Path) -> list[Entry]:
    """The entries of a run's log, oldest first; :class:`BadInput` if it is damaged or does not know a version."""
    path, files = folder / LOG, on_disk(folder)  # in this order: what has its own name is in a log that is read later
    try:
        content = read_bytes(path, LARGEST).decode("utf-8") if os.path.lexists(path) else ""
        entries = _chained([json.loads(line) for line in content.split("\n") if line])
        new = len(entries) + 1
        if files.get(new) == hidden_name(folder, new) and (finished := _from_file(files[new], None)):
            entries.append(replace(finished, previous=chained_to(entries)))
        _check_chain(entries)
    except MISREAD as error:
        allowed = f"{LOG} is damaged or cannot be read ({type(error).__name__}); {WAY_BACK}"
        raise BadInput("RUN", folder, allowed) from error
    if lost := sorted(files.keys() - {entry.version for entry in entries}):
        allowed = f"{LOG} does not know version {lost[0]}, and what that forgot would come back; {WAY_BACK}"
        raise BadInput("RUN", folder, allowed)
    return entries


def recover_log(folder: Path) -> bool:
    """Rebuild a log that is damaged or lost, from what is left of it and what the versions' files say.

    Of requests that only the files tell of, costs and accuracies are lost. The damaged log is kept beside the new one.

    Returns:
        Whether there was anything to do. :class:`BadInput` is raised if nothing says which request made a version.
    """
    with locked(folder):
        try:
            read_log(folder)
            return False
        except BadInput:
            left, files = _left_of(folder), on_disk(folder)
        entries: list[Entry] = []
        for version in range(1, max({*left, *files, *_named_in(folder)}, default=0) + 1):
            entry = _from_file(files[version], left.get(version)) if version in files else left.get(version)
            if entry is None or entry.version != version:
                allowed = f"neither {LOG} nor {VERSIONS}/ says what request made version {version}"
                back = f", or delete {VERSIONS}/{files[version].name} and ask for it again" if version in files else ""
                raise BadInput("RUN", folder, f"{allowed}; put one of them back from a copy{back}")
            entries.append(replace(entry, previous=chained_to(entries)))
        try:
            _check_chain(entries)
        except ValueError as error:
            allowed = f"what {VERSIONS}/ and {LOG} say of the requests does not fit; put {LOG} back from a copy"
            raise BadInput("RUN", folder, allowed) from error
        with writing("RUN", folder):
            if os.path.lexists(folder / LOG):
                number = sum(1 for _ in folder.glob(f"{LOG}.damaged-*")) + 1
                (folder / LOG).rename(folder / f"{LOG}.damaged-{number}")
            write_log(folder, entries)
    return True


def _left_of(folder: Path) -> dict[int, Entry]:
    """The entries of a damaged log that can be read still, by version."""
    found: dict[int, Entry] = {}
    with suppress(OSError):
        for line in read_bytes(folder / LOG, LARGEST).decode("utf-8", errors="replace").split("\n"):
            with suppress(*MISREAD):
                entry = _entry({"previous": "", **json.loads(line)})
                found[entry.version] = entry
    return found


def _named_in(folder: Path) -> set[int]:
    """The versions that a damaged log names, also in lines that cannot be read."""
    with suppress(OSError):
        return {int(number) for number in re.findall(rb'"version": ?([0-9]{1,9})\b', read_bytes(folder / LOG, LARGEST))}
    return set()


def _from_file(path: Path, logged: Entry | None) -> Entry | None:
    """A version's entry: what is left of the log, unless the file says otherwise."""
    try:
        checksum = sha256(path)
        with open_tensors(path) as tensors:
            facts = json.loads((tensors.metadata() or {})["entry"])
        none: dict[str, Any] = {"cost": {}, "before": None, "after": None, "provenance": {}, "previous": ""}
        entry = _entry({**none, **{name: facts[name] for name in FACTS}, "sha256": checksum})
    except MISREAD:
        return logged  # a damaged file: that is said where it is used
    # Its checksum counts even if the file has another one now, which is then damaged.
    return logged if logged is not None and logged.metadata == entry.metadata else entry


def _chained(lines: Sequence[dict[str, Any]]) -> list[Entry]:
    """The entries of a log; one from before logs were chains, in which no entry has ``previous``, becomes a chain."""
    whole = any("previous" in line for line in lines)
    entries: list[Entry] = []
    for line in lines:
        entries.append(_entry(line if whole else {**line, "previous": chained_to(entries)}))
    return entries


def _entry(values: object) -> Entry:
    entry: Entry = typed(Entry, values, "an entry")
    typed(str, entry.provenance.get("created_at", ""), "created_at")
    return entry


def _check_chain(entries: Sequence[Entry]) -> None:
    """Raise :class:`ValueError` unless each entry follows from the one before, and what it forgot from its parent's."""
    targets: list[set[tuple[str, int]]] = [set()]
    for k, entry in enumerate(entries):
        if entry.version != k + 1 or entry.previous != chained_to(entries[:k]):
            raise ValueError("chain")
        own, before = _targets([UnlearningRequest.parse(entry.request)]), targets[entry.parent]
        after = before | own if entry.action == "unlearn" else before - own
        if _targets(entry.requests) != after:
            raise ValueError("forgotten")
        targets.append(after)


def _targets(requests: Iterable[UnlearningRequest]) -> set[tuple[str, int]]:
    return {(request.level, target) for request in requests for target in request.targets}


def write_log(folder: Path, entries: Sequence[Entry]) -> None:
    """Replace the log; with an :class:`OSError`, the old one is left as it was."""
    write_text(folder / LOG, "".join(entry.line for entry in entries))


def settle(folder: Path, entries: Sequence[Entry]) -> None:
    """If the newest version is hidden, name it in the log, then give it its own name; errors as :func:`write_log`."""
    version = len(entries)
    if on_disk(folder).get(version) == (hidden := hidden_name(folder, version)):
        write_log(folder, entries)
        with suppress(OSError):  # it is found under both
            hidden.rename(own_name(folder, version))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run for oneself, until this process ends in any way; :class:`BadInput` if another command holds it."""
    refuse_links(folder, folder, "RUN")
    lock = FileLock(folder / LOCK, timeout=0)
    with writing("RUN", folder):
        try:
            lock.acquire()
        except Timeout:
            raise BadInput("RUN", folder, "another command is working on it; try again when that has ended") from None
    try:
        with writing("RUN", folder):
            remove_unfinished(folder)
        yield
    finally:
        lock.release()
