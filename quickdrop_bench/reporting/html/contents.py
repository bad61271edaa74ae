"""What lies in a results folder: rows and pictures by exhibit, what ran where, and what is missing."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from quickdrop_bench.core.cost import duration
from quickdrop_bench.core.files import below, read_bytes
from quickdrop_bench.harness.exhibits import exhibit, exhibits
from quickdrop_bench.harness.presets import presets
from quickdrop_bench.reporting.figures.points import VARIED
from quickdrop_bench.reporting.frame import Setting, latest, named, read_rows, settings_in, without_training
from quickdrop_bench.reporting.names import ORACLE, ORIGINAL, method_title, setting_name
from quickdrop_bench.reporting.tables.shape import EMPTY, Table, plain_table

IMAGES = {".svg": "image/svg+xml", ".png": "image/png"}
PICTURES = ("figure", "distribution")
"""Names of the pictures that commands make; others belong to other pages."""

MOST_NUMBERS = 300
"""Lines of a picture's numbers that the page shows."""

LARGEST_PICTURE = 2**26
"""Bytes of a picture, or of its numbers, that are still read."""


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with the numbers of the CSV file of the same name, if there is one."""

    name: str
    uri: str
    numbers: Table | None


@dataclass(frozen=True, eq=False)
class Found:
    """A folder with rows, pictures or both.

    Attributes:
        folder: relative to the results folder, with slashes.
        exhibit: name of what it holds, e.g. ``table2``.
        preset: with which it was measured; may be empty.
        rows: from :func:`~quickdrop_bench.reporting.frame.read_rows`.
        pictures: by name.
        problem: what could not be read; empty if all could.
    """

    folder: str
    exhibit: str
    preset: str
    rows: pd.DataFrame
    pictures: Sequence[Picture]
    problem: str

    @property
    def group(self) -> str:
        """The folder above, which holds all exhibits measured together."""
        return self.folder.rpartition("/")[0]

    @cached_property
    def newest(self) -> pd.DataFrame:
        """Rows of superseded specs left out; those that vary what figures and sweeps show are no such."""
        return latest(self.rows, [] if self.exhibit.startswith("table") else [*VARIED])

    def settings(self) -> list[Setting]:
        """What was measured."""
        return settings_in(named(self.newest))


def find(results_dir: Path) -> list[Found]:
    """Every folder with ``rows.jsonl`` or a picture that a command made, in the order of the exhibits."""
    wanted = [path for path in below(results_dir) if path.name == "rows.jsonl" or _is_picture(path)]
    order = {name: k for k, name in enumerate(exhibits())}
    found = [_found(folder, results_dir) for folder in {path.parent for path in wanted}]
    return sorted(found, key=lambda f: (order.get(f.exhibit, len(order)), f.folder.startswith("reference/"), f.folder))


def _is_picture(path: Path) -> bool:
    return path.suffix in IMAGES and path.stem in PICTURES


def _found(folder: Path, results_dir: Path) -> Found:
    """What a folder holds: its name says it, or, where that is no exhibit's, as ``table2-cifar10``, its rows do."""
    rows, problem = read_rows(folder / "rows.jsonl")
    names = folder.relative_to(results_dir).parts or (folder.name,)
    at = names.index("distribution") if "distribution" in names else len(names) - 1
    own = next(map(str, rows["preset"].dropna()), "")
    name = names[at] if names[at] in exhibits() or rows.empty else str(rows["artefact"].iloc[0])
    return Found("/".join(names), name, own or (names[at - 1] if at else ""), rows, _pictures(folder), problem)


def _pictures(folder: Path) -> list[Picture]:
    """One per name, SVG rather than PNG."""
    names = next(os.walk(folder), ("", [], []))[2]  # none where the folder has vanished meanwhile
    # Of several files with one name the last stays.
    files = {path.stem: path for path in sorted(folder / name for name in names) if _is_picture(path)}
    pictures = []
    for stem, path in files.items():
        try:
            uri = data_uri(read_bytes(path, LARGEST_PICTURE), IMAGES[path.suffix])
        except OSError:
            continue
        pictures.append(Picture(path.name, uri, _numbers(folder / f"{stem}.csv")))
    return pictures


