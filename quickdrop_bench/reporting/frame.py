"""The one reader of rows: which count, what follows from them, and the numbers of a setting, cell by cell."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import t

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.methods import METHODS
from quickdrop_bench.methods.registry import SMALL_SETS
from quickdrop_bench.reporting.names import CONTROL, ORACLE, ORIGINAL, registered, request_name
from quickdrop_bench.reporting.published import NOTHING_PUBLISHED, Published
from quickdrop_bench.store.rows import KEY, is_row, read_lines

SETTING = ["dataset", "clients", "distribution", "request", "protocol", "changes", "setting"]
"""The columns that say what was measured, whatever the method and seed; only rows that share them are averaged.

``setting`` is a hash of all that the others do not say; ``changes`` tells in words what differs from the preset."""

TEXTS = (
    *("protocol", "changes", "setting", "method_setting", "method_changes"),
    *("federation_hash", "device", "precision"),
)
"""Columns that a row has beside those of its key, as text; lines of earlier versions lack some."""

OPTIONAL = (
    *("phase", "round", "scale", "fine_tuning", "request_name", "class_name", "error", "preset", "wall_seconds"),
    *("versions", "package_version", "git_commit", "git_dirty", "created_at"),
)
"""Columns that some rows lack; in a frame all are there."""

TRAINING = "fl-training"
SEARCH = "search"
"""Stage of the rows that say what choosing a method's settings cost."""

COUNTED = (
    *("seconds", "sample_gradients", "second_order_sample_gradients", "sample_forwards"),
    *("f_set_accuracy", "r_set_accuracy", "attack_success", "storage_server_bytes", "storage_client_bytes"),
)
"""Metrics of a whole request from which others follow."""

OF_SMALL_SETS = "touched_share"
"""Every run has it, but of methods without small sets it says nothing."""

NONE = pd.Series(dtype=float)


def frame_of(rows: Iterable[object]) -> pd.DataFrame:
    """Rows as a frame, values as numbers (NaN where they are none); what is no row of this version is left out.

    A frame has all columns of :data:`KEY <quickdrop_bench.store.rows.KEY>`, :data:`TEXTS` and :data:`OPTIONAL`.
    """
    known: list[Any] = [*filter(is_row, rows)]
    known = [row for row in known if all(isinstance(row.get(name), str) for name in TEXTS)]
    columns = [*KEY, "value", *TEXTS, *OPTIONAL]
    frame = pd.DataFrame(known, columns=None if known else columns)
    frame = frame.reindex(columns=frame.columns.union(columns, sort=False))
    return frame.assign(value=pd.to_numeric(frame["value"], errors="coerce").astype(float))


def read_rows(path: Path) -> tuple[pd.DataFrame, str]:
    """The last row of each key in a file, and one sentence, without full stop, on what could not be read."""
    try:
        lines = [row for _, row in read_lines(path)]
    except BadInput as error:
        return frame_of([]), error.allowed.removeprefix(f"{path.name} ")
    frame = frame_of(lines)
    left = len(lines) - len(frame)
    problem = f"{left} of {len(lines)} lines are torn or of an earlier version; they are kept and not shown"
    if frame.empty:
        return frame, problem if left else ""
    keys = dict.fromkeys((*KEY, *SETTING, "phase", "round"))
    return frame.drop_duplicates([*keys], keep="last").reset_index(drop=True), problem if left else ""


