"""The paper's numbers, and which of them belong beside ours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

LIKE_MNIST = ("digits", "fashion-mnist")
"""Data sets that the paper does not use, nearest to its MNIST."""


def is_fraction(metric: str) -> bool:
    """Whether the paper, as people do, writes it in percent."""
    return metric.endswith("accuracy") or "_mia" in metric


def read_published(path: Path, exhibit: str) -> pd.DataFrame:
    """The paper's numbers for one table or figure, with accuracies and attack rates as fractions; none for a sweep."""
    frame = pd.read_csv(path, dtype={"table": str})
    frame = frame[frame["table"] == exhibit.removeprefix("table")].copy()
    percent = frame["metric"].map(is_fraction).astype(bool)
    frame.loc[percent, "value"] = frame.loc[percent, "value"] / 100
    return frame


def published_dataset(frame: pd.DataFrame, dataset: str) -> str:
    """The published data set to show beside ours."""
    names = [str(name) for name in frame["dataset"].unique()]
    same = [name for name in names if re.search(rf"{re.escape(name)}(?!\d)", dataset)]
    like = [name for name in names if name == "mnist" and dataset in LIKE_MNIST]
    return next(iter([*same, *like, *names]), "")


@dataclass(frozen=True)
class Published:
    """The part of a published table that belongs beside one of our settings.

    Attributes:
        values: rows of :func:`read_published`.
        name: which part it is, e.g. ``cifar10``; with the distribution if ours is another one.
        alike: whether it is of the same data set as ours.
    """

    values: pd.DataFrame
    name: str
    alike: bool = True

    def value(self, method: str, stage: str, metric: str) -> float | None:
        """One number, in the unit of the rows; None if the paper does not give it."""
        return self._known.get((method, stage, metric))

    def of_request(self, method: str, metric: str) -> float | None:
        """Of a whole request; the paper gives the accuracy after it as that of the last stage."""
        stages = ("total", *(("recovery", "unlearning") if metric.endswith("accuracy") else ()))
        known = (self.value(method, stage, metric) for stage in stages)
        return next((value for value in known if value is not None), None)

    @cached_property
    def _known(self) -> dict[tuple[str, str, str], float]:
        v = self.values.drop_duplicates(["method", "stage", "metric"])
        keys = zip(v["method"], v["stage"], v["metric"], strict=True)
        return dict(zip(keys, v["value"].astype(float), strict=True))


NOTHING_PUBLISHED = Published(pd.DataFrame(columns=["method", "stage", "metric", "value"]), "")


def beside(frame: pd.DataFrame, dataset: str, distribution: str) -> Published:
    """Choose by data set and by kind of distribution (IID or not)."""
    name = published_dataset(frame, dataset)
    values = frame[frame["dataset"] == name]
    same_kind = values[(values["distribution"] == "iid") == (distribution == "iid")]
    values = same_kind if len(same_kind) else values
    theirs = next(iter(values["distribution"]), distribution)
    values = values[values["distribution"] == theirs]
    alike = bool(re.search(rf"(?<![\w-]){re.escape(name)}(?!\d)", dataset))
    return Published(values, name if theirs == distribution else f"{name}, {theirs}", alike)
