"""The command line: sub-commands to functions."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from quickdrop_bench.cli import serving as serve
from quickdrop_bench.cli.commands import PROGRAM
from quickdrop_bench.cli.options import arithmetic, federation_spec, seeds_of
from quickdrop_bench.cli.output import forgiving_output
from quickdrop_bench.cli.progress import ProgressDisplay
from quickdrop_bench.cli.resolve import parse
from quickdrop_bench.cli.runner import capabilities, make_session, produce
from quickdrop_bench.cli.unused import check_partition, check_training, typed_options
from quickdrop_bench.core.allocator import keep_freed_memory
from quickdrop_bench.core.errors import BadInput, is_out_of_memory
from quickdrop_bench.core.files import check_replaceable, refuse_links, write_text
from quickdrop_bench.data.datasets import DATASETS, dataset_label, load_dataset
from quickdrop_bench.data.partition import class_counts
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.federation.ranks import find_rank, is_first, is_shared, rank
from quickdrop_bench.harness.exhibits import exhibit, exhibits
from quickdrop_bench.harness.experiment import Experiment, Session
from quickdrop_bench.harness.holdings import class_holdings, synthetic_pairs
from quickdrop_bench.harness.presets import paper_values, preset_files, presets
from quickdrop_bench.harness.spec import Rules
from quickdrop_bench.harness.training import client_rows
from quickdrop_bench.methods import METHODS, load_plugins
from quickdrop_bench.reporting.distribution import write_distribution
from quickdrop_bench.reporting.gallery import write_sheet
from quickdrop_bench.reporting.report import render_report, write_report
from quickdrop_bench.tracking.dashboard import definition, publish
from quickdrop_bench.tracking.wandb_logger import project_of, tracking

__all__ = ["main"]

LONGEST_END = 120.0
"""Seconds that the first process may take to end, with its runs in W&B, after an error that this one has met too."""

LAST_MOMENTS = 3.0
"""Seconds that a process may take to vanish once its connections are closed."""

SERVES = ("unlearn", "relearn")
"""Commands that change a trained federation."""

ANSWERS = ("show", "evaluate", "methods", "datasets", "presets")
"""Commands that do nothing but print."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; None takes the process's.

    Returns:
        0; 1 if a run diverged, or training or writing failed, but not for output of finished work; 2 for input that
        cannot be used, with one sentence on standard error; 130 when interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    with forgiving_output() as out:
        code = _answer(argv)
    if out.problem and not isinstance(out.problem, BrokenPipeError):  # as of "| head"
        asked = bool(argv) and argv[0] in ANSWERS
        kept = (
            "" if asked or code else "the request was served, and " if argv[0] in SERVES else "the work is done, and "
        )
        print(f"{PROGRAM}: {kept}standard output cannot be written ({out.problem.strerror})", file=sys.stderr)
        return code or int(asked)
    return code


def _answer(argv: Sequence[str]) -> int:
    keep_freed_memory()
    try:
        find_rank()
        if not is_first():
            return _follow(argv)
        return _run(argv)
    except BadInput as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"{PROGRAM}: there is not enough memory; use a smaller model, batch or data set", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        served = bool(argv) and argv[0] in serve.COMMANDS
        then = "what was finished is kept" if served else "the same command continues from here"
        print(f"{PROGRAM}: interrupted; {then}", file=sys.stderr)
        return 130


def _run(argv: Sequence[str]) -> int:
    load_plugins()
    args = parse(argv)
    return COMMANDS[args.command](args[args.command], argv)


