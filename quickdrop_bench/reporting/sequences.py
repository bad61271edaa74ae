"""Accuracy of every class while one after the other is forgotten (Figure 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from quickdrop_bench.reporting.layout import ORIGINAL, marked, method_name
from quickdrop_bench.reporting.looks import VERMILLION, WIDTH
from quickdrop_bench.reporting.names import class_name
from quickdrop_bench.reporting.pictures import put_title, rows_of_panels, say
from quickdrop_bench.reporting.points import measure, methods_in, numbers_frame, panels
from quickdrop_bench.reporting.rounds import PER_ROUND, SHADES, Course, forgotten, shade, why_empty
from quickdrop_bench.reporting.slots import Slot

__all__ = ["figure_4"]

SPACING = 5
"""Rounds from one request of a sequence to the next."""

LIMIT = 5
"""Percent: a forgotten class should stay below."""

STRONG, LIGHT = 0.7, 0.2
COLUMNS = 5
KEPT, GONE = "black", VERMILLION


@dataclass(frozen=True, eq=False)
class Chain:
    """A sequence of requests and what one method did at each.

    Attributes:
        label: the setting.
        method: which.
        requests: from the first to the whole sequence.
        slots: rows of each request; None where it was not made.
        courses: one per request.
    """

    label: str
    method: str
    requests: tuple[str, ...]
    slots: tuple[Slot | None, ...]
    courses: tuple[Course, ...]

    @classmethod
    def of(cls, slot: Slot, method: str, last: str) -> Chain:
        """The sequence that ends in ``last``."""
        parts = last.split(">")
        requests = [">".join(parts[: k + 1]) for k in range(len(parts))]
        found = [slot.rows[slot.rows["request"] == request] for request in requests]
        slots = tuple(Slot(own, slot.published) if len(own) else None for own in found)
        return cls(slot.label, method, tuple(requests), slots, tuple(Course.of(own, method) for own in found))

    @property
    def spacing(self) -> int:
        """Rounds from one request to the next."""
        return max(SPACING, *(course.rounds for course in self.courses))

    @property
    def classes(self) -> list[int]:
        """In the order of forgetting, then the others."""
        order = forgotten(self.requests[-1])
        return [*order, *sorted({c for course in self.courses for c in course.classes()} - set(order))]

    def name(self, label: int) -> str:
        """Of a class."""
        return class_name(pd.concat([slot.rows for slot in self.slots if slot]), label)

    @property
    def title(self) -> str:
        """Setting, method, and what went wrong at which request."""
        order = ", ".join(self.name(label) for label in forgotten(self.requests[-1]))
        texts = []
        for request, slot in zip(self.requests, self.slots, strict=True):
            marks = slot.marks(self.method) if slot else ["not run"]
            texts += [f"class-{self.name(forgotten(request)[-1])} {', '.join(marks)}"] if marks else []
        return marked(f"{self.label}: {method_name(self.method)}, forgetting {order}", texts)

    def why_empty(self) -> str:
        """What to say if there are no rounds at all."""
        reasons = {why_empty(slot, self.method) for slot in self.slots if slot}
        return reasons.pop() if len(reasons) == 1 else "no rounds recorded"

    def failed(self) -> list[int]:
        """The rounds of the requests at which a run failed."""
        return [self.spacing * k for k, slot in enumerate(self.slots) if slot and slot.count(self.method, "failed")]

    def line(self, label: int) -> pd.DataFrame:
        """Mean and deviation of a class at every round, held between requests; a gap where nothing was measured."""
        parts = []
        for k, course in enumerate(self.courses):
            own = course.points[course.points["label"] == label]
            own = own if len(own) else pd.DataFrame({"round": [0], "mean": [np.nan], "std": [np.nan]})
            parts.append(own.assign(round=own["round"] + self.spacing * k))
            parts.append(own.tail(1).assign(round=self.spacing * (k + 1)))
        return pd.concat(parts, ignore_index=True)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Numbers: every class before the first request and at the end of every step."""
        for step, (request, slot, course) in enumerate(zip(self.requests, self.slots, self.courses, strict=True), 1):
            if slot is None:
                continue
            gone = forgotten(request)
            ends = [(0, course.points["round"] <= 0)] if step == 1 else []
            for at, rounds in [*ends, (step, course.points["round"] > 0)]:
                for point in course.points[rounds].groupby("label").tail(1).itertuples(index=False):
                    method = ORIGINAL if at == 0 else self.method
                    line = measure(slot, method, PER_ROUND, f"class_{point.label}_accuracy")
                    place = {"step": at, "class": point.label, "forgotten": at > 0 and point.label in gone}
                    yield line | place | {"mean": point.mean, "std": point.std, "seeds": point.seeds}


