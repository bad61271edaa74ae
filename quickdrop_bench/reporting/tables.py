"""Tables laid out as in the paper, from rows: CSV, Markdown and LaTeX, the published values beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from quickdrop_bench.files import write_text

__all__ = ["Column", "Layout", "derive", "latest", "on_terminal", "read_published", "render", "write_table"]

ORACLE = "retrain-or"
ORIGINAL = "original"
SETTING = ["dataset", "clients", "distribution", "request"]
EMPTY = "—"

METHOD_NAMES = {
    "retrain-or": "Retrain-Or",
    "federaser": "FedEraser",
    "s2u": "S2U",
    "sga-or": "SGA-Or",
    "fu-mp": "FU-MP",
    "quickdrop": "QuickDrop",
}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        group: header over several columns, e.g. ``Unlearning``.
        header: of this column.
        stage, metric: the rows it shows.
        kind: ``percent`` (of a fraction), ``points`` (difference of fractions), ``seconds``, ``count`` or ``ratio``.
    """

    group: str
    header: str
    stage: str
    metric: str
    kind: str

    @property
    def key(self) -> str:
        """Column name in the CSV file."""
        return f"{self.stage}_{self.metric}"

    def format(self, value: float) -> str:
        """A value for people, without spread."""
        match self.kind:
            case "percent":
                return f"{100 * value:.2f}%"
            case "points":
                return f"{100 * value:+.2f}"
            case "seconds":
                return f"{value:.2f}" if value < 100 else f"{value:.0f}"
            case "ratio":
                return f"{value:.1f}×"
            case _:
                return f"{value:,.0f}".replace(",", " ")


@dataclass(frozen=True)
class Layout:
    """A table of the paper.

    Attributes:
        number: of the table in the paper.
        title: its caption.
        methods: rows in order, the oracle first.
        columns: from left to right.
    """

    number: int
    title: str
    methods: tuple[str, ...]
    columns: tuple[Column, ...]


def read_published(path: Path, table: int) -> pd.DataFrame:
    """The paper's numbers for one table, with accuracies as fractions."""
    frame = pd.read_csv(path, dtype={"table": str})
    frame = frame[frame["table"] == str(table)].copy()
    percent = frame["metric"].str.endswith("accuracy")
    frame.loc[percent, "value"] = frame.loc[percent, "value"] / 100
    return frame


