"""Which methods are the best of a column: one answer for the terminal, Markdown, LaTeX and the report."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.forgetting import NEAR, forgets, judged_by
from quickdrop_bench.reporting.frame import Setting
from quickdrop_bench.reporting.names import ORACLE, is_control, registered
from quickdrop_bench.reporting.tables.texts import cell_of, typical

BETTER = {
    **dict.fromkeys(("r_set_accuracy", "r_set_gap", "speedup_sample_gradients", "speedup"), 1),
    **dict.fromkeys(("gradients", "seconds", "upload_bytes", "storage_bytes"), -1),
}
"""Metrics of a whole request of which more (1) or less (-1) is better; no other column has a best."""


def best(setting: Setting, methods: Iterable[str], columns: Collection[Column]) -> dict[Column, set[str]]:
    """By column the methods with its best number, as it is written; none where all candidates have the same.

    Candidates are those that forget as the oracle does and of which no run failed, diverged or collapsed, without the
    oracle and controls.
    """
    candidates = [method for method in methods if _is_candidate(setting, method)]
    return {column: _best(setting, candidates, column) for column in columns}


def _best(setting: Setting, candidates: Iterable[str], column: Column) -> set[str]:
    better = BETTER.get(column.metric) if column.stage == "total" else None
    cells = {m: cell_of(setting, m, column) for m in candidates if better}
    values = {m: typical(cell, column) for m, cell in cells.items() if cell.seeds}
    if not better or not values:
        return set()
    first = column.format(max(values.values(), key=lambda value: better * value))
    found = {m for m, value in values.items() if column.format(value) == first}
    return found if len(found) < len(values) else set()


def _is_candidate(setting: Setting, method: str) -> bool:
    wrong = any(setting.count(method, what) for what in ("failed", "diverged", "collapsed"))
    return registered(method) != ORACLE and not is_control(method) and not wrong and forgets(setting, method)


def note(settings: Iterable[Setting]) -> str:
    """What bold means, without full stop."""
    within = f"within {100 * NEAR:g} point of the oracle's"
    return f"bold: best of the methods whose {judged_by(settings)} is {within}, without controls"
