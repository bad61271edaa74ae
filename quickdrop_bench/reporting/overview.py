"""What lies in a results folder: who was measured where, with what, and what is missing."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from quickdrop_bench.core.files import read_bytes
from quickdrop_bench.reporting.declared import Capability
from quickdrop_bench.reporting.layout import EMPTY, ORACLE, ORIGINAL, method_name
from quickdrop_bench.reporting.measured import SETTING, complete, latest, without_training
from quickdrop_bench.reporting.names import request_name
from quickdrop_bench.reporting.points import VARIED
from quickdrop_bench.reporting.sections import differing
from quickdrop_bench.store.rows import KEY, LARGEST

__all__ = [
    "Found",
    "Listing",
    "Picture",
    "dataset_words",
    "find_artefacts",
    "missing",
    "provenance",
    "setting_words",
    "what_ran",
]

TEXTS = ("dataset", "distribution", "method", "request", "stage", "metric", "spec_hash")
WHOLE = ("clients", "seed")
"""What a row must have, as text and as whole numbers."""
OPTIONAL = (
    *("artefact", "protocol", "federation_hash", "device", "precision", "preset", "git_commit", "created_at"),
    *("setting", "changes", "method_setting", "method_changes"),
)
MACHINE = {"device": "", "precision": "", "git_commit": "", "created_at": "", "preset": "", "error": ""}
IMAGES = {".svg": "image/svg+xml", ".png": "image/png"}
PER_ROUND = ("phase", "round")
"""What tells values of single rounds apart."""
MOST_NUMBERS = 300
"""Lines of a picture's numbers that the page shows."""
LARGEST_PICTURE = 2**26
"""Bytes of a picture, or of its numbers, that are still read."""


@dataclass(frozen=True)
class Listing:
    """A plain table.

    Attributes:
        caption: what it is.
        header: one text per column.
        lines: cells, line by line.
        note: a sentence to stand below; may be empty.
    """

    caption: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI.

    Attributes:
        name: of its file.
        uri: its content.
        numbers: those of the CSV file of the same name; None without one.
    """

    name: str
    uri: str
    numbers: Listing | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """A folder with rows, pictures or both.

    Attributes:
        folder: relative to the results folder, with slashes.
        artefact: what it holds, e.g. ``table2``.
        preset: with which it was measured; may be empty.
        rows: one line per measured value.
        pictures: by name.
        problem: what could not be read; empty if all could.
    """

    folder: str
    artefact: str
    preset: str
    rows: pd.DataFrame
    pictures: tuple[Picture, ...] = ()
    problem: str = ""

    @property
    def group(self) -> str:
        """The folder above, which holds all artefacts measured together."""
        return self.folder.rpartition("/")[0]

    @cached_property
    def newest(self) -> pd.DataFrame:
        """Rows of superseded specs left out; those that vary what figures and sweeps show are no such."""
        varied = [] if self.artefact.startswith("table") else list(VARIED)
        return latest(self.rows, varied) if len(self.rows) else self.rows

    def in_words(self, text: str) -> str:
        """A text with the name of its data set put in words, see :func:`dataset_words`."""
        labels = sorted(map(str, self.rows["dataset"].unique()), key=len, reverse=True) if len(self.rows) else []
        special = (label for label in labels if label in text and dataset_words(label) != label)
        label = next(special, "")
        return text.replace(label, dataset_words(label)) if label else text

    def settings(self) -> Iterator[tuple[Mapping[str, Any], pd.DataFrame]]:
        """What was measured, and the newest rows of it."""
        if len(self.newest):
            for _, group in complete(self.newest).groupby(SETTING, sort=False):
                yield {name: group[name].iloc[0] for name in SETTING} | {"request_name": request_name(group)}, group


def find_artefacts(results_dir: Path) -> list[Found]:
    """Every folder with ``rows.jsonl`` or a picture, tables before figures before all else.

    Args:
        results_dir: its folders are ``<preset>/<artefact>`` or lie deeper.

    Returns:
        Lines of ``rows.jsonl`` that are torn or lack what a row must have are left out, and counted in ``problem``.
    """
    wanted = (path for path in results_dir.rglob("*") if path.name == "rows.jsonl" or path.suffix in IMAGES)
    folders = {path.parent for path in wanted if not path.name.startswith(".")}
    return sorted((_found(folder, results_dir) for folder in folders), key=_order)


def _order(found: Found) -> tuple[int, str, int, bool, str]:
    kind, number = _parts(found.artefact)
    rank = ("table", "figure").index(kind) if kind in ("table", "figure") else 2
    return rank, kind, number, found.folder.startswith("reference/"), found.folder


def _parts(artefact: str) -> tuple[str, int]:
    """Name and number of an artefact."""
    match = re.fullmatch(r"(.*?)(\d{0,6})", artefact, re.DOTALL)
    assert match is not None
    return match[1], int(match[2] or 0)


def _found(folder: Path, results_dir: Path) -> Found:
    rows, problem = _read(folder / "rows.jsonl")
    names = folder.relative_to(results_dir).parts or (folder.name,)
    at = names.index("distribution") if "distribution" in names else len(names) - 1
    own = str(rows["preset"].iloc[0]) if len(rows) else ""
    preset = own or (names[at - 1] if at else "")
    return Found("/".join(names), names[at], preset, rows, _pictures(folder), problem)


def _read(path: Path) -> tuple[pd.DataFrame, str]:
    """Rows, the last of each key, and what could not be read."""
    try:
        there = os.path.lexists(path)
        lines = read_bytes(path, LARGEST).decode("utf-8", errors="replace").splitlines() if there else []
    except OSError as error:
        return pd.DataFrame(), f"cannot be read ({error.strerror})"
    rows = [row for row in map(_row, lines) if row]
    torn = len(lines) - len(rows)
    problem = f"{torn} of {len(lines)} lines cannot be read" if torn else ""
    if not rows:
        return pd.DataFrame(), problem
    frame = pd.DataFrame(rows)
    keys = [name for name in dict.fromkeys((*KEY, *SETTING, *PER_ROUND)) if name in frame]
    return frame.drop_duplicates(keys, keep="last").reset_index(drop=True), problem


def _row(line: str) -> dict[str, Any]:
    """One row with plain values; empty if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(row, dict):
        return {}
    if not all(isinstance(row.get(n), str) for n in TEXTS) or not all(type(row.get(n)) is int for n in WHOLE):
        return {}
    plain = {k: v for k, v in row.items() if isinstance(v, str | int | float)}
    plain = {k: v for k, v in plain.items() if k not in OPTIONAL or isinstance(v, str)}
    versions = row.get("versions")
    pairs = versions.items() if isinstance(versions, dict) else ()
    return {**MACHINE, "value": None, **plain, "versions": tuple(sorted((str(k), str(v)) for k, v in pairs))}


