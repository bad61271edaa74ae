"""Measure what an exhibit lacks, here or in processes of its own, and render it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Column, Table

from quickdrop_bench.cli.grid import cells
from quickdrop_bench.cli.machine import make_fabric, processes_of
from quickdrop_bench.cli.output import counted
from quickdrop_bench.cli.progress import ProgressDisplay, RoundAccuracy, Work
from quickdrop_bench.cli.resolve import CommandLine
from quickdrop_bench.core.allocator import keep_freed_memory
from quickdrop_bench.core.cost import duration
from quickdrop_bench.core.errors import BadInput, positive
from quickdrop_bench.core.files import refuse_links, writing
from quickdrop_bench.core.processes import die_with_parent, run_processes
from quickdrop_bench.evaluation.accuracy import ClassAccuracy, class_accuracy
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.federation.ranks import find_rank, is_first
from quickdrop_bench.harness.estimate import OTHERS, PlannedCell, Probe, plan
from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.harness.experiment import ORIGINAL, Experiment, Row
from quickdrop_bench.harness.federation_spec import FederationSpec
from quickdrop_bench.harness.lacking import is_measured
from quickdrop_bench.harness.measure import mark_failed, mark_lost, measure
from quickdrop_bench.harness.session import Session
from quickdrop_bench.reporting.frame import frame_of, latest, setting_of
from quickdrop_bench.reporting.render import on_terminal, write_exhibit, write_trials
from quickdrop_bench.store.rows import RowFile
from quickdrop_bench.tracking.wandb_logger import Tracker, tracking

Cells = Sequence[tuple[Experiment, Sequence[str]]]
"""Experiments, each with the methods to run."""


def make_session(
    args: Namespace, experiment: Experiment, tracker: Tracker | None, work: Work | None = None
) -> tuple[Session, ProgressDisplay]:
    """The machine that the options name, with its progress display, which stays dark if no work is named."""

    def evaluate(federation: Federation) -> ClassAccuracy:
        return class_accuracy(federation.model, session.data.test, len(session.data.class_names))

    accuracy = RoundAccuracy(evaluate)
    display = ProgressDisplay(accuracy, work or Work({}))
    if tracker:
        tracker.accuracy = accuracy
    trackers = [tracker] if tracker else []
    fabric = make_fabric(args, [*([display] if work else []), *trackers], trackers)
    session = Session(experiment, fabric, args.artifacts_dir)
    return session, display


def produce(name: str, args: Namespace, line: CommandLine, experiments: Cells) -> int:
    """Measure what is missing of an exhibit and render it; a sweep shows its plan first, and a dry run nothing else.

    Of several processes that share the clients, all measure, and the first one does the rest.

    Returns:
        0, or 1 if a run diverged or failed.
    """
    find_rank()
    folder = _folder(args, name)
    rows = RowFile(folder / "rows.jsonl")
    devices, nodes = processes_of(args)
    if not is_first():
        _measure_all(args, experiments, folder, None)
        return 0
    refuse_links(folder, args.results_dir, "--results-dir")
    jobs, dry_run = args.jobs, args.dry_run
    if not dry_run:
        rows.check_writable()
    positive("--jobs", jobs, at_least=1, at_most=os.cpu_count() or 1)
    if jobs > 1 and devices * nodes > 1:
        raise BadInput("--jobs", jobs, "either cells or, with --devices, clients run side by side; give one of them")
    timed = dry_run or name == "sweep"
    probe = Probe(lambda: make_fabric(args, alone=True), args.artifacts_dir) if timed else None
    plans = plan(experiments, [rows, *_siblings(args, folder)], args.artifacts_dir, probe, force=args.force)
    planned = list(counted(plans, "federations planned", sum(len(e.seeds) for e, _ in experiments)))
    if timed:
        Console(stderr=not dry_run).print(_plan_table(experiments, planned, jobs))
    if dry_run:
        return 0
    with tracking(args) as tracker:
        stamp = rows.stamp
        if jobs > 1:
            all_well = _in_processes(name, args, line, experiments, jobs)
        else:
            all_well = _measure_all(args, experiments, folder, tracker, Work.of(planned))
        _render(args, RowFile(rows.path), [experiment for experiment, _ in experiments], folder)
        if tracker and (tracker.agent or rows.stamp != stamp):
            tracker.log_artefact(name, args.preset, folder)
    print(f"rows and {name.rstrip('0123456789')}: {folder}", file=sys.stderr)
    return 0 if all_well else 1


def _folder(args: Namespace, name: str) -> Path:
    folder: Path = args.results_dir / args.preset / name
    return folder


def _siblings(args: Namespace, folder: Path) -> list[RowFile]:
    """Rows of other exhibits of the preset, to be taken over unless all is to be measured again."""
    if args.force:
        return []
    return [RowFile(path) for path in sorted(folder.parent.glob("*/rows.jsonl")) if path.parent != folder]


def _measure_all(
    args: Namespace, experiments: Cells, folder: Path, tracker: Tracker | None, work: Work | None = None
) -> bool:
    """Measure in this process; whether all went well. In a sweep, the others go on where one cannot be had."""
    well = True
    for experiment, methods in experiments:
        session, display = make_session(args, experiment, tracker, work)
        with display:
            for seed in experiment.seeds:
                marked = BadInput if folder.name == "sweep" else ()
                well &= _measure_one(args, session, folder, methods, seed, marked)
    return well


def _measure_one(
    args: Namespace,
    session: Session,
    folder: Path,
    methods: Sequence[str],
    seed: int,
    marked: type[Exception] | tuple[()],
) -> bool:
    """Measure one seed; whether that went well. An error of this kind is said, and marks what the seed lacks."""
    rows, well = RowFile(folder / "rows.jsonl"), False
    try:
        well = measure(session, rows, methods, _siblings(args, folder), seeds=(seed,), force=args.force)
    except marked as error:
        _mark(session, rows, methods, seed, error)
        print(f"{_cell_name(session.experiment)}, seed {seed}: {error}", file=sys.stderr)
    if is_first() and (trials := session.trials()):
        with writing("--results-dir", folder):
            write_trials(folder / "search.csv", trials)
    return well


def _mark(session: Session, rows: RowFile, methods: Sequence[str], seed: int, error: Exception) -> None:
    """Mark what a seed lacks as failed: its federation, or the runs of methods on it."""
    if is_measured(session.experiment, [rows], ORIGINAL, seed):
        mark_lost(session, rows, methods, seed, error)
    else:
        mark_failed(session, rows, seed, error, time.monotonic())


def _in_processes(name: str, args: Namespace, line: CommandLine, experiments: Cells, jobs: int) -> bool:
    """Cells in processes of their own; one whose process dies is marked, and the others go on."""
    groups = _groups(experiments)
    threads = max(1, (os.cpu_count() or 1) // min(jobs, len(groups)))
    all_well, done, total = True, 0, sum(map(len, groups))
    calls = [(name, line, group, threads) for group in groups]
    for call, code in run_processes(_process, calls, jobs):
        outcome = {0: "done", 1: "failed or diverged"}.get(code, f"its process ended with {code}")
        for index, seed in groups[call]:
            done += 1
            experiment, methods = experiments[index]
            if code not in (0, 1):
                session = Session(experiment, make_fabric(args), args.artifacts_dir)
                rows = RowFile(_folder(args, name) / "rows.jsonl")
                _mark(session, rows, methods, seed, RuntimeError(outcome))
            print(f"{done}/{total} · {_cell_name(experiment)}, seed {seed} · {outcome}", file=sys.stderr)
        all_well &= code == 0
    return all_well


def _groups(experiments: Cells) -> list[list[tuple[int, int]]]:
    """Indices and seeds of cells; those that rest on one trained federation go to one process, one after the other."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for index, (e, _) in enumerate(experiments):
        for seed in e.seeds:
            searched_on = e.seeds[0] if e.rules.protocol == "tuned" else seed
            base = e.federation_hash(searched_on, replace(e.federation, fine_tune=0))
            groups.setdefault(base, []).append((index, seed))
    return list(groups.values())


