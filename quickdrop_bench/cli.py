"""The command line: sub-commands to functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pandas as pd
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from quickdrop_bench import __version__
from quickdrop_bench.allocator import keep_freed_memory
from quickdrop_bench.data.datasets import DATASETS, dataset_label, load_dataset
from quickdrop_bench.data.partition import class_counts
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.errors import BadInput
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.harness.catalogue import artefact, paper_values, preset_files, presets
from quickdrop_bench.harness.run import Experiment, Session, measure
from quickdrop_bench.harness.spec import Rules
from quickdrop_bench.harness.training import client_rows
from quickdrop_bench.methods import METHODS, load_plugins
from quickdrop_bench.methods.base import check_support
from quickdrop_bench.options import (
    Parser,
    add_common_options,
    add_run_options,
    add_table_options,
    federation_spec,
    make_fabric,
    methods_of,
    preset_defaults,
    requests_of,
    rules_of,
    seeds_of,
    split,
)
from quickdrop_bench.progress import ProgressDisplay
from quickdrop_bench.reporting import tables
from quickdrop_bench.reporting.capabilities import (
    Capability,
    CapabilityLayout,
    capabilities_on_terminal,
    render_capabilities,
)
from quickdrop_bench.reporting.distribution import write_distribution
from quickdrop_bench.rows import RowFile

__all__ = ["main", "make_session", "parse"]

PROGRAM = "quickdrop-bench"
TABLES = (1, 2, 3, 4, 5, 6)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; None takes the process's.

    Returns:
        0; 1 if a run diverged, or training or writing failed; 2 for input that cannot be used, with one sentence on
        standard error; 130 when interrupted.
    """
    keep_freed_memory()
    try:
        load_plugins()
        argv = sys.argv[1:] if argv is None else argv
        args = parse(argv)
        return COMMANDS[args.command][0](args[args.command], argv)
    except BadInput as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command continues from here", file=sys.stderr)
        return 130


def parse(argv: Sequence[str], artefact: str | None = None) -> Namespace:
    """Parse a command line; the preset sets the defaults that options and ``--config`` files override.

    Args:
        argv: the arguments.
        artefact: whose section of the preset counts; None takes the table that the command line names.
    """
    parser = Parser(
        prog=PROGRAM, description="Benchmarks of federated unlearning.", version=__version__, allow_abbrev=False
    )
    chosen: str | None = None
    commands = parser.add_subcommands(required=True, dest="command")
    for name, (_, options, text) in COMMANDS.items():
        sub = Parser(description=text, allow_abbrev=False)
        options(sub)
        if argv and argv[0] == name and options is not _no_options:
            with_methods = options is add_table_options
            section = artefact or (_named_table(argv) if with_methods else "")
            defaults = preset_defaults(argv, section, with_methods=with_methods)
            chosen = defaults["preset"]
            sub.set_defaults(defaults)
        commands.add_subcommand(name, sub, help=text)
    args = parser.parse_args(list(argv))
    if chosen is not None and args[args.command].preset != chosen:
        raise BadInput("--config", "with the key preset", "give --preset on the command line, before the file is read")
    return args


def _named_table(argv: Sequence[str]) -> str:
    """The table of a command line, before the real parser reads it: a number that is no option's value."""
    for before, part in pairwise(argv):
        if part.isdigit() and (not before.startswith("--") or "=" in before or before in ("--iid", "--force")):
            return f"table{part}"
    return ""


def _no_options(parser: ArgumentParser) -> None:
    """For commands that only list something."""


def make_session(args: Namespace, experiment: Experiment) -> tuple[Session, ProgressDisplay]:
    """The machine that the options name, with its progress display."""

    def accuracy(federation: Federation, info: RoundInfo) -> float:
        federation.load(info.state)
        return class_accuracy(federation.model, session.data.test, len(session.data.class_names)).without(())

    display = ProgressDisplay(accuracy)
    session = Session(experiment, make_fabric(args, [display]), args.artifacts_dir)
    return session, display