def data_uri(content: bytes, kind: str = IMAGES[".svg"]) -> str:
    """A picture as the address of an ``img``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _numbers(path: Path) -> Table | None:
    """What is the same in all lines stands above them."""
    try:
        frame = pd.read_csv(io.BytesIO(read_bytes(path, LARGEST_PICTURE)), dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        return None
    same = [name for name in frame if len(frame) > 1 and frame[name].nunique() == 1]
    heading = ", ".join(f"{name}: {frame[name].iloc[0]}" for name in same if frame[name].iloc[0])
    shown = frame.drop(columns=same)
    if shown.empty:
        return None
    left = len(shown) - MOST_NUMBERS
    body = shown.head(MOST_NUMBERS).to_numpy().tolist()
    note = f"{left} more lines in {path.name}" if left > 0 else ""
    return plain_table(": ".join(filter(None, (path.name, heading))), [*map(str, shown)], body, note)


def provenance(found: Sequence[Found]) -> list[Table]:
    """What ran where, and versions, commits and devices of all rows."""
    frames = [f.rows for f in found if len(f.rows)]
    if not frames:
        return []
    rows = pd.concat(frames, ignore_index=True)
    versions = {
        (name, str(version)) for one in rows["versions"] if isinstance(one, dict) for name, version in one.items()
    }
    versions |= {("quickdrop_bench", version) for version in rows["package_version"].dropna().unique()}
    packages = [
        [name, ", ".join(sorted(version for package, version in versions if package == name))]
        for name in sorted({package for package, _ in versions})
    ]
    counted = ["Rows", "Spec hashes", "Measured (UTC)"]
    commits = [[str(name), *_counts(group)] for name, group in rows.groupby(_commit(rows), sort=False)]
    devices = [[*map(str, key), *_counts(group)] for key, group in rows.groupby(["device", "precision"], sort=False)]
    return [
        _what_ran(found),
        plain_table("Package versions", ["Package", "Versions"], packages),
        plain_table("Commits", ["Commit", *counted], commits, "dirty: tracked files differed from the commit"),
        plain_table("Devices", ["Device", "Precision", *counted], devices),
    ]


def _what_ran(found: Sequence[Found]) -> Table:
    header = ["Folder", "Preset", "Setting", "Scale", "Fine-tuning", "Seeds", "Methods", "Measured (UTC)", "Wall time"]
    lines = []
    for f in found:
        for setting in f.settings():
            own = without_training(setting.rows)
            methods = [method_title(m) for m in own["method"].unique() if m != ORIGINAL]
            runs = setting.rows.drop_duplicates("spec_hash")
            wall = float(pd.to_numeric(runs["wall_seconds"], errors="coerce").sum())
            line = [f.folder, f.preset, setting_name(setting.in_words)]
            line += [_distinct(setting.rows, name) for name in VARIED]
            line += [", ".join(map(str, setting.seeds())), ", ".join(methods) or "training only"]
            lines.append([*line, _period(setting.rows), duration(wall) if wall else ""])
    return plain_table("What ran where", header, lines).used()


def _distinct(rows: pd.DataFrame, column: str) -> str:
    return "; ".join(f"{value:g}" for value in sorted(rows[column].dropna().unique()))


def _period(rows: pd.DataFrame) -> str:
    """First and last of ISO times, to the minute."""
    known = sorted({time[:16].replace("T", " ") for time in rows["created_at"].dropna().astype(str)})
    return " – ".join(dict.fromkeys((known[0], known[-1]))) if known else ""


def _commit(rows: pd.DataFrame) -> pd.Series:
    names = rows["git_commit"].fillna("not in a git checkout").astype(str).str.slice(0, 40)
    return names.where(~rows["git_dirty"].eq(True), names + " (dirty)")


def _counts(rows: pd.DataFrame) -> list[str]:
    return [str(len(rows)), str(rows["spec_hash"].nunique()), _period(rows)]


def missing(found: Sequence[Found]) -> list[Table]:
    """What was never run, what went wrong, and what has nothing to be compared with."""
    cells: list[list[str]] = []
    wrong: list[list[str]] = []
    alone: list[list[str]] = []
    for f in found:
        own = exhibit(f.exhibit) if f.exhibit in exhibits() else None
        shown = own.methods if own and own.per == "method" else ()
        for setting in f.settings():
            place = [f.folder, setting_name(setting.in_words)]
            wrong += [[*place, *line] for line in _went_wrong(setting)]
            requests = Setting(without_training(setting.rows))
            if requests.methods():
                cells += [[*place, *line] for line in _not_run(requests, shown)]
                single = _without_oracle(requests) if ORACLE in shown else ""
                alone += [[*place, single]] if single else []
    torn = [[f.folder, f"rows.jsonl: {f.problem}"] for f in found if f.problem]
    place = ["Folder", "Setting"]
    tables = [
        _coverage(found),
        plain_table("Cells not run", [*place, "Method", "Missing"], cells),
        plain_table("Runs that failed or diverged", [*place, "Method", "Seed", "What", "Error"], wrong),
        plain_table("Methods without an oracle's run to compare with", [*place, "Methods and seeds"], alone),
        plain_table("Lines that are not shown", ["Folder", "What"], torn),
    ]
    return [table for table in tables if table.lines]


def _coverage(found: Sequence[Found]) -> Table:
    """Exhibits × presets: the settings that were run."""
    measured = [f for f in found if len(f.rows)]
    columns = list(dict.fromkeys((*presets(), *(f.preset for f in measured if f.preset))))

    def text(name: str, preset: str) -> str:
        counts: Counter[str] = Counter()
        for f in (f for f in measured if (f.exhibit, f.preset) == (name, preset)):
            counts[" (reference)" * f.folder.startswith("reference/")] += len(f.settings())
        texts = [f"{n} setting{'s'[: n != 1]}{kind}" for kind, n in counts.items()]
        table_2 = any((f.exhibit, f.preset) == ("table2", preset) for f in measured)
        taken_over = exhibit(name).kind == "capabilities" and table_2
        return "; ".join(texts) or ("from Table 2's rows" if taken_over else "never run")

    lines = [[name, *(text(name, preset) for preset in columns)] for name in exhibits()]
    return plain_table("Tables and figures by preset", ["Exhibit", *columns], lines if columns else [])


def _went_wrong(setting: Setting) -> Iterator[list[str]]:
    """Method, seed, what and error of every run that failed or diverged."""
    rows = setting.rows
    bad = rows[rows["metric"].isin(["failed", "diverged"]) & (rows["value"] > 0)]
    for row in bad.drop_duplicates(["method", "seed", "spec_hash", "metric"]).to_dict("records"):
        error = row["error"] if isinstance(row["error"], str) else ""
        yield [method_title(row["method"]), str(row["seed"]), row["metric"], error or EMPTY]


def _not_run(setting: Setting, methods: Iterable[str]) -> Iterator[list[str]]:
    """Methods of the exhibit that can serve the request and were not run, or not on every seed."""
    for method in methods:
        absent = sorted({*setting.seeds()} - {*setting.seeds(method)})
        if absent and setting.serves(method):
            some = "" if absent == setting.seeds() else f"seed{'s'[: len(absent) != 1]} {', '.join(map(str, absent))}"
            yield [method_title(method), some or "every seed"]


def _without_oracle(setting: Setting) -> str:
    """Methods and the seeds on which the oracle was not run on the same device; empty if there are none."""
    rows = setting.rows[setting.rows["method"] != ORIGINAL]
    failed = rows[(rows["metric"] == "failed") & (rows["value"] > 0)]["spec_hash"]
    oracle = rows[(rows["method"] == ORACLE) & ~rows["spec_hash"].isin(failed)]
    known = set(zip(oracle["seed"], oracle["device"], strict=True))
    alone: dict[str, list[int]] = {}
    for method, seed, device in rows[["method", "seed", "device"]].drop_duplicates().itertuples(index=False):
        if method != ORACLE and (seed, device) not in known:
            alone.setdefault(method, []).append(seed)
    return "; ".join(f"{method_title(m)} ({', '.join(map(str, sorted(s)))})" for m, s in alone.items())
