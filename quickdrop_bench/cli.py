"""The command line: sub-commands to functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

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
from quickdrop_bench.harness.run import ORIGINAL, Experiment, Session, measure
from quickdrop_bench.harness.training import client_rows
from quickdrop_bench.methods import METHODS, load_plugins
from quickdrop_bench.options import (
    Parser,
    add_common_options,
    add_run_options,
    add_table_options,
    federation_spec,
    make_fabric,
    methods_of,
    preset_defaults,
    request_of,
    seeds_of,
)
from quickdrop_bench.progress import ProgressDisplay
from quickdrop_bench.reporting import tables
from quickdrop_bench.reporting.distribution import write_distribution
from quickdrop_bench.rows import RowFile

__all__ = ["main", "make_session", "parse"]

PROGRAM = "quickdrop-bench"
TABLES = (2,)


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
        args = parse(sys.argv[1:] if argv is None else argv)
        return COMMANDS[args.command][0](args[args.command])
    except BadInput as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command continues from here", file=sys.stderr)
        return 130


def parse(argv: Sequence[str]) -> Namespace:
    """Parse a command line; the preset sets the defaults that options and ``--config`` files override."""
    parser = Parser(prog=PROGRAM, description="Benchmarks of federated unlearning.", version=__version__)
    commands = parser.add_subcommands(required=True, dest="command")
    for name, (_, options, text) in COMMANDS.items():
        sub = Parser(description=text)
        options(sub)
        if argv and argv[0] == name and options is not _no_options:
            sub.set_defaults(preset_defaults(argv, with_methods=options is add_table_options))
        commands.add_subcommand(name, sub, help=text)
    return parser.parse_args(list(argv))


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


def table(args: Namespace) -> int:
    """Measure what is missing of a table and render it."""
    if args.number not in TABLES:
        raise BadInput("table", args.number, f"use one of {', '.join(map(str, TABLES))}")
    name = f"table{args.number}"
    layout: tables.Layout = artefact(name).LAYOUT
    wanted = list(dict.fromkeys(m.strip() for m in args.methods.split(",") if m.strip())) or list(layout.methods)
    configured = methods_of(args)
    chosen = {m: configured[m] for m in dict.fromkeys((*layout.methods, *wanted)) if METHODS[m]}
    experiment = Experiment(
        name,
        args.preset,
        federation_spec(args),
        request_of(args),
        chosen,
        seeds_of(args),
        args.data_dir,
        args.precision,
    )
    session, display = make_session(args, experiment)
    folder = args.results_dir / args.preset / name
    rows = RowFile(folder / "rows.jsonl")
    rows.check_writable()
    if args.force:
        rows.drop(experiment.run_spec(m, seed).hash for seed in experiment.seeds for m in (ORIGINAL, *wanted))
    with display:
        all_finite = measure(session, rows, wanted, display.start_run)
    frame = pd.concat([_others(rows, experiment), rows.frame(experiment.spec_hashes())], ignore_index=True)
    published = tables.read_published(paper_values(), args.number)
    texts = tables.render(frame, published, layout)
    tables.write_table(folder, texts)
    if sys.stdout.isatty():
        Console(highlight=False).print(*tables.on_terminal(frame, published, layout), sep="\n")
    else:
        print(texts["table.md"])
    print(f"rows and table: {folder}", file=sys.stderr)
    return 0 if all_finite else 1


def _others(rows: RowFile, experiment: Experiment) -> pd.DataFrame:
    """The newest rows of the settings in the same file that this command is not about."""
    own = experiment.identity()
    others = [row for row in rows.rows if any(row[key] != own[key] for key in tables.SETTING)]
    return tables.latest(pd.DataFrame(others)) if others else pd.DataFrame()


def train(args: Namespace) -> int:
    """Train federations and save their artifacts."""
    request = UnlearningRequest("class", (0,))  # training does not depend on it
    experiment = Experiment(
        "train", args.preset, federation_spec(args), request, {}, seeds_of(args), args.data_dir, args.precision
    )
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
        cost = session.training_cost(seed)
        share = cost.distillation_seconds / cost.seconds
        print(f"{folder}  accuracy {accuracy:.4f}  {cost.seconds:.1f} s, {share:.0%} of it distillation")
    return 0


def distribution(args: Namespace) -> int:
    """Show a partition without training: CSV and picture of the classes per client."""
    spec = federation_spec(args)
    data = load_dataset(spec.dataset, args.data_dir, spec.image_size)
    experiment = Experiment(
        "distribution", args.preset, spec, UnlearningRequest("class", (0,)), {}, seeds_of(args), args.data_dir, ""
    )
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


def _title(experiment: Experiment, seed: int) -> str:
    identity = experiment.identity()
    return f"{identity['dataset']}, {identity['clients']} clients, {identity['distribution']}, seed {seed}"


def list_methods(args: Namespace) -> int:
    """List the methods with what they can do and need."""
    header = ("method", "requests", "relearns", "needs at request time", "what it does")
    lines = [
        (n, ", ".join(sorted(m.levels)), "yes" if m.can_relearn else "no", ", ".join(sorted(m.needs)), m.summary)
        for n, m in ((name, METHODS[name]) for name in METHODS)
    ]
    return _print_list(header, lines)


def list_datasets(args: Namespace) -> int:
    """List the data sets."""
    return _print_list(("data set", "what it is"), [(name, DATASETS[name].summary) for name in DATASETS])


def list_presets(args: Namespace) -> int:
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


COMMANDS: dict[str, tuple[Callable[[Namespace], int], Callable[[ArgumentParser], None], str]] = {
    "table": (table, add_table_options, "measure and render a table of the paper"),
    "train": (train, add_run_options, "train a federation and save its artifacts"),
    "distribution": (distribution, add_common_options, "show who holds which classes"),
    "methods": (list_methods, _no_options, "list the unlearning methods"),
    "datasets": (list_datasets, _no_options, "list the data sets"),
    "presets": (list_presets, _no_options, "list the presets"),
}
