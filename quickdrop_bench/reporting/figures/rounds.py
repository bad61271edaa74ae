"""Accuracy of every class, round by round after a request: what Figures 2 and 4 show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from quickdrop_bench.reporting.frame import TRAINING, Setting
from quickdrop_bench.reporting.names import ORIGINAL

PER_ROUND = "per-round"
PHASES = ("unlearning", "recovery")
"""Stages after training."""


@dataclass(frozen=True)
class Course:
    """What one method did to every class, round by round after a request.

    Attributes:
        points: label, phase, round (since the request; training's are 0 and below), mean, std, seeds.
        lengths: rounds of each of :data:`PHASES`.
    """

    points: pd.DataFrame
    lengths: dict[str, int]

    @classmethod
    def of(cls, rows: pd.DataFrame, method: str) -> Course:
        """From the rows of one request."""
        rows = rows[rows["stage"] == PER_ROUND]
        rows = rows.assign(label=rows["metric"].astype(str).str.extract(r"^class_(\d+)_", expand=False))
        rows = rows.dropna(subset=["label", "round"]).astype({"label": int, "round": int})
        later = rows["request"].astype(str).str.contains(">", regex=False)
        before = rows[(rows["method"] == ORIGINAL) & (rows["phase"] == TRAINING) & ~later]
        before = before.assign(round=before["round"] - before.groupby("seed")["round"].transform("max"))
        parts, lengths, start = [_over_seeds(before)], {}, 0
        for phase in PHASES:
            own = _over_seeds(rows[(rows["method"] == method) & (rows["phase"] == phase)])
            lengths[phase] = int(own["round"].max()) if len(own) else 0
            parts.append(own.assign(round=own["round"] + start))
            start += lengths[phase]
        return cls(pd.concat(parts, ignore_index=True), lengths)

    @property
    def rounds(self) -> int:
        """From the request to the end of recovery."""
        return sum(self.lengths.values())

    @property
    def classes(self) -> list[int]:
        """Those measured."""
        return sorted(self.points["label"].unique())


def _over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and deviation per class and round of one phase; a run that ended earlier keeps its last value."""
    keys = ["label", "phase", "seed"]
    # A value that is none must not be mistaken for a round that was not needed.
    wide = rows.assign(value=rows["value"].fillna(np.inf)).pivot_table("value", keys, "round", aggfunc="last")
    tall = wide.ffill(axis=1).replace(np.inf, np.nan).reset_index().melt(keys, var_name="round")
    points = tall.groupby(["label", "phase", "round"])["value"].agg(["mean", "std", "count"]).reset_index()
    return points.rename(columns={"count": "seeds"}).astype({"round": int})


def forgotten(request: str) -> list[int]:
    """The classes of a request, or of a sequence such as ``class-5>class-8``, in order; a client's holds none."""
    return [int(part.removeprefix("class-")) for part in request.split(">") if part.startswith("class-")]


def why_empty(setting: Setting, method: str) -> str:
    """What to say of a method without rounds."""
    status = setting.status(method)
    return "no rounds recorded" if status == "measured" else status