def setting_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The values of :data:`SETTING` in one row, as read from a JSON line."""
    return tuple(row.get(name) for name in SETTING)


def latest(rows: pd.DataFrame, apart: Sequence[str] = ()) -> pd.DataFrame:
    """Of rows measured under several specs, those of the newest per setting, method and seed.

    Only the newest federation of a setting and seed counts, so that no method is shown beside one of another
    federation. Training, the search for settings and the request itself are runs of their own.

    Args:
        rows: from :func:`frame_of`.
        apart: further columns that tell settings apart, for figures that show several of their values.
    """
    if rows.empty:
        return rows
    setting = [*SETTING, *apart]
    newest = rows.groupby([*setting, "seed"], dropna=False)["federation_hash"].transform("last")
    rows = rows[rows["federation_hash"] == newest]
    part = rows["stage"].where(rows["stage"].isin([TRAINING, SEARCH]), "request").rename("part")
    runs = rows.groupby([*setting, "method", "method_setting", "seed", part], dropna=False)
    return rows[rows["spec_hash"] == runs["spec_hash"].transform("last")]


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in which a method with other hyper-parameters than the preset's is a method of its own.

    It says so behind its name. Settings, or hyper-parameters, that would bear one name get their hash beside it.
    """
    if rows.empty:
        return rows
    rows = rows.assign(changes=_told_apart(rows, SETTING[:-1], "setting"))
    changes = _told_apart(rows, [*SETTING, "method", "method_changes"], "method_setting")
    return rows.assign(
        method=rows["method"].where(changes == "", rows["method"] + " (" + changes + ")"), method_changes=""
    )


def _told_apart(rows: pd.DataFrame, within: Sequence[str], key: str) -> pd.Series:
    """The last of some columns, with the value of another where that is not the same in all rows."""
    text = rows[within[-1]]
    several = rows.assign(**{key: rows[key].replace("", None)}).groupby(list(within))[key].transform("nunique") > 1
    return text.where(~several | (rows[key] == ""), text.where(text == "", text + ", ") + "setting " + rows[key])