def _pictures(folder: Path) -> tuple[Picture, ...]:
    """One per name, SVG rather than PNG."""
    files = sorted(path for path in folder.iterdir() if path.suffix in IMAGES and not path.name.startswith("."))
    best = {path.stem: path for path in sorted(files, key=lambda path: path.suffix == ".svg")}
    pictures = []
    for stem, path in sorted(best.items()):
        try:
            content = base64.b64encode(read_bytes(path, LARGEST_PICTURE)).decode("ascii")
            pictures.append(Picture(path.name, f"data:{IMAGES[path.suffix]};base64,{content}", _numbers(folder, stem)))
        except OSError:
            continue
    return tuple(pictures)


def _numbers(folder: Path, stem: str) -> Listing | None:
    path = folder / f"{stem}.csv"
    if not path.exists():
        return None
    try:
        text = read_bytes(path, LARGEST_PICTURE).decode("utf-8", errors="replace")
        lines = [line for line in csv.reader(io.StringIO(text)) if line]
    except (OSError, csv.Error):
        return None
    if not lines:
        return None
    header, body = lines[0], lines[1:]
    width = len(header)
    shown = [[*line, *[""] * (width - len(line))][:width] for line in body[:MOST_NUMBERS]]
    left = len(body) - len(shown)
    return Listing(path.name, header, shown, f"{left} more lines in {path.name}." if left else "")


def dataset_words(label: str) -> str:
    """A data set for people: pictures of CIFAR-10 that went through JPEG are not the original ones, and say so."""
    if re.search(r"cifar-?10(?!\d).*jpe?g|jpe?g.*cifar-?10(?!\d)", label, re.IGNORECASE):
        return f"CIFAR-10, JPEG re-encoded ({label})"
    return label