def latest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows measured under several specs, those of the newest spec per setting, method and seed."""
    newest = rows.groupby([*SETTING, "method", "seed"])["spec_hash"].transform("last")
    return rows[rows["spec_hash"] == newest]


def derive(rows: pd.DataFrame) -> pd.DataFrame:
    """Add what follows from the rows, seed by seed, each against the oracle's run of the same setting and seed.

    Returns:
        The rows and, at stage ``total``, the metrics ``speedup`` (oracle's seconds ÷ the method's),
        ``speedup_sample_gradients`` (the same with first- plus second-order sample-gradients),
        ``f_set_gap`` and ``r_set_gap`` (the method's accuracy − the oracle's).
    """
    total = rows[(rows["stage"] == "total") & (rows["method"] != ORIGINAL)]
    keys = [*SETTING, "seed"]
    wide = total.pivot_table(index=[*keys, "method"], columns="metric", values="value", aggfunc="last").reset_index()
    pairs = wide.merge(wide[wide["method"] == ORACLE], on=keys, suffixes=("", "_oracle"))
    if pairs.empty:
        return rows
    gradients, oracle_gradients = (
        pairs[f"sample_gradients{which}"] + pairs[f"second_order_sample_gradients{which}"] for which in ("", "_oracle")
    )
    derived = {
        "speedup": pairs["seconds_oracle"] / pairs["seconds"],
        "speedup_sample_gradients": oracle_gradients / gradients,
        "f_set_gap": pairs["f_set_accuracy"] - pairs["f_set_accuracy_oracle"],
        "r_set_gap": pairs["r_set_accuracy"] - pairs["r_set_accuracy_oracle"],
    }
    identity = pairs[[*keys, "method"]].assign(stage="total")
    return pd.concat([rows, *(identity.assign(metric=m, value=v) for m, v in derived.items())], ignore_index=True)


@dataclass(frozen=True)
class _Cell:
    mean: float
    std: float
    seeds: int

    def text(self, column: Column) -> str:
        if self.seeds == 0:
            return EMPTY
        text = column.format(self.mean)
        if self.seeds == 1 or column.kind == "count":
            return text
        spread = column.format(self.std).lstrip("+").rstrip("%×")
        suffix = text[-1] if text[-1] in "%×" else ""
        return f"{text.rstrip('%×')} ± {spread}{suffix}"


class _Setting:
    """All cells of one setting (data set, clients, distribution, request)."""

    def __init__(self, rows: pd.DataFrame, published: pd.DataFrame, layout: Layout) -> None:
        self.rows = rows
        self.published = published
        self.layout = layout
        self.dataset, self.clients, self.distribution, self.request = (rows[name].iloc[0] for name in SETTING)

    def cell(self, method: str, column: Column) -> _Cell:
        values = self._values(method, column.stage, column.metric)
        std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return _Cell(float(values.mean()) if len(values) else float("nan"), std, len(values))

    def _values(self, method: str, stage: str, metric: str) -> pd.Series:
        r = self.rows
        chosen = r[(r["method"] == method) & (r["stage"] == stage) & (r["metric"] == metric)]
        return chosen["value"].astype(float).dropna()

    def paper(self, method: str, column: Column) -> float | None:
        p = self.published
        chosen = p[(p["method"] == method) & (p["stage"] == column.stage) & (p["metric"] == column.metric)]
        return float(chosen["value"].iloc[0]) if len(chosen) else None

    def diverged(self, method: str) -> int:
        return int(self._values(method, "total", "diverged").sum())

    def name(self, method: str) -> str:
        """With a mark that counts the seeds that diverged."""
        name = METHOD_NAMES.get(method, method)
        count = self.diverged(method)
        return f"{name} (diverged: {count} of {self.cell(method, self.layout.columns[0]).seeds})" if count else name

    def methods(self) -> list[str]:
        """The layout's methods, then any others that were measured."""
        extra = [m for m in self.rows["method"].unique() if m not in (*self.layout.methods, ORIGINAL)]
        return [*self.layout.methods, *extra]

    def heading(self) -> str:
        return f"{self.dataset}, {self.clients} clients, {self.distribution}, request {self.request}"

    def facts(self) -> list[str]:
        """What a reader must know of where the numbers come from."""
        r = self.rows
        seeds = sorted(r["seed"].unique())
        facts = [
            f"Mean ± standard deviation over {len(seeds)} seed{'s'[: len(seeds) != 1]} ({', '.join(map(str, seeds))})"
        ]
        original = [
            f"{label} {self.cell(ORIGINAL, Column('', '', 'fl-training', metric, 'percent')).text(PERCENT)}"
            for label, metric in (("F-Set", "f_set_accuracy"), ("R-Set", "r_set_accuracy"))
        ]
        facts.append(f"original model before the request: {', '.join(original)}")
        device = "; ".join(sorted(r["device"].dropna().unique()))
        precision = ", ".join(sorted(r["precision"].dropna().unique()))
        facts.append(f"measured on {device} in {precision}")
        return facts


PERCENT = Column("", "", "", "", "percent")


def _settings(rows: pd.DataFrame, published: pd.DataFrame, layout: Layout) -> Iterator[_Setting]:
    for _, group in rows.groupby(SETTING, sort=False):
        yield _Setting(group, published, layout)


def render(rows: pd.DataFrame, published: pd.DataFrame, layout: Layout) -> dict[str, str]:
    """All formats of a table.

    Args:
        rows: of the artefact, as read from ``rows.jsonl``.
        published: from :func:`read_published`.
        layout: methods and columns.

    Returns:
        File name → text, for ``table.csv``, ``table.md`` and ``table.tex``.
    """
    settings = list(_settings(derive(rows), published, layout))
    return {
        "table.csv": _csv(settings, layout),
        "table.md": f"# Table {layout.number}: {layout.title}\n\n" + "\n".join(_markdown(s, layout) for s in settings),
        "table.tex": "\n".join(_latex(s, layout) for s in settings),
    }


