"""One function per command. What computes is imported by those that need it: it takes seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from textwrap import fill

from rich.console import Console
from rich.table import Table

from quickdrop_bench.cli.grid import cells
from quickdrop_bench.cli.resolve import CommandLine, federation_spec, seeds_of
from quickdrop_bench.cli.unused import check_experiments, check_federation, check_partition
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import check_replaceable, write_text, writing
from quickdrop_bench.core.starting import importing
from quickdrop_bench.data.datasets import DATASETS
from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.harness.federation_spec import MODEL_OPTIONS
from quickdrop_bench.harness.presets import preset_files, presets
from quickdrop_bench.methods import METHODS
from quickdrop_bench.models import MODELS

WIDE = 120
"""Columns of a terminal on which lists show all that they know."""


def measured(line: CommandLine) -> int:
    """Measure what is missing of a table, a figure or a sweep, and render it."""
    name = exhibit(line.section).name
    args = line.options(name)
    found = list(cells(name, line))
    check_experiments(name, line, args, [experiment for experiment, _ in found])
    with importing():
        from quickdrop_bench.cli.runner import produce

    return produce(name, args, line, found)


def federation(line: CommandLine) -> int:
    """Train federations and save their artifacts, or show who holds what without training."""
    args = line.options()
    check = check_federation if line.command == "train" else check_partition
    check(line, args, [args.dataset])
    _ = federation_spec(args), seeds_of(args)
    with importing():
        from quickdrop_bench.cli import training

    return training.train(args) if line.command == "train" else training.distribution(args)


def served(line: CommandLine) -> int:
    """Look at a trained federation, or serve a request on it."""
    with importing():
        from quickdrop_bench.cli import serving
        from quickdrop_bench.federation.ranks import find_rank

    find_rank()
    return serving.SERVED[line.command](line.over({}), line)


def report(line: CommandLine) -> int:
    """Write one HTML page over all rows."""
    args = line.over({})
    if not os.path.isdir(args.results_dir):
        raise BadInput("--results-dir", args.results_dir, "there is no such folder; run a table or figure first")
    with importing():
        from quickdrop_bench.reporting.html.page import render_report

    path, option = args.output or args.results_dir / "report.html", "--output" if args.output else "--results-dir"
    with writing(option, path):
        check_replaceable(path)
    page = render_report(args.results_dir, datetime.now(UTC).date())
    with writing(option, path):
        write_text(path, page)
    print(path)
    return 0


def dashboard(line: CommandLine) -> int:
    """Write the definition of a W&B workspace, and save it on W&B if asked to."""
    args = line.over({})
    with importing():
        from quickdrop_bench.tracking.dashboard import definition, publish
        from quickdrop_bench.tracking.wandb_logger import project_of

    project = project_of(args)
    entity = args.wandb_entity or os.environ.get("WANDB_ENTITY", "")
    if args.publish and not entity:
        raise BadInput("--publish", "needs --wandb-entity", "name the user or team that the project belongs to")
    with writing("--output", args.output):
        check_replaceable(args.output)
        write_text(args.output, definition(entity, project))
    print(args.output)
    if args.publish:
        print(publish(entity, project))
    return 0


def listed(line: CommandLine) -> int:
    """Print a list: two columns, or all where they are asked for or fit; on a narrow terminal line by line."""
    header, *entries = LISTS[line.command]()
    console = Console(highlight=False)
    wide = console.width >= WIDE
    if line.over({}).details and not wide:
        for name, *others in entries:
            console.print(name)
            for title, value in ((h, v) for h, v in zip(header[1:], others, strict=True) if v):
                console.print(fill(f"{title}: {value}", console.width, initial_indent="  ", subsequent_indent="    "))
        return 0
    shown = len(header) if wide else 2
    listing = Table(*header[:shown], box=None, pad_edge=False)
    for entry in entries:
        listing.add_row(*entry[:shown])
    console.print(listing)
    return 0


def _methods() -> Iterator[Sequence[str]]:
    """The methods, what they can do and need, and the package that each comes from."""
    yield "method", "what it does", "requests", "relearns", "needs at request time", "from"
    for name, method in ((name, METHODS[name]) for name in METHODS):
        can = ", ".join(sorted(method.levels)), "yes" if method.can_relearn else "no", ", ".join(sorted(method.needs))
        yield name, method.summary, *can, method.__module__.partition(".")[0]


def _metrics() -> Iterator[Sequence[str]]:
    """The metrics, their numbers in rows, the stages after which they are measured, and when they are not."""
    with importing():
        from quickdrop_bench.evaluation.metric import METRICS

    yield "metric", "what it is", "in rows", "measured at", "only if"
    for name, m in ((name, METRICS[name]) for name in sorted(METRICS)):
        oracle = ["retrain-or is among the methods"] * m.needs_oracle
        condition = ", ".join([*oracle, *["the table shows it"] * m.on_demand])
        yield name, m.summary.rstrip("."), ", ".join(m.gives), ", ".join(sorted(m.stages)), condition


def _models() -> Iterator[Sequence[str]]:
    yield "model", "what it is", "options"
    for name in MODELS:
        own = {f.name for f in fields(MODELS[name])}  # type: ignore[arg-type]
        yield name, MODELS[name].summary, ", ".join(f"--{option}" for option in MODEL_OPTIONS if option in own)


def _datasets() -> Iterator[Sequence[str]]:
    yield "data set", "what it is"
    yield from ((name, DATASETS[name].summary) for name in DATASETS)


def _presets() -> Iterator[Sequence[str]]:
    """The presets, and the data sets that have files of their own."""
    yield "preset", "what it is", "own settings for"
    for name in presets():
        path = preset_files(name, None)[0]
        first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].lstrip("# ")
        yield name, first, ", ".join(sorted(p.stem.split(".", 1)[1] for p in path.parent.glob(f"{name}.*.yaml")))


LISTS = {"methods": _methods, "metrics": _metrics, "models": _models, "datasets": _datasets, "presets": _presets}
"""By command the header, and then a line each."""

FUNCTIONS: dict[str, Callable[[CommandLine], int]] = {
    **dict.fromkeys(("table", "figure", "sweep"), measured),
    "train": federation,
    **dict.fromkeys(("unlearn", "relearn", "evaluate", "show", "export"), served),
    "distribution": federation,
    "report": report,
    "dashboard": dashboard,
    **dict.fromkeys(LISTS, listed),
}

CHANGES = ("unlearn", "relearn")
"""Commands that change a trained federation."""

SERVES = tuple(name for name, function in FUNCTIONS.items() if function is served)

ANSWERS = ("show", "evaluate", *LISTS)
"""Commands that do nothing but print."""