def table(args: Namespace, argv: Sequence[str]) -> int:
    """Measure what is missing of a table and render it."""
    if args.number not in TABLES:
        raise BadInput("table", args.number, f"use one of {', '.join(map(str, TABLES))}")
    name = f"table{args.number}"
    experiments = list(_experiments(name, args, argv))
    folder = args.results_dir / args.preset / name
    rows = RowFile(folder / "rows.jsonl")
    rows.check_writable()
    siblings = [] if args.force else [RowFile(p) for p in folder.parent.glob("*/rows.jsonl") if p != rows.path]
    all_well = True
    for experiment, wanted in experiments:
        session, display = make_session(args, experiment)
        with display:
            all_well &= measure(session, rows, wanted, display.start_run, siblings, force=args.force)
        if trials := session.trials():
            tables.write_trials(folder / "search.csv", trials)
    _render(args, rows, [experiment for experiment, _ in experiments], folder)
    print(f"rows and table: {folder}", file=sys.stderr)
    return 0 if all_well else 1


def _experiments(name: str, args: Namespace, argv: Sequence[str]) -> Iterator[tuple[Experiment, list[str]]]:
    """What a table measures, each with the methods to run: its variants × data sets × protocols.

    A variant names the section of the preset that holds its settings, the artefact whose methods, level and stages
    it takes, and further options.
    """
    own = artefact(name)
    variants: Sequence[tuple[str, str, tuple[str, ...]]] = getattr(own, "VARIANTS", ((name, name, ()),))
    levels = {artefact(shape).LAYOUT.level for _, shape, _ in variants}
    asked = split(args.methods)
    for option in ("dataset", "protocol"):
        if not split(args[option]):
            raise BadInput(f"--{option}", args[option], "at least one is needed")
    if not getattr(own, "MEASURES", True):
        if asked:
            raise BadInput("--methods", args.methods, f"{name} measures training and runs no method")
        if not args.distill:
            raise BadInput("--distill", "false", f"{name} is about distillation")
    for method in asked:
        if not METHODS[method].levels & levels:
            check_support(method, UnlearningRequest(min(levels), (0,)), METHODS[method].needs)
    seen: list[dict[str, Any]] = []
    for section, shape, options in variants:
        layout: tables.Layout = artefact(shape).LAYOUT
        base = [*argv, *options, "--preset", args.preset]
        for dataset, protocol in product(split(parse(base, section)["table"].dataset), split(args.protocol)):
            one = parse([*base, "--dataset", dataset, "--protocol", protocol], section)["table"]
            shown = [m for m in getattr(own, "MEASURES", layout.methods) if layout.level in METHODS[m].levels]
            wanted = [m for m in asked if layout.level in METHODS[m].levels] if asked else shown
            experiment = _experiment(name, one, layout, dict.fromkeys((*shown, *wanted)))
            if experiment.identity() not in seen:  # --iid makes a variant equal to another
                seen.append(experiment.identity())
                experiment.check(wanted)
                yield experiment, wanted


def _experiment(name: str, args: Namespace, layout: tables.Layout, methods: Iterable[str]) -> Experiment:
    configured = methods_of(args)
    return Experiment(
        name,
        args.preset,
        federation_spec(args),
        requests_of(args, layout.level),
        {m: configured[m] for m in methods},
        seeds_of(args),
        args.data_dir,
        args.precision,
        rules_of(args, relearn=layout.relearn),
    )


def _render(args: Namespace, rows: RowFile, experiments: Sequence[Experiment], folder: Path) -> None:
    """Write and print a table from the rows of its experiments and of other settings in the same file."""
    own = {tables.setting_of(e.identity(step)) for e in experiments for step in range(len(e.requests))}
    others = [row for row in rows.rows if tables.setting_of(row) not in own]
    frames = [tables.latest(pd.DataFrame(others))] if others else []
    frame = pd.concat([*frames, *(rows.frame(e.spec_hashes()) for e in experiments)], ignore_index=True)
    layout = artefact(folder.name).LAYOUT
    if isinstance(layout, CapabilityLayout):
        known = [_capability(name) for name in METHODS]
        texts, shown = render_capabilities(frame, known, layout), capabilities_on_terminal(frame, known, layout)
    else:
        unsupported = [name for name in METHODS if layout.level not in METHODS[name].levels]
        published = tables.read_published(paper_values(), args.number)
        texts = tables.render(frame, published, layout, unsupported)
        shown = tables.on_terminal(frame, published, layout, unsupported)
    tables.write_table(folder, texts)
    if sys.stdout.isatty():
        Console(highlight=False).print(*shown, sep="\n")
    else:
        print(texts["table.md"])


def _capability(name: str) -> Capability:
    method = METHODS[name]
    return Capability(name, "class" in method.levels, "client" in method.levels, method.can_relearn, method.summary)