def _process(name: str, line: CommandLine, group: Sequence[tuple[int, int]], threads: int) -> None:
    """What a process of its own does: some cells of a command line."""
    die_with_parent()
    keep_freed_memory()
    torch.set_num_threads(threads)
    args, experiments, well = line.options(name), list(cells(name, line)), True
    try:
        with tracking(args) as tracker:
            for index, seed in group:
                experiment, methods = experiments[index]
                session, _ = make_session(args, experiment, tracker)
                well &= _measure_one(args, session, _folder(args, name), methods, seed, Exception)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if well else 1)


def _cell_name(experiment: Experiment) -> str:
    identity, spec = experiment.identity(), experiment.federation
    parts = [identity["dataset"], f"{spec.clients} clients", spec.distribution, f"s = {spec.scale:g}"]
    parts += [f"F = {spec.fine_tune}"] if spec.fine_tune else []
    parts += [spec.model] if spec.model != FederationSpec.model else []
    parts += [identity["protocol"]] if identity["protocol"] != "preset" else []
    return ", ".join(parts)


def _plan_table(experiments: Cells, planned: Sequence[PlannedCell], jobs: int) -> Table:
    """What is missing, cell by cell."""
    total = sum(cell.seconds for cell in planned)
    runs = sum(len(cell.missing) for cell in planned)
    left: dict[str, Any] = {"title_justify": "left", "caption_justify": "left"}
    header = "cell", "seed", "federation", "runs to make", Column("about", justify="right")
    table = Table(*header, box=None, pad_edge=False, **left)
    for cell in planned:
        federation = "trained" if cell.trained else "to train" if cell.missing else "not needed"
        name = _cell_name(experiments[cell.experiment][0])
        table.add_row(name, str(cell.seed), federation, ", ".join(cell.missing) or "none", duration(cell.seconds))
    federations = sum(1 for cell in planned if cell.missing and not cell.trained)
    parallel = f", {jobs} at a time" if jobs > 1 else ""
    table.title = f"{runs} runs to make on {len(planned)} federations, {federations} of them to train{parallel}"
    table.caption = (
        f"about {duration(total / min(jobs, max(len(planned), 1)))} in all: local steps as just timed here × their "
        f"number; other methods count {OTHERS:.0%} of retrain-or; evaluation comes on top"
    )
    return table