def what_ran(found: Sequence[Found]) -> Listing:
    """One line per folder and setting."""
    header = ["Folder", "Preset", "Data set", "Clients", "Distribution", "Request", "Protocol", "Changed"]
    header += ["Scale", "Fine-tuning", "Seeds", "Methods", "Device", "Precision"]
    header += ["Measured (UTC)", "Commit", "Wall time"]
    lines = []
    for f in found:
        for setting, rows in f.settings():
            own = without_training(rows)
            methods = [method_name(m) for m in own["method"].unique() if m != ORIGINAL]
            runs = rows.drop_duplicates("spec_hash").reindex(columns=["wall_seconds"])
            wall = pd.to_numeric(runs["wall_seconds"], errors="coerce").sum()
            lines.append(
                [
                    *(f.folder, f.preset, dataset_words(str(setting["dataset"]))),
                    *(
                        str(setting[name])
                        for name in ("clients", "distribution", "request_name", "protocol", "changes")
                    ),
                    *(_distinct(rows, name) or EMPTY for name in VARIED),
                    ", ".join(map(str, sorted(rows["seed"].unique()))),
                    ", ".join(methods) or "training only",
                    *(_distinct(rows, name) for name in ("device", "precision")),
                    _period(rows["created_at"]),
                    ", ".join(_commits(rows)),
                    duration(float(wall)) if wall else "",
                ]
            )
    used = [k for k in range(len(header)) if any(line[k] not in ("", EMPTY) for line in lines)]
    shown = [[line[k] for k in used] for line in lines]
    return Listing("What was measured, by folder and setting", [header[k] for k in used], shown)


def _distinct(rows: pd.DataFrame, column: str) -> str:
    """The values of a column, for people; empty where it is absent."""
    values = rows[column].dropna().unique().tolist() if column in rows else []
    ordered = sorted(values, key=lambda value: (isinstance(value, str), value))
    return "; ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in ordered if value != "")


def _period(times: pd.Series) -> str:
    """First and last of ISO times, to the minute."""
    known = sorted(time[:16].replace("T", " ") for time in times.unique() if time)
    return " – ".join(dict.fromkeys((known[0], known[-1]))) if known else ""


def _commits(rows: pd.DataFrame) -> list[str]:
    """Short hashes; what differed from its commit is marked."""
    pairs = rows.reindex(columns=["git_commit", "git_dirty"]).drop_duplicates()
    return [f"{c[:7]}{' (dirty)' if d is True else ''}" for c, d in pairs.itertuples(index=False) if c]