def train(args: Namespace, argv: Sequence[str]) -> int:
    """Train federations and save their artifacts."""
    experiment = _without_methods("train", args, args.precision)
    session, display = make_session(args, experiment)
    for seed in experiment.seeds:
        with display:
            display.start_run("fl-training", seed)
            context = session.context(seed)
        folder = session.folder(seed)
        rows = [client.original.rows.cpu().numpy() for _, client in sorted(context.clients.items())]
        counts = class_counts(session.data.train.labels.cpu().numpy(), rows, len(session.data.class_names))
        write_distribution(folder, counts, session.data.class_names, _title(experiment, seed))
        session.federation.load(context.state)
        accuracy = class_accuracy(session.federation.model, session.data.test, len(session.data.class_names)).without(
            ()
        )
        cost, _ = session.training_cost(seed)
        share = cost.distillation_seconds / cost.seconds
        print(f"{folder}  accuracy {accuracy:.4f}  {cost.seconds:.1f} s, {share:.0%} of it distillation")
    return 0


def distribution(args: Namespace, argv: Sequence[str]) -> int:
    """Show a partition without training: CSV and picture of the classes per client."""
    spec = federation_spec(args)
    data = load_dataset(spec.dataset, args.data_dir, spec.image_size)
    experiment = _without_methods("distribution", args, "")
    for seed in experiment.seeds:
        rows = client_rows(spec, data.train.labels, seed)
        counts = class_counts(data.train.labels.numpy(), rows, len(data.class_names))
        label = dataset_label(spec.dataset, args.data_dir).replace(":", "-")
        folder = (
            args.results_dir / args.preset / "distribution" / f"{label}-{spec.distribution}-{spec.clients}-seed{seed}"
        )
        try:
            paths = write_distribution(folder, counts, data.class_names, _title(experiment, seed))
        except OSError as error:
            raise BadInput("--results-dir", args.results_dir, f"it cannot be written ({error.strerror})") from error
        print("\n".join(str(path) for path in paths))
    return 0


def _without_methods(name: str, args: Namespace, precision: str) -> Experiment:
    """For commands that serve no request; what they do does not depend on the one given here."""
    requests = (UnlearningRequest("class", (0,)),)
    seeds = seeds_of(args)
    return Experiment(name, args.preset, federation_spec(args), requests, {}, seeds, args.data_dir, precision, Rules())


def _title(experiment: Experiment, seed: int) -> str:
    identity = experiment.identity()
    return f"{identity['dataset']}, {identity['clients']} clients, {identity['distribution']}, seed {seed}"


def list_methods(args: Namespace, argv: Sequence[str]) -> int:
    """List the methods with what they can do and need."""
    header = ("method", "requests", "relearns", "needs at request time", "what it does")
    lines = [
        (n, ", ".join(sorted(m.levels)), "yes" if m.can_relearn else "no", ", ".join(sorted(m.needs)), m.summary)
        for n, m in ((name, METHODS[name]) for name in METHODS)
    ]
    return _print_list(header, lines)


def list_datasets(args: Namespace, argv: Sequence[str]) -> int:
    """List the data sets."""
    return _print_list(("data set", "what it is"), [(name, DATASETS[name].summary) for name in DATASETS])


def list_presets(args: Namespace, argv: Sequence[str]) -> int:
    """List the presets and their files."""
    texts = []
    for name in presets():
        path = preset_files(name, None)[0]
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        special = sorted(p.stem.split(".", 1)[1] for p in path.parent.glob(f"{name}.*.yaml"))
        texts.append((name, first, ", ".join(special)))
    return _print_list(("preset", "what it is", "own settings for"), texts)


def _print_list(header: Sequence[str], lines: Sequence[Sequence[str]]) -> int:
    console = Console()
    listing = Table(*header, box=None, pad_edge=False)
    for line in lines:
        listing.add_row(*line)
    console.print(listing)
    return 0


COMMANDS: dict[str, tuple[Callable[[Namespace, Sequence[str]], int], Callable[[ArgumentParser], None], str]] = {
    "table": (table, add_table_options, "measure and render a table of the paper"),
    "train": (train, add_run_options, "train a federation and save its artifacts"),
    "distribution": (distribution, add_common_options, "show who holds which classes"),
    "methods": (list_methods, _no_options, "list the unlearning methods"),
    "datasets": (list_datasets, _no_options, "list the data sets"),
    "presets": (list_presets, _no_options, "list the presets"),
}