def figure_4(rows: pd.DataFrame, published: pd.DataFrame, methods: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """One panel per class, in the order of forgetting; the numbers are those at the end of every step.

    Args:
        rows: of the artefact.
        published: from :func:`~quickdrop_bench.reporting.pictures.published_figure`.
        methods: one block of panels each; others that were measured follow.

    Returns:
        The picture and its numbers.
    """
    slots = panels(rows, published, within=("request",))
    chains = [
        Chain.of(slot, method, last)
        for slot in slots
        for method in methods_in(slot, methods)
        for last in _longest(slot)
    ]
    if not chains:
        return rows_of_panels([], 1, 2)[0], numbers_frame([], "step", "class", "forgotten")
    tall = [max(-(-len(chain.classes) // COLUMNS), 1) for chain in chains]
    figure = Figure(figsize=(WIDTH, 1.35 * sum(tall) + 0.35 * len(chains) + 0.6), layout="constrained")
    parts = figure.subfigures(len(chains), 1, squeeze=False, height_ratios=[0.3 + n for n in tall])[:, 0]
    for part, chain, count in zip(parts, chains, tall, strict=True):
        put_title(part, chain.title)
        axes = part.subplots(count, COLUMNS, squeeze=False, sharex=True, sharey=True)
        _draw(axes, chain)
        part.supxlabel("rounds since the first request", fontsize=8)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4)
    return figure, numbers_frame([line for chain in chains for line in chain.lines()], "step", "class", "forgotten")


def _longest(slot: Slot) -> list[str]:
    """The sequences that are not the beginning of another one."""
    requests = [str(request) for request in slot.rows["request"].unique()]
    return [own for own in requests if not any(other.startswith(f"{own}>") for other in requests)]


def _draw(axes: np.ndarray, chain: Chain) -> None:
    for panel, label in zip(axes.flat, chain.classes, strict=False):
        _draw_class(panel, chain, label)
    for panel in axes.flat[len(chain.classes) :]:
        panel.set_axis_off()
    for panel in axes[:, 0]:
        panel.set_ylabel("accuracy (%)")
    for column in axes.T:
        lowest = [panel for panel in column if panel.axison][-1:]
        for panel in lowest:
            panel.tick_params(labelbottom=True)


def _draw_class(axes: Axes, chain: Chain, label: int) -> None:
    order = forgotten(chain.requests[-1])
    own = order.index(label) if label in order else len(order)
    title = f"{own + 1}. class {chain.name(label)}" if label in order else f"class {chain.name(label)} (kept)"
    axes.set_title(title, pad=2)
    if not any(course.rounds for course in chain.courses):
        say(axes, chain.why_empty())
        return
    for k, course in enumerate(chain.courses):
        shade(axes, chain.spacing * k, course.lengths, STRONG if k == own else LIGHT)
    axes.axhline(LIMIT, color="black", linestyle=":", linewidth=0.8)
    points, turn = chain.line(label), chain.spacing * own
    for part, color in ((points["round"] <= turn, KEPT), (points["round"] >= turn, GONE)):
        mean, std = 100 * points[part]["mean"], 100 * points[part]["std"]
        axes.plot(points[part]["round"], mean, color=color, linewidth=1.2)
        axes.fill_between(points[part]["round"], mean - std, mean + std, color=color, alpha=0.2, linewidth=0)
    for at in chain.failed():
        axes.plot(at, 0.04, "x", color=GONE, transform=axes.get_xaxis_transform())
    axes.set(ylim=(-3, 103), yticks=(0, 50, 100))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.01)


def _legend() -> list[Any]:
    shades = [(color, phase, alpha) for alpha in (STRONG, LIGHT) for phase, color in SHADES.items()]
    names = {STRONG: "of this class", LIGHT: "of another"}
    return [
        Line2D([], [], color=KEPT, linewidth=1.2, label="before its request"),
        Line2D([], [], color=GONE, linewidth=1.2, label="from its request on"),
        *(Patch(color=color, alpha=alpha, label=f"{phase} {names[alpha]}") for color, phase, alpha in shades),
        Line2D([], [], color="black", linestyle=":", linewidth=0.8, label=f"limit: {LIMIT}%"),
    ]