def duration(seconds: float) -> str:
    """A time for people.

    Example:
        >>> duration(3725), duration(65), duration(2.5)
        ('1 h 02 min', '1 min 05 s', '2.5 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def provenance(found: Sequence[Found]) -> list[Listing]:
    """Versions, commits and devices of all rows."""
    frames = [f.rows for f in found if len(f.rows)]
    if not frames:
        return []
    rows = pd.concat(frames, ignore_index=True)
    versions: dict[str, set[str]] = {}
    for pairs in rows["versions"].unique():
        for package, version in pairs:
            versions.setdefault(package, set()).add(version)
    for version in rows.get("package_version", pd.Series(dtype=str)).dropna().unique():
        versions.setdefault("quickdrop_bench", set()).add(str(version))
    commits = [[c, *_counts(group)] for c, group in _by_commit(rows)]
    devices = [[*map(str, key), *_counts(group)] for key, group in rows.groupby(["device", "precision"], sort=False)]
    packages = [[name, ", ".join(sorted(known))] for name, known in sorted(versions.items())]
    counted = ["Rows", "Spec hashes", "Measured (UTC)"]
    return [
        Listing("Package versions", ["Package", "Versions"], packages),
        Listing("Commits", ["Commit", *counted], commits, "Dirty: tracked files differed from the commit."),
        Listing("Devices", ["Device", "Precision", *counted], devices),
    ]


def _by_commit(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    names = rows["git_commit"].replace("", "not in a git checkout").str.slice(0, 40)
    dirty = rows["git_dirty"].eq(True) if "git_dirty" in rows else pd.Series(False, index=rows.index)
    for name, group in rows.groupby(names.where(~dirty, names + " (dirty)"), sort=False):
        yield str(name), group


def _counts(rows: pd.DataFrame) -> list[str]:
    return [str(len(rows)), str(rows["spec_hash"].nunique()), _period(rows["created_at"])]


@dataclass
class _Gaps:
    """Lines of what is missing, under their captions."""

    cells: list[list[str]] = field(default_factory=list)
    wrong: list[list[str]] = field(default_factory=list)
    alone: list[list[str]] = field(default_factory=list)


def missing(
    found: Sequence[Found], layouts: Mapping[str, Any], capabilities: Sequence[Capability], presets: Sequence[str]
) -> list[Listing]:
    """What was never run, what went wrong, and what has nothing to be compared with.

    Args:
        found: from :func:`find_artefacts`.
        layouts: of every artefact that there is; None for one without.
        capabilities: what the methods declare.
        presets: that there are; others are added as found.
    """
    gaps = _Gaps()
    for f in found:
        layout = layouts.get(f.artefact)
        shown = getattr(layout, "methods", ()) if getattr(layout, "per", "method") == "method" else ()
        for setting, rows in f.settings():
            place = [f.folder, setting_words(setting)]
            gaps.wrong += [[*place, *line] for line in _went_wrong(rows)]
            own = without_training(rows)
            own = own[own["method"] != ORIGINAL]
            if own.empty:
                continue
            gaps.cells += [[*place, *line] for line in _not_run(own, shown, capabilities, str(setting["request"]))]
            if ORACLE in shown and (alone := _without_oracle(own)):
                gaps.alone.append([*place, alone])
    torn = [[f.folder, f"rows.jsonl: {f.problem}"] for f in found if f.problem]
    place = ["Folder", "Setting"]
    listings = [
        _coverage(found, layouts, presets),
        Listing("Cells not run", [*place, "Method", "Missing"], gaps.cells),
        Listing("Runs that failed or diverged", [*place, "Method", "Seed", "What", "Error"], gaps.wrong),
        Listing("Methods without an oracle's run to compare with", [*place, "Methods and seeds"], gaps.alone),
        Listing("Lines that cannot be read", ["Folder", "What"], torn),
    ]
    return [listing for listing in listings if listing.lines]


def setting_words(setting: Mapping[str, Any]) -> str:
    """A setting in one phrase."""
    protocol = "" if setting["protocol"] == "preset" else f", protocol {setting['protocol']}"
    return (
        f"{dataset_words(str(setting['dataset']))}, {setting['clients']} clients, {setting['distribution']}, "
        f"request {setting['request_name']}{protocol}{differing(setting['changes'])}"
    )


def _coverage(found: Sequence[Found], layouts: Mapping[str, Any], presets: Sequence[str]) -> Listing:
    """Artefacts × presets: the seeds that were run."""
    measured = [f for f in found if len(f.rows)]
    columns = list(dict.fromkeys((*presets, *(f.preset for f in measured if f.preset))))
    lines = []
    for name in layouts:
        own = [[f for f in measured if (f.artefact, f.preset) == (name, preset)] for preset in columns]
        lines.append([name, *("; ".join(map(_settings_of, cell)) or "never run" for cell in own)])
    return Listing("Artefacts by preset", ["Artefact", *columns], lines if columns else [])


def _settings_of(found: Found) -> str:
    count = len(list(found.settings()))
    place = " (reference)" if found.folder.startswith("reference/") else ""
    return f"{count} setting{'s'[: count != 1]}{place}"


def _went_wrong(rows: pd.DataFrame) -> Iterable[list[str]]:
    """Method, seed, what and error of every run that failed or diverged."""
    bad = rows[rows["metric"].isin(["failed", "diverged"]) & (rows["value"] > 0)]
    for _, row in bad.drop_duplicates(["method", "seed", "spec_hash", "metric"]).iterrows():
        error = row["error"] if isinstance(row["error"], str) else ""
        yield [method_name(row["method"]), str(row["seed"]), row["metric"], error or EMPTY]


def _not_run(
    rows: pd.DataFrame, methods: Iterable[str], capabilities: Sequence[Capability], request: str
) -> Iterable[list[str]]:
    """Methods of the layout that can serve the request and were not run, or not on every seed."""
    client = request.startswith("client")
    unable = {c.method for c in capabilities if not (c.client if client else c.classes)}
    seeds = set(rows["seed"])
    for method in methods:
        absent = seeds - set(rows[rows["method"] == method]["seed"])
        if absent and method not in unable:
            some = "" if absent == seeds else f"seed{'s'[: len(absent) != 1]} {', '.join(map(str, sorted(absent)))}"
            yield [method_name(method), some or "every seed"]


def _without_oracle(rows: pd.DataFrame) -> str:
    """Methods and the seeds on which the oracle was not run on the same device; empty if there are none."""
    failed = rows[(rows["metric"] == "failed") & (rows["value"] > 0)]["spec_hash"]
    oracle = rows[(rows["method"] == ORACLE) & ~rows["spec_hash"].isin(failed)]
    known = set(zip(oracle["seed"], oracle["device"], strict=True))
    runs = rows[rows["method"] != ORACLE][["method", "seed", "device"]].drop_duplicates()
    alone: dict[str, list[int]] = {}
    for method, seed, device in runs.itertuples(index=False):
        if (seed, device) not in known:
            alone.setdefault(method, []).append(seed)
    return "; ".join(f"{method_name(m)} ({', '.join(map(str, sorted(s)))})" for m, s in alone.items())
