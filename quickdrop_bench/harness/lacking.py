"""Which rows of a run there are, and what they lack: every metric, as it is now, counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from quickdrop_bench.evaluation.metric import METRICS
from quickdrop_bench.harness.exhibits import exhibit, exhibits
from quickdrop_bench.harness.experiment import Experiment, Row
from quickdrop_bench.harness.sources import metric_digest
from quickdrop_bench.store.rows import RowFile, is_last

Missing = Collection[str] | None
"""The metrics that a run's rows lack; None if there is no finished run."""


def identities(e: Experiment) -> dict[str, str]:
    """An exhibit's metrics by name → ``name@digest`` of their code, as rows name what measured them."""
    shown = {c.metric for c in exhibit(e.artefact).columns} if e.artefact in exhibits() else set()
    names = [name for name in METRICS if not METRICS[name].on_demand or shown & METRICS[name].gives.keys()]
    return {name: f"{name}@{metric_digest(METRICS[name].source)}" for name in names}


def _name_of(row: Row) -> str:
    """The metric that a row is of; empty for a cost."""
    return str(row.get("measured_by") or "").split("@")[0]


def is_measured(e: Experiment, files: Iterable[RowFile], method: str, seed: int) -> bool:
    """Whether the rows of a run, with every metric as it is now, are in one of the files."""
    return not any(step is None or step for step in missing_of(e, list(files), method, seed))


def missing_of(e: Experiment, files: Sequence[RowFile], method: str, seed: int) -> list[Missing]:
    """What the rows of a method's requests lack, one after the other, in the file that lacks least."""
    now = identities(e)

    def lacking(spec_hash: str) -> Missing:
        known = [done for file in files if (done := file.measured_by(spec_hash)) is not None]
        return min(([m for m, metric in now.items() if metric not in done] for done in known), key=len, default=None)

    return [lacking(e.run_spec(method, seed, step).hash) for step in range(len(e.requests))]


def take_over(e: Experiment, rows: RowFile, siblings: Sequence[RowFile], method: str, seed: int) -> None:
    """Copy a method's rows from another exhibit's file, if all of them are to be had and here they are not."""
    if is_measured(e, [rows], method, seed) or not is_measured(e, [rows, *siblings], method, seed):
        return
    for step in range(len(e.requests)):
        spec_hash, now = e.run_spec(method, seed, step).hash, identities(e).values()
        whole = (file for file in (rows, *siblings) if {*now} <= {*(file.measured_by(spec_hash) or ())})
        if (known := next(whole)) is not rows:
            own = {**e.identity(step), **e.method_setting(method)}
            rows.write({**row, **own} for row in known.of(spec_hash))


def completed(e: Experiment, old: Sequence[Row], new: Sequence[Row], missing: Collection[str]) -> list[Row]:
    """A run's rows with some metrics measured anew, the rows of the others as they were."""
    *others, last = [row for row in old if is_last(row) or _name_of(row) not in missing]
    added = [row for row in new if not is_last(row) and _name_of(row) in missing]
    now = identities(e)
    still = [metric for metric in str(last.get("measured_by") or "").split() if metric.split("@")[0] not in missing]
    return [*others, *added, {**last, "measured_by": " ".join([*still, *(now[name] for name in missing)])}]