def _render(args: Namespace, rows: RowFile, experiments: Sequence[Experiment], folder: Path) -> None:
    """Write and print a table or figure from the rows of its experiments and of other settings in the same file."""
    steps = [(e, step) for e in experiments for step in range(len(e.requests))]
    # A sweep shows what was asked for, and nothing beside it.
    others = _others(rows, steps) if folder.name != "sweep" else []
    own = exhibit(folder.name)
    varied = ["scale", "fine_tuning"] if own.kind == "figure" else []
    frames = [latest(frame_of(others), varied)] if others else []
    runs = [(run, e.identity(step)) for e, step in steps for run in e.spec_hashes(step)]
    asked = [row | identity for run, identity in runs for row in rows.of(run)]
    own_rows = frame_of(asked)
    frame = pd.concat([*frames, own_rows], ignore_index=True)
    with writing("--results-dir", folder):
        paths = write_exhibit(folder, own, frame)
    if own.kind != "figure" and not sys.stdout.isatty():
        print((folder / "table.md").read_text(encoding="utf-8"))
        return
    console = Console(highlight=False)
    shown = frame if own.kind == "figure" else own_rows
    console.print(*on_terminal(own, shown, folder, console.width, details=args.get("details", False)), sep="\n", end="")
    if own.kind == "figure":
        print(*paths, sep="\n")
    elif frames:
        print(f"{folder / 'table.md'} has other settings too.")


def _others(rows: RowFile, steps: Sequence[tuple[Experiment, int]]) -> list[Row]:
    """What else the file holds: other settings, and on the same seeds other hyper-parameters of the same methods."""
    own: dict[tuple[Any, ...], dict[str, set[str]]] = {}
    for e, step in steps:
        known = own.setdefault(setting_of(e.identity(step)), {})
        for method in e.methods:
            known.setdefault(method, set()).add(e.method_setting(method)["method_setting"])
    seeds = {seed for e, _ in steps for seed in e.seeds}
    found = []
    for row in rows.rows:
        settings, changed = own.get(setting_of(row)), row["seed"] in seeds and row.get("method_setting")
        if settings is None or (changed and changed not in settings.get(row["method"], {changed})):
            found.append(row)
    return found