def without_training(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of requests and of the original model: what training cost a method does not mean that the method was run."""
    return rows[(rows["stage"] != TRAINING) | (rows["method"] == ORIGINAL)]


def has_small_sets(method: str) -> bool:
    """Whether a method works on the clients' small sets, whose size the scale decides."""
    own = registered(method)
    return own in METHODS and bool(METHODS[own].needs & SMALL_SETS)


def derive(rows: pd.DataFrame) -> pd.DataFrame:
    """Name methods, leave out what says nothing of them, and add what follows, each against another's run.

    Both runs are of one setting, seed and device.

    Returns:
        The rows and, at stage ``total``, the metrics ``storage_bytes`` (server's + clients'), ``gradients`` (first-
        plus second-order sample-gradients plus a third of the forward-only passes, as backward takes about two thirds
        of a pass), ``speedup`` and ``speedup_sample_gradients`` (the oracle's seconds, or gradients, ÷ the method's),
        ``f_set_gap`` and ``r_set_gap`` (the method's accuracy − the oracle's), ``attack_success_gap`` likewise for a
        backdoor, and these with ``_control`` behind the name (− the control's).
    """
    rows = named(rows)
    total = rows[(rows["stage"] == "total") & (rows["method"] != ORIGINAL)] if len(rows) else rows
    if total.empty:
        return rows
    rows = rows[(rows["metric"] != OF_SMALL_SETS) | rows["method"].map(has_small_sets)]
    place = [*SETTING, "seed", "device"]  # seconds of two devices have no ratio
    runs = total.pivot_table(index=[*place, "method"], columns="metric", values="value", aggfunc="last").reset_index()
    own = runs["method"].map(registered)
    runs["differs"] = [name.removeprefix(known) for name, known in zip(runs["method"], own, strict=True)]
    kept = runs.reindex(columns=["storage_server_bytes", "storage_client_bytes"]).sum(axis=1, min_count=1)
    found = {"storage_bytes": kept, "gradients": _gradients(runs)}
    found |= compare(runs, _beside(runs, own == ORACLE, place))
    gaps = compare(runs, _beside(runs, own == CONTROL, place))
    found |= {f"{name}_control": gap for name, gap in gaps.items() if name.endswith("gap")}
    keys = [*SETTING, "seed", "method"]
    new = runs[keys].assign(stage="total", **found).melt([*keys, "stage"], var_name="metric").dropna(subset="value")
    return pd.concat([rows, new], ignore_index=True) if len(new) else rows


def _beside(runs: pd.DataFrame, reference: pd.Series, place: list[str]) -> pd.DataFrame:
    """For each run the reference's with the same hyper-parameters, or else its first, NaN where there is none.

    First is the one with the preset's values, if it was run.
    """
    theirs = runs[reference].sort_values("method")
    same = runs[[*place, "differs"]].merge(theirs, "left", [*place, "differs"])
    first = runs[place].merge(theirs.drop_duplicates(place), "left", place)
    return same.where(same["method"].notna(), first)


def compare(own: pd.DataFrame, reference: pd.DataFrame) -> dict[str, pd.Series]:
    """Speed-ups and gaps of runs, see :func:`derive`; NaN where one of the numbers is missing.

    Args:
        own: a line per run, its metrics at stage ``total`` as columns.
        reference: likewise of the oracle's, or the control's, run beside each.
    """
    own, reference = (runs.reindex(columns=COUNTED).astype(float) for runs in (own, reference))
    gaps = {"f_set_gap": "f_set_accuracy", "r_set_gap": "r_set_accuracy", "attack_success_gap": "attack_success"}
    return {
        "speedup": reference["seconds"] / own["seconds"],
        "speedup_sample_gradients": _gradients(reference) / _gradients(own),
        **{name: own[metric] - reference[metric] for name, metric in gaps.items()},
    }


def _gradients(runs: pd.DataFrame) -> pd.Series:
    """Gradient equivalents; a run that leaves out the rarer kinds made none of them."""
    first, second, forwards = (runs.reindex(columns=COUNTED)[name] for name in COUNTED[1:4])
    return first + second.fillna(0) + forwards.fillna(0) / 3


@dataclass(frozen=True)
class Cell:
    """One number over seeds, in the unit of the rows.

    Attributes:
        mean, std: NaN where there is none.
        seeds: how many it is the mean of.
        median, low, high: the middle value, the smallest and the largest; NaN where there is none.
    """

    mean: float
    std: float
    seeds: int
    median: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, values: pd.Series) -> Cell:
        """Of one value per seed."""
        n, nan = len(values), math.nan
        spread = n > 1 and bool(values.abs().lt(math.inf).all())
        mean, std = float(values.mean()) if n else nan, float(values.std()) if spread else nan
        return cls(mean, std, n, float(values.median()), float(values.min()), float(values.max()))

    def interval(self) -> tuple[float, float]:
        """The 95% interval of the mean by Student's t; NaN of fewer than two seeds."""
        half = float(t.ppf(0.975, self.seeds - 1)) * self.std / math.sqrt(self.seeds) if self.seeds > 1 else math.nan
        return self.mean - half, self.mean + half


