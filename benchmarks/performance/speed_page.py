"""What people read of ``speed.py``'s measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd
import torch

from quickdrop_bench.harness.provenance import device_name

STACKED = ((4, 0), (16, 0), (32, 0), (64, 0), (128, 0), (32, 15), (64, 30))
"""Images of a step of clients in stacks, and synthetic ones."""


def table(frame: pd.DataFrame, baseline: str | None = None, metric: str = "seconds") -> Iterable[str]:
    """Median and spread by case, and the ratio to a baseline, repeat by repeat."""
    chosen = frame[(frame["metric"] == metric) & (frame["repeat"] > 0)]
    wide = chosen.pivot_table(index="repeat", columns="case", values="value", sort=False)
    yield f"| | {metric.replace('_', ' ')}: median (least to most) |" + (f" {baseline} ÷ it |" if baseline else "")
    yield "|---|--:|" + ("--:|" if baseline else "")
    for case in wide:
        values = wide[case]
        line = f"| {case} | {values.median():.4g} ({values.min():.4g} to {values.max():.4g}) |"
        if baseline:
            line += f" {(wide[baseline] / values).median():.2f}× |"
        yield line


def markdown(frame: pd.DataFrame) -> str:
    """The page."""
    by = {str(name): part for name, part in frame.groupby("section", sort=False)}
    lines = [
        "# Speed",
        "",
        f"{device_name(torch.device('cpu'))}, torch {torch.__version__}; medians of repeats that took turns, after an",
        "uncounted one. Written by `make speed`.",
    ]
    for name, (title, page) in PAGES.items():
        if name in by:
            repeats, commits = by[name]["repeat"].max(), ", ".join(by[name]["commit"].unique())
            lines += ["", f"## {title}", "", f"Repeats: {repeats}; commit {commits}.", "", *page(by[name])]
    return "\n".join([*lines, ""])


def step_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (a)."""
    yield from table(part, "plain loop")
    yield ""
    yield "The limit is the step's floating-point operations at the rate of the best large matrix product. Convolutions"
    yield "of the library may do better, with fewer operations (Winograd) than are counted."


def distillation_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (b)."""
    seconds = part[part["metric"] == "seconds"].pivot_table(index="repeat", columns="case", values="value", sort=False)
    median = part.groupby(["case", "metric"])["value"].median().unstack()
    yield "| | seconds | synthetic images a step | share: (with − without) ÷ with | booked in the rows |"
    yield "|---|--:|--:|--:|--:|"
    counted = seconds[seconds.index > 0]
    for case in map(str, seconds):
        own = median.loc[case]
        share = float((1 - counted["none"] / counted[case]).median())
        values = f"{counted[case].median():.2f} ({counted[case].min():.2f} to {counted[case].max():.2f})"
        booked = own["booked_as_distillation"] / own["seconds"]
        yield f"| {case} | {values} | {own['synthetic_images_per_step']:.0f} | {share:.0%} | {booked:.0%} |"


def request_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (c)."""
    yield "| | unlearning, ms: cold, warm | recovery, ms: cold, warm | gradients | µs each | a training step's | ÷ |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for case in dict.fromkeys(part["case"]):
        wide = part[part["case"] == case].pivot_table(index="repeat", columns="metric", values="value")
        cold, warm = wide.loc[0], wide[wide.index > 0].median()
        stages = [f"{1e3 * cold[n]:.1f}, {1e3 * warm[n]:.1f}" for n in ("unlearning_seconds", "recovery_seconds")]
        count = int(warm["unlearning_samples"] + warm["recovery_samples"])
        each, large = 1e6 * warm["seconds_per_sample_gradient"], 1e6 * warm["large_batch_seconds_per_sample_gradient"]
        yield f"| {case} | {stages[0]} | {stages[1]} | {count} | {each:.0f} | {large:.0f} | {each / large:.2f} |"


def clients_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (d)."""
    median = part[part["repeat"] > 0].groupby(["case", "metric"], sort=False)["value"].median().unstack()
    yield "| | seconds | data and synthetic sets (MB) | peak memory of the process (MB) |"
    yield "|---|--:|--:|--:|"
    for case in dict.fromkeys(part["case"]):
        line = median.loc[case]
        yield f"| {case} | {line['seconds']:.3f} | {line['data_bytes'] / 1e6:.0f} | {line['peak_bytes'] / 1e6:.0f} |"


def evaluation_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (f)."""
    yield from [*table(part, None, "accuracy_per_image"), "", *table(part, None, "attack_per_image")]


def stacking_page(part: pd.DataFrame) -> Iterable[str]:
    """Section (g)."""
    wide = part[part["repeat"] > 0].pivot_table(index="repeat", columns="case", values="value")
    yield "| | ms a client, alone | stacked | ÷ |"
    yield "|---|--:|--:|--:|"
    for images, synthetic in STACKED:
        alone, stacked = (1e3 * wide[f"{images} + {synthetic}, {how}"] for how in ("alone", "stacked"))
        what = f"{images} images" + (f" and {synthetic} synthetic ones" if synthetic else "")
        yield f"| {what} | {alone.median():.2f} | {stacked.median():.2f} | {(alone / stacked).median():.2f}× |"


PAGES: dict[str, tuple[str, Callable[[pd.DataFrame], Iterable[str]]]] = {
    "step": ("(a) A training step: ConvNet 3×128, 32×32, B = 256", step_page),
    "round": (
        "(a) A round: 10 clients, two steps each",
        lambda part: table(part, "plain loop", "wall_seconds"),
    ),
    "distillation": (
        "(b) Distillation: N = 10, B = 256, α = 0.1, 50 000 images, two steps a client",
        distillation_page,
    ),
    "request": (
        "(c) A QuickDrop request: 10 clients, a step of ascent, two rounds of two steps of recovery",
        request_page,
    ),
    "clients": ("(d) A round against clients, images per client and s: width 64, B = 32, one step, IID", clients_page),
    "start-up": ("(e) Start-up", table),
    "evaluation": ("(f) Evaluation, per image", evaluation_page),
    "stacking": (
        "(g) Five clients in a stack: CPU time of a step, 8×8, 5 classes, width 32, one thread",
        stacking_page,
    ),
}