def _follow(argv: Sequence[str]) -> int:
    """Run one command beside the first process, which does all the talking and ends this one when it is interrupted.

    Returns:
        0, also where the command ends with an error that all have met: the first process says so. 1 if this process
        alone cannot go on, which Fabric's launcher, torchrun and ``srun --kill-on-bad-exit=1`` take as a reason to end
        the others.
    """
    started_by = os.getppid()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            _run(argv)
    except Exception as error:
        # What is wrong with the input or the disk is most likely wrong for all, though each finds it by itself.
        wait = 0.0 if is_shared(error) else LONGEST_END if isinstance(error, BadInput | OSError) else LAST_MOMENTS
        until = time.monotonic() + wait
        while time.monotonic() < until and os.getppid() == started_by:
            time.sleep(0.1)
        if is_shared(error) or os.getppid() != started_by:
            return 0  # the first process has met the same, or is gone
        print(f"{PROGRAM}: process {rank()}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def table(args: Namespace, argv: Sequence[str]) -> int:
    """Measure what is missing of a table and render it."""
    return produce(exhibit(f"table{args.number}").name, args, argv)


def figure(args: Namespace, argv: Sequence[str]) -> int:
    """Measure what is missing of a figure and draw it."""
    return produce(exhibit(f"figure{args.number}").name, args, argv)


def sweep(args: Namespace, argv: Sequence[str]) -> int:
    """Show the plan of a sweep, measure what is missing and draw it."""
    return produce("sweep", args, argv)


def train(args: Namespace, argv: Sequence[str]) -> int:
    """Train federations and save their artifacts."""
    experiment = _without_methods("train", args, arithmetic(args))
    check_training(args, typed_options(argv))
    if args.resume:
        _check_begun(experiment, args.artifacts_dir)
    if not is_first():
        session, _ = make_session(args, experiment, None)
        for seed in experiment.seeds:
            session.prepare(seed)
        return 0
    with tracking(args) as tracker:
        _train(*make_session(args, experiment, tracker))
    return 0


def _check_begun(experiment: Experiment, artifacts_dir: Path) -> None:
    """Raise :class:`BadInput` unless one of the federations was begun: else an option is another one than then."""
    before_fine_tuning = replace(experiment.federation, fine_tune=0)
    folders = [artifacts_dir / experiment.federation_hash(seed, before_fine_tuning) for seed in experiment.seeds]
    if not any(os.path.isdir(folder) for folder in folders):
        allowed = "no training with these options was begun; give those of the training, or leave --resume out"
        raise BadInput("--resume", artifacts_dir, allowed)


def _train(session: Session, display: ProgressDisplay) -> None:
    experiment = session.experiment
    for seed in experiment.seeds:
        with display:
            context = session.prepare(seed)
        folder = session.folder(seed)
        refuse_links(folder, session.artifacts_dir, "--artifacts-dir")
        counts = class_holdings(session.data, context.clients)
        write_distribution(folder, counts, session.data.class_names, _title(experiment, seed))
        if experiment.federation.distill:
            write_sheet(folder, *synthetic_pairs(session.data, context.clients), _title(experiment, seed))
        session.federation.load(context.state)
        accuracy = class_accuracy(session.federation.model, session.data.test, len(session.data.class_names)).without(
            ()
        )
        cost = session.trained(seed).cost
        share = cost.distillation_seconds / cost.seconds
        print(f"{folder}  accuracy {accuracy:.4f}  {cost.seconds:.1f} s, {share:.0%} of it distillation")


def distribution(args: Namespace, argv: Sequence[str]) -> int:
    """Show a partition without training: CSV and picture of the classes per client."""
    spec = federation_spec(args)
    check_partition(args, typed_options(argv))
    data = load_dataset(spec.dataset, args.data_dir, spec.image_size)
    experiment = _without_methods("distribution", args, "")
    for seed in experiment.seeds:
        rows = client_rows(spec, data.train.labels, seed)
        counts = class_counts(data.train.labels.numpy(), rows, len(data.class_names))
        label = dataset_label(spec.dataset, args.data_dir).replace(":", "-")
        folder = (
            args.results_dir / args.preset / "distribution" / f"{label}-{spec.distribution}-{spec.clients}-seed{seed}"
        )
        refuse_links(folder, args.results_dir, "--results-dir")
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


def report(args: Namespace, argv: Sequence[str]) -> int:
    """Write one HTML page over all rows."""
    if not os.path.isdir(args.results_dir):
        raise BadInput("--results-dir", args.results_dir, "there is no such folder; run a table or figure first")
    layouts = {name: exhibit(name) for name in exhibits()}
    today = datetime.now(UTC).date()
    page = render_report(args.results_dir, layouts, paper_values(), capabilities(), presets(), today)
    path = args.output or args.results_dir / "report.html"
    try:
        check_replaceable(path)
        write_report(path, page)
    except OSError as error:
        option = "--output" if args.output else "--results-dir"
        raise BadInput(option, path, f"it cannot be written ({error.strerror})") from error
    print(path)
    return 0


def dashboard(args: Namespace, argv: Sequence[str]) -> int:
    """Write the definition of a W&B workspace, and save it on W&B if asked to."""
    project = project_of(args)
    entity = args.wandb_entity or os.environ.get("WANDB_ENTITY", "")
    if args.publish and not entity:
        raise BadInput("--publish", "needs --wandb-entity", "name the user or team that the project belongs to")
    try:
        check_replaceable(args.output)
        write_text(args.output, definition(entity, project))
    except OSError as error:
        raise BadInput("--output", args.output, f"it cannot be written ({error.strerror})") from error
    print(args.output)
    if args.publish:
        print(publish(entity, project))
    return 0


def list_methods(args: Namespace, argv: Sequence[str]) -> int:
    """List the methods with what they can do and need, and the package that each comes from."""
    header = ("method", "requests", "relearns", "needs at request time", "what it does", "from")
    lines = [
        (
            n,
            ", ".join(sorted(m.levels)),
            "yes" if m.can_relearn else "no",
            ", ".join(sorted(m.needs)),
            m.summary,
            m.__module__.partition(".")[0],
        )
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


COMMANDS: dict[str, Callable[[Namespace, Sequence[str]], int]] = {
    "table": table,
    "figure": figure,
    "sweep": sweep,
    "train": train,
    **serve.COMMANDS,
    "distribution": distribution,
    "report": report,
    "dashboard": dashboard,
    "methods": list_methods,
    "datasets": list_datasets,
    "presets": list_presets,
}