def on_terminal(rows: pd.DataFrame, published: pd.DataFrame, layout: Layout) -> list[Table | str]:
    """The same for a terminal: methods side by side, the paper's value under ours.

    Args:
        rows: as for :func:`render`.
        published: as for :func:`render`.
        layout: as for :func:`render`.

    Returns:
        What ``rich.console.Console.print`` takes, in order.
    """
    parts: list[Table | str] = []
    for s in _settings(derive(rows), published, layout):
        table = Table(title=escape(f"Table {layout.number}: {s.heading()}"), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column(f"(paper, {s.published['dataset'].iloc[0]})")
        for method in s.methods():
            table.add_column(escape(s.name(method)), justify="right")
        for k, column in enumerate(layout.columns):
            cells = []
            for method in s.methods():
                value = s.paper(method, column)
                paper = "" if value is None else f"\n[dim]({column.format(value)})[/dim]"
                cells.append(f"{s.cell(method, column).text(column)}{paper}")
            last = k + 1 == len(layout.columns) or layout.columns[k + 1].group != column.group
            table.add_row(f"{column.group}: {column.header}", *cells, end_section=last)
        parts += [table, escape(". ".join(f[0].upper() + f[1:] for f in s.facts()) + ".\n")]
    return parts


def write_table(folder: Path, texts: dict[str, str]) -> None:
    """Write what :func:`render` returned."""
    for name, text in texts.items():
        write_text(folder / name, text)


def _csv(settings: Sequence[_Setting], layout: Layout) -> str:
    """One line per setting and method; per column the mean, the deviation and the published value."""
    lines = []
    for s in settings:
        for method in s.methods():
            line: dict[str, object] = {name: getattr(s, name) for name in SETTING}
            cells = {c.key: s.cell(method, c) for c in layout.columns}
            line |= {"method": method, "seeds": max(cell.seeds for cell in cells.values())}
            line["diverged"] = s.diverged(method)
            for column in layout.columns:
                cell = cells[column.key]
                line[f"{column.key}_mean"] = cell.mean
                line[f"{column.key}_std"] = cell.std if cell.seeds > 1 else float("nan")
                line[f"{column.key}_published"] = s.paper(method, column)
            lines.append(line)
    return pd.DataFrame(lines).to_csv(index=False, float_format="%.6g")


def _body(s: _Setting, layout: Layout) -> list[list[str]]:
    """Two lines per method: ours, and the paper's where it gives any."""
    body = []
    for method in s.methods():
        body.append([s.name(method), *(s.cell(method, c).text(c) for c in layout.columns)])
        values = [s.paper(method, c) for c in layout.columns]
        if any(v is not None for v in values):
            texts = [EMPTY if v is None else c.format(v) for c, v in zip(layout.columns, values, strict=True)]
            body.append([f"  paper ({s.published['dataset'].iloc[0]})", *texts])
    return body


def _markdown(s: _Setting, layout: Layout) -> str:
    header = ["Method", *(f"{c.group}: {c.header}" for c in layout.columns)]
    body = _body(s, layout)
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *rest])} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    facts = ". ".join(f[0].upper() + f[1:] for f in s.facts())
    lines = [f"## {s.heading()}", "", line(header), rule, *(line(b) for b in body), "", f"{facts}.", ""]
    return "\n".join(lines)


def _latex(s: _Setting, layout: Layout) -> str:
    """A table for the packages booktabs and graphicx."""
    groups: list[tuple[str, int]] = []
    for column in layout.columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    spans = " & ".join(rf"\multicolumn{{{n}}}{{c}}{{{_escape(name)}}}" for name, n in groups)
    start, rules = 2, []
    for _, n in groups:
        rules.append(rf"\cmidrule(lr){{{start}-{start + n - 1}}}")
        start += n
    headers = " & ".join(_escape(c.header) for c in layout.columns)
    body = [" & ".join(_escape(cell) for cell in line) + r" \\" for line in _body(s, layout)]
    caption = f"{layout.title}. {s.heading()}. {'. '.join(f[0].upper() + f[1:] for f in s.facts())}."
    return "\n".join(
        [
            r"% needs \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            rf"\caption{{{_escape(caption)}}}",
            r"\centering",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{l{'r' * len(layout.columns)}}}",
            r"\toprule",
            rf" & {spans} \\",
            "".join(rules),
            rf"Method & {headers} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _escape(text: str) -> str:
    if text.startswith("  "):
        return rf"\quad {_escape(text.strip())}"
    replacements = {
        "\\": r"\textbackslash{}",
        "%": r"\%",
        "_": r"\_",
        "&": r"\&",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "×": r"$\times$",
        "±": r"$\pm$",
        "—": "---",
        "−": "$-$",
    }
    return "".join(replacements.get(character, character) for character in text)