@dataclass(frozen=True, eq=False)
class Setting:
    """Everything measured in one setting, and the published numbers that belong beside it.

    Attributes:
        rows: of one setting, derived metrics included.
        published: the part of the published table or figure.
        label: what tells it from the settings beside it.
    """

    rows: pd.DataFrame
    published: Published = NOTHING_PUBLISHED
    label: str = ""

    @cached_property
    def columns(self) -> dict[str, Any]:
        """The values of :data:`SETTING`."""
        return {name: self.rows[name].iloc[0] for name in SETTING}

    @cached_property
    def in_words(self) -> dict[str, Any]:
        """The same with the request as people read it."""
        return self.columns | {"request": request_name(self.rows)}

    def values(self, method: str, stage: str, metric: str) -> pd.Series:
        """One value per seed, by seed."""
        return self._values.get((method, stage, metric), NONE)

    @cached_property
    def _values(self) -> dict[tuple[str, ...], pd.Series]:
        keys = ["method", "stage", "metric"]
        last = self.rows.dropna(subset="value").drop_duplicates([*keys, "seed"], keep="last").set_index("seed")
        return {tuple(map(str, key)): values for key, values in last.groupby(keys)["value"]}

    def cell(self, method: str, stage: str, metric: str) -> Cell:
        """Mean, deviation and range over seeds."""
        return Cell.of(self.values(method, stage, metric))

    def shared(self, methods: Iterable[str], stages: Collection[str]) -> set[int]:
        """Seeds on which other work had the cores of a stage of one of the methods."""
        found = (self.values(method, stage, "shared_cores") for method in methods for stage in stages)
        return {seed for shared in found for seed in shared.index[shared > 0]}

    def remembered(self, method: str) -> Cell:
        """How far a method is from having forgotten, as a fraction; no seeds without an oracle.

        That is the distance of its mean F-Set accuracy to the oracle's, or, where the F-Set has a backdoor, by how much
        more often than the oracle it falls for the trigger, below 0 where less often.
        """
        attack = self.cell(method, "total", "attack_success_gap")
        if attack.seeds:
            return attack
        gap = self.cell(method, "total", "f_set_gap")
        return replace(gap, mean=abs(gap.mean))

    def paper(self, method: str, stage: str, metric: str) -> float | None:
        """The published number, if there is one."""
        return self.published.value(registered(method), stage, metric)

    def methods(self) -> list[str]:
        """Those with rows, without the original model, in order of measurement."""
        return [method for method in self.rows["method"].unique() if method != ORIGINAL]

    def seeds(self, method: str | None = None) -> list[int]:
        """Seeds on which a method, or any, was measured; the search for settings is no measurement."""
        return self._seeds.get(method, [])

    @cached_property
    def _seeds(self) -> dict[str | None, list[int]]:
        """By method; under None those of all."""
        r = self.rows[self.rows["stage"] != SEARCH]
        found: dict[str | None, list[int]] = {None: sorted(r["seed"].unique())}
        found.update((str(method), sorted(seeds.unique())) for method, seeds in r.groupby("method")["seed"])
        return found

    def count(self, method: str, metric: str, stage: str = "total") -> int:
        """Runs that ``diverged``, ``failed`` or, in a stage, ``collapsed``."""
        return int((self.values(method, stage, metric) > 0).sum())

    def serves(self, method: str) -> bool:
        """Whether a method can serve the request."""
        own = registered(method)
        return own not in METHODS or str(self.columns["request"]).split("-")[0] in METHODS[own].levels

    def status(self, method: str) -> str:
        """``measured``, ``failed`` (every run), ``unsupported`` or ``not run``."""
        if runs := len(self.seeds(method)):
            return "failed" if self.count(method, "failed") == runs else "measured"
        return "not run" if self.serves(method) else "unsupported"

    def marks(self, method: str) -> list[str]:
        """What a reader must know beside the method's name."""
        if self.status(method) in ("unsupported", "not run"):
            return ["not run"] if self.status(method) == "not run" else []
        runs, marks = len(self.seeds(method)), []
        if count := self.count(method, "diverged"):
            marks.append(f"diverged: {count} of {runs}")
        if count := self.count(method, "failed"):
            marks.append(", ".join([f"failed: {count} of {runs}", *self.errors(method)]))
        if runs < len(self.seeds()):
            marks.append(f"{runs} of {len(self.seeds())} seeds")
        return marks

    def errors(self, method: str) -> list[str]:
        """Kinds of errors that ended runs, without their messages."""
        r = self.rows
        texts = r[(r["method"] == method) & (r["metric"] == "failed")]["error"].dropna()
        return sorted({str(text).split(":")[0] for text in texts})


def settings_in(rows: pd.DataFrame) -> list[Setting]:
    """Each setting of some rows, in order of measurement."""
    return [Setting(group) for _, group in rows.groupby(SETTING, sort=False)] if len(rows) else []
