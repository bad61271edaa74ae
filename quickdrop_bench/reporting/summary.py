"""A run's rows as few numbers by name, beside the oracle's and the paper's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from quickdrop_bench.reporting.frame import compare
from quickdrop_bench.reporting.published import Published, beside, read_published


def summary(
    rows: Sequence[Mapping[str, Any]], oracle: Sequence[Mapping[str, Any]], paper: Path
) -> Iterator[tuple[str, float]]:
    """The numbers that a run's rows hold about the whole request, relearning or the training, as ``<stage>/<metric>``.

    Args:
        rows: of one run, as in ``rows.jsonl``.
        oracle: of the oracle's run of the same request and seed, if there is one: ``total/…_gap`` and ``…speedup``.
        paper: file with the paper's numbers; each stands as ``…_paper`` beside ours, and the distance of an accuracy to
            it as ``…_paper_gap``.
    """
    values = {(row["stage"], row["metric"]): row["value"] for row in rows if "round" not in row}
    # Table 6 has training's cost under QuickDrop's name.
    methods = {(row["stage"], row["metric"]): row["method"] for row in rows}
    if oracle and rows[0]["device"] == oracle[0]["device"]:
        own, its = (
            pd.DataFrame([{r["metric"]: r["value"] for r in side if r["stage"] == "total"}]) for side in (rows, oracle)
        )
        gaps = {name: float(value.iloc[0]) for name, value in compare(own, its).items()}
        values |= {("total", name): gap for name, gap in gaps.items() if math.isfinite(gap)}
    published = _published(*(str(rows[0][key]) for key in ("artefact", "dataset", "distribution")), paper)
    for (stage, metric), value in values.items():
        method = methods.get((stage, metric), rows[0]["method"])
        if value is None or metric.startswith("class_") or stage in ("unlearning", "recovery"):
            continue
        whole = stage == "total"
        theirs = published.of_request(method, metric) if whole else published.value(method, stage, metric)
        key = f"{stage.replace('-', '_')}/{metric}"
        yield key, value
        if theirs is not None:
            yield f"{key}_paper", theirs
            if metric.endswith("accuracy"):
                yield f"{key}_paper_gap", value - theirs


@cache
def _published(artefact: str, dataset: str, distribution: str, paper: Path) -> Published:
    """The paper's numbers beside a setting; of figures none."""
    known = read_published(paper, artefact)
    return beside(known[known["table"].str.isdecimal()], dataset, distribution)


def headline(numbers: pd.DataFrame) -> dict[str, float]:
    """QuickDrop's means in a figure that shows one setting: what a sweep's controller compares."""
    own = numbers[numbers["method"] == "quickdrop"].drop_duplicates(["stage", "metric"], keep=False)
    keys = own["stage"].str.replace("-", "_") + "/" + own["metric"]
    return {str(key): float(mean) for key, mean in zip(keys, own["mean"], strict=True) if pd.notna(mean)}
