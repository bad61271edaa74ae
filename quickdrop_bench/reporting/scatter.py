"""Speed against accuracy: median speed-up with its range, mean accuracy with its deviation."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from quickdrop_bench.reporting.layout import CONTROL, ORACLE, method_name, registered
from quickdrop_bench.reporting.looks import method_styles, style
from quickdrop_bench.reporting.slots import Cell

__all__ = ["scatter"]


def scatter(points: Mapping[str, tuple[Cell, Cell]]) -> str:
    """One point per method, as a data URI.

    Args:
        points: by method, its speed-up, which has to be finite, and its accuracy as a fraction.
    """
    looks = method_styles(list(points))
    with style():
        figure = Figure(figsize=(3.7, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for method, (x, y) in points.items():
            # The control is drawn large and hollow, so that QuickDrop is seen where both coincide.
            look, hollow = looks[method], registered(method) == CONTROL
            axes.errorbar(
                x.median,
                100 * y.mean,
                100 * y.std if y.std > 0 else None,
                [[x.median - x.low], [x.high - x.median]] if x.high > x.low else None,
                label=method_name(method).lstrip("_"),
                color=look.color,
                marker=look.marker,
                markersize=14 if hollow else 8,
                markerfacecolor="none" if hollow else look.color,
                markeredgewidth=1.5 if hollow else 0.6,
                markeredgecolor=look.color if hollow else "black",
                linestyle="none",
                elinewidth=0.8,
                zorder=3,
            )
        if ORACLE in points:
            axes.axhline(100 * points[ORACLE][1].mean, color="#000000", linewidth=0.8, linestyle=":", zorder=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=_subs([x.median for x, _ in points.values()])))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12, y=0.15)
        axes.set(
            xlabel="speedup over Retrain-Or (sample-gradients, log)", ylabel="R-Set accuracy after the last stage (%)"
        )
        axes.grid(alpha=0.25, linewidth=0.5)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, markerscale=0.7)
        text = io.BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(text.getvalue()).decode('ascii')}"


def _subs(values: Iterable[float]) -> tuple[float, ...]:
    """Which multiples of powers of ten get a label: fewer over many decades."""
    known = list(values)
    return (1.0,) if max(known) / min(known) > 300 else (1.0, 3.0) if max(known) / min(known) > 10 else (1.0, 2.0, 5.0)
