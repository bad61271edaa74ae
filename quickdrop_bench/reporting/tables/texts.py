"""Numbers of a setting as people read them, and the sentences below a table: where its numbers come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from quickdrop_bench.harness.exhibits import Column
from quickdrop_bench.reporting.frame import SEARCH, TRAINING, Cell, Setting
from quickdrop_bench.reporting.names import CONTROL, ORACLE, ORIGINAL, method_title, registered
from quickdrop_bench.reporting.tables.shape import EMPTY

COLLAPSED = "†"
SHARED = " ‡"
"""Behind seconds, and what follows from them, that were measured while other work had the cores."""

POINTS = {"percent": 100.0, "points": 100.0, "percentage": 1.0}
"""Factor to percentage points of the kinds of number that have a difference rather than a ratio."""

LEGEND = (
    f"{EMPTY}: no such number or stage, a request that the method cannot serve, or a failed run; blank cells: not run"
)
COLLAPSE = (
    f"{COLLAPSED}: collapsed in at least one run: no better on the retained classes than one answer for every image, "
    "or weights grown more than tenfold"
)
RATIOS = "speedups: median (range) over seeds of the oracle's cost ÷ the method's, on the same seed"
PAIRED = f"differences in percentage points after the last stage, seed by seed; {EMPTY}: nothing to compare with"
IMPLANTED = 0.5
"""By how much a backdoor's success must be above that with the oracle's model, which never saw it, to have taken."""
INTERVALS = "mean over seeds with its 95% interval (Student's t), which holds 0 where chance alone may explain it"


def cell_of(setting: Setting, method: str, column: Column) -> Cell:
    """The numbers that a column shows."""
    return setting.cell(method, column.stage, column.metric)


def typical(cell: Cell, column: Column) -> float:
    """The number that stands for all seeds: of ratios, whose mean one odd value can move far, the median."""
    return cell.median if column.kind == "ratio" else cell.mean


def cell_text(cell: Cell, column: Column) -> str:
    """Mean ± deviation; of ratios median and range."""
    if cell.seeds == 0:
        return EMPTY
    if column.kind != "ratio":
        return column.format(cell.mean, cell.std if cell.seeds > 1 else None)
    low, high = (column.format(value).removesuffix("×") for value in (cell.low, cell.high))
    return column.format(cell.median) + (f" ({low}–{high})" if cell.seeds > 1 and low != "∞" else "")


def signed_text(setting: Setting, method: str, column: Column) -> str:
    """A cell: blank if the method was not run, a dash if it was and has no such number.

    Accuracies of a stage that left a collapsed model in any run have a mark.
    """
    if setting.status(method) == "not run":
        return ""
    collapsed = column.metric.endswith("_set_accuracy") and setting.count(method, "collapsed", column.stage)
    cell = cell_of(setting, method, column)
    text = cell_text(cell, column) + (f" {COLLAPSED}" if collapsed else "")
    capped = setting.count(method, "relearn_capped") if column.metric == "relearn_gradients" else 0
    text += f" ({capped} of {len(setting.seeds(method))} not in 20 passes)" if capped else ""
    return text + (sign(setting, method, column) if cell.seeds else "")


def sign(setting: Setting, method: str, column: Column) -> str:
    """:data:`SHARED` behind a time, or a ratio of times, that says too much."""
    runs = [method, ORACLE] if column.metric == "speedup" else [method] if column.kind == "seconds" else []
    return SHARED if setting.shared(runs, [column.stage]) else ""


def paired(setting: Setting, method: str, column: Column) -> str:
    """A difference over seeds: the mean and its 95% interval; a dash for a method and itself."""
    reference = CONTROL if column.metric.endswith("_control") else ORACLE
    cell = cell_of(setting, method, column)
    if not cell.seeds or registered(method) == reference:
        return EMPTY
    ends = " [{}, {}]".format(*map(column.format, cell.interval())) if cell.seeds > 1 else ""
    return column.format(cell.mean) + ends


def difference(column: Column, ours: float, paper: float) -> str:
    """Ours − the paper's in percentage points, or, for what is no percentage, ours as a multiple of the paper's."""
    factor = POINTS.get(column.kind)
    if not math.isfinite(ours) or not math.isfinite(paper) or (factor is None and paper == 0):
        return ""
    if factor is not None:
        return f"Δ {factor * (ours - paper):+.2f}"
    ratio = ours / paper
    return f"× {ratio:,.0f}".replace(",", " ") if ratio >= 100 else f"× {ratio:.{3 if ratio >= 0.1 else 2}g}"


def facts(settings: Sequence[Setting], original: bool = True) -> list[str]:
    """Seeds, original model (if wanted), search and machine, as sentences without full stop."""
    notes = (
        _each(settings, "mean ± standard deviation over {}", _seeds),
        _each(settings, "original model before the request: {}", _original) if original else "",
        _each(settings, "attack success of the backdoor before the request: {}", _attack) if original else "",
        _each(settings, "search, stated apart: {}", _search),
        _each(settings, "measured on {}", _machine),
    )
    return [note for note in notes if note]


def shared_note(settings: Sequence[Setting], methods: Sequence[str], columns: Sequence[Column]) -> str:
    """On which seeds a stage that the table shows had to share its cores."""
    stages, sign = {column.stage for column in columns}, SHARED.strip()
    sentence = f"{sign}: other work had the cores for more than 15% of the time on {{}}; such seconds say too much"
    return _each(settings, sentence, lambda setting: _counted(setting.shared(methods, stages)))


def papers(settings: Sequence[Setting]) -> str:
    """Which of the paper's numbers are shown, with a warning where they are of other data; without full stop."""
    texts = []
    for setting in settings:
        dataset, name = str(setting.columns["dataset"]), setting.published.name
        other = "" if setting.published.alike else f", which is not {dataset}: the differences say little"
        texts += [f"the paper's numbers are of {name}{other}"] if name else []
    return "; ".join(dict.fromkeys(texts))


