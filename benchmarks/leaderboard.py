"""Write ``results/leaderboard.md`` from committed rows of Table 7, Figure 7 and later: ``make leaderboard``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pandas as pd

from quickdrop_bench.core.files import write_text
from quickdrop_bench.harness.exhibits import Column, exhibit, exhibits
from quickdrop_bench.reporting.forgetting import decided, forgets
from quickdrop_bench.reporting.frame import SETTING, Setting, derive, latest, read_rows, settings_in, without_training
from quickdrop_bench.reporting.names import ORACLE, is_control, method_title, registered, setting_name
from quickdrop_bench.reporting.tables.shape import EMPTY
from quickdrop_bench.reporting.tables.texts import paired, signed_text

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "results" / "leaderboard.md"
COMMITTED = ("reference", "methods")
"""Folders of ``results``; the others hold what was run on this machine."""

FIRST = 7
"""Number of the first table, and figure, with all methods."""

COLUMNS = (
    Column("", "Attack success − oracle", "total", "attack_success_gap", "points"),
    Column("", "F-Set − oracle", "total", "f_set_gap", "points"),
    Column("", "R-Set − oracle", "total", "r_set_gap", "points"),
    Column("", "Sample-gradients", "total", "gradients", "count"),
    Column("", "Speed-up", "total", "speedup_sample_gradients", "ratio"),
    Column("", "Storage", "total", "storage_bytes", "bytes"),
)
INTRODUCTION = """# Leaderboard

Written by `make leaderboard` from the rows in this folder. Methods that forget come first: the mean of their F-Set's
gap to retraining is at most one point, however much the gap varies from seed to seed. *Forgets* says "not decided"
where the mean's 95% interval reaches to both sides of that limit, or where one seed gives none. Among those that
forget, the higher R-Set's gap to retraining, the better. Gaps are in percentage points, paired by seed, with their 95%
interval. Sample-gradients: a forward pass counts a third. Where a client has a backdoor, the success of the attack
takes the F-Set's place, and those that leave the backdoor at work stand in the order of what they leave of it. The
oracle and controls have no place.
[How a method gets its line](../CONTRIBUTING.md#a-line-on-the-leaderboard).
"""


def measured(results: Path) -> list[Setting]:
    """Everything that a table or figure from :data:`FIRST` on measured, by preset and setting.

    Gaps are taken within each file, as files may come from different commits. Of a method that several files have in
    one setting, the newest rows count.
    """
    ranked = {name for name in exhibits() if (exhibit(name).number or 0) >= FIRST}
    found = []
    for path in sorted(results.rglob("rows.jsonl")):
        if path.relative_to(results).parts[0] not in COMMITTED:
            continue
        rows, _ = read_rows(path)
        rows = rows[rows["artefact"].isin(ranked)]
        if len(rows):
            own = rows.groupby("method")["created_at"].max()
            derived = derive(without_training(latest(rows)))
            newest = derived["method"].map(registered).map(own)
            found.append(derived.assign(preset=rows["preset"].iloc[0], newest=newest))
    if not found:
        return []
    everything = pd.concat(found, ignore_index=True)
    last = everything.groupby([*SETTING, "preset", "method"])["newest"].transform("max")
    current = everything[everything["newest"] == last]
    return [setting for _, rows in current.groupby("preset", sort=False) for setting in settings_in(rows)]


def ranking(setting: Setting) -> list[tuple[str, str]]:
    """Place and name of every method: the oracle, those that forget by R-Set's gap, the others likewise.

    Of the others, those that leave more of a backdoor stand below.
    """
    methods = [m for m in setting.methods() if registered(m) != ORACLE]
    gap = {m: setting.cell(m, "total", "r_set_gap").mean for m in methods}
    backdoor = any(setting.cell(m, "total", "attack_success_gap").seeds for m in methods)
    left = {m: setting.remembered(m).mean if backdoor and not forgets(setting, m) else 0.0 for m in methods}
    order = sorted(methods, key=lambda m: (not forgets(setting, m), left[m], gap[m] != gap[m], -gap[m]))
    places = count(1)
    ranked = [("" if is_control(m) else str(next(places)) if forgets(setting, m) else "–", m) for m in order]
    return [*(("", m) for m in setting.methods() if registered(m) == ORACLE), *ranked]


def block(setting: Setting) -> str:
    """One setting: heading, a line per method, and where the rows come from."""
    seeds = len(setting.seeds())
    names = ", ".join(setting.rows["artefact"].dropna().unique())
    heading = f"## {setting.rows['preset'].iloc[0]}, {names}: {setting_name(setting.in_words)}"
    columns = [c for c in COLUMNS if any(setting.cell(m, c.stage, c.metric).seeds for m in setting.methods())]
    lines = [["", "Method", "Forgets", *(column.header for column in columns), "Seeds"]]
    lines += [["--:", "---", "---", *(["--:"] * len(columns)), "--:"]]
    for place, method in ranking(setting):
        values = [(paired if c.kind == "points" else signed_text)(setting, method, c) for c in columns]
        own = len(setting.seeds(method))
        lines.append([place, method_title(method), _verdict(setting, method), *values, "one" if own == 1 else str(own)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([heading + f" ({seeds} seed{'s'[: seeds != 1]})", table, "; ".join(_sources(setting)) + "."])


def _verdict(setting: Setting, method: str) -> str:
    """Whether the seeds decide that a method forgets; a dash for the oracle."""
    if registered(method) == ORACLE:
        return EMPTY
    return ("yes" if forgets(setting, method) else "no") if decided(setting, method) else "not decided"


def _sources(setting: Setting) -> Iterator[str]:
    """Commits, versions and devices of the rows."""
    rows = setting.rows.assign(git_commit=setting.rows["git_commit"].str.slice(0, 12))
    columns = {"git_commit": "commit", "package_version": "version", "device": "device"}
    for column, name in columns.items():
        yield f"{name} {', '.join(map(str, rows[column].dropna().unique()))}"


def page(results: Path) -> str:
    """The leaderboard of the rows in a folder."""
    return "\n\n".join([INTRODUCTION.strip(), *map(block, measured(results))]) + "\n"


if __name__ == "__main__":
    write_text(TARGET, page(TARGET.parent))