def papers_left_out(settings: Sequence[Setting]) -> str:
    """Which of the paper's numbers are not shown, as they are of other data."""
    names = {
        setting.published.name: None for setting in settings if setting.published.name and not setting.published.alike
    }
    return f"the paper's numbers are of {'; '.join(names)}, other data, and stand in table.md" if names else ""


def not_run(titles: Sequence[str]) -> str:
    """Methods that have no line, without full stop; empty if there are none."""
    return f"not run: {', '.join(titles)}" if titles else ""


def _each(settings: Sequence[Setting], sentence: str, fact: Callable[[Setting], str]) -> str:
    """A sentence about every setting, said once where it is the same; empty if there is nothing to say."""
    found = [(setting.label, fact(setting)) for setting in settings]
    if len({text for _, text in found}) == 1:
        return sentence.format(found[0][1]) if found[0][1] else ""
    return sentence.format("; ".join(f"{label}: {text}" for label, text in found if text))


def _counted(seeds: set[int]) -> str:
    return f"seed{'s'[: len(seeds) != 1]} {', '.join(map(str, sorted(seeds)))}" if seeds else ""


def _seeds(setting: Setting) -> str:
    seeds = setting.seeds()
    return f"{len(seeds)} seed{'s'[: len(seeds) != 1]} ({', '.join(map(str, seeds))})"


def _original(setting: Setting) -> str:
    if not setting.seeds(ORIGINAL):
        return ""
    columns = [Column("", f"{s}-Set", TRAINING, f"{s.lower()}_set_accuracy", "percent") for s in "FR"]
    return ", ".join(f"{column.header} {signed_text(setting, ORIGINAL, column)}" for column in columns)


def _attack(setting: Setting) -> str:
    """How well a backdoor works before the request, and whether it is one that the oracle's model has not."""
    rows = setting.rows[setting.rows["metric"] == "attack_success"].dropna(subset="value")
    before = rows[(rows["method"] == ORIGINAL) & (rows["stage"] == TRAINING)]
    if before.empty:
        return ""
    own = signed_text(setting, ORIGINAL, Column("", "", TRAINING, "attack_success", "percent"))
    oracle = rows[(rows["method"].map(registered) == ORACLE) & (rows["stage"] == "total")]
    above = (before.groupby("seed")["value"].last() - oracle.groupby("seed")["value"].last()).dropna()
    if above.empty:
        return f"{own}; whether it was implanted is not known without {method_title(ORACLE)}"
    weak = _counted({*above.index[above < IMPLANTED]})
    points = f"{100 * IMPLANTED:.0f} points above {method_title(ORACLE)}"
    return f"{own}, not implanted on {weak} (less than {points})" if weak else f"{own}, implanted (at least {points})"


def _search(setting: Setting) -> str:
    searched = setting.rows[setting.rows["stage"] == SEARCH]["method"].unique()
    seconds = Column("", "", SEARCH, "seconds", "seconds")
    passes = Column("", "", SEARCH, "sample_gradients", "count")
    costs = [(m, *(cell_text(cell_of(setting, m, column), column) for column in (seconds, passes))) for m in searched]
    return "; ".join(f"{method_title(m)} {time} s, {count} sample-gradients" for m, time, count in costs)


def _machine(setting: Setting) -> str:
    device, precision = (sorted(setting.rows[name].dropna().unique()) for name in ("device", "precision"))
    return f"{'; '.join(device)} in {', '.join(precision)}"
