"""Train federations, and look at what they train on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Column, Table

from quickdrop_bench.cli.progress import ProgressDisplay, Work
from quickdrop_bench.cli.resolve import arithmetic, federation_spec, seeds_of
from quickdrop_bench.cli.runner import make_session
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import refuse_links, writing
from quickdrop_bench.data.datasets import dataset_label, load_dataset
from quickdrop_bench.data.partition import class_counts
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.federation.ranks import find_rank, is_first
from quickdrop_bench.harness.estimate import plan
from quickdrop_bench.harness.experiment import Experiment
from quickdrop_bench.harness.holdings import class_holdings, synthetic_pairs
from quickdrop_bench.harness.run_spec import Rules
from quickdrop_bench.harness.session import Session
from quickdrop_bench.harness.training import client_rows, planted
from quickdrop_bench.reporting.figures.partition import write_distribution
from quickdrop_bench.reporting.figures.synthetic import write_sheet
from quickdrop_bench.store.artifacts import is_complete
from quickdrop_bench.store.find import ask_for
from quickdrop_bench.tracking.wandb_logger import tracking

MOST_COLUMNS = 20
"""Classes of a partition that is printed; its CSV file has all."""


def train(args: Namespace) -> int:
    """Train federations and save their artifacts."""
    experiment = _without_methods("train", args, arithmetic(args))
    find_rank()
    if args.resume:
        _check_begun(experiment, args.artifacts_dir)
    if not is_first():
        session, _ = make_session(args, experiment, None)
        for seed in experiment.seeds:
            session.prepare(seed)
        return 0
    work = Work.of(plan([(experiment, ())], [], args.artifacts_dir, None))
    with tracking(args) as tracker:
        _train(*make_session(args, experiment, tracker, work))
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
        folder = session.folder(seed)
        known = is_complete(folder)
        # What the training would refuse makes no federation the latest.
        parts = client_rows(experiment.federation, session.data.train.labels, seed)
        planted(experiment.federation, session.data, parts, seed)
        ask_for(folder)
        with display:
            context = session.prepare(seed)
        refuse_links(folder, session.artifacts_dir, "--artifacts-dir")
        counts = class_holdings(session.held(seed), context.clients)
        with writing("--artifacts-dir", session.artifacts_dir):
            write_distribution(folder, counts, session.data.class_names, _title(experiment, seed))
            if experiment.federation.distill:
                write_sheet(folder, *synthetic_pairs(session.held(seed), context.clients), _title(experiment, seed))
        session.federation.load(context.state)
        found = class_accuracy(session.federation.model, session.data.test, len(session.data.class_names))
        cost = session.deployment(seed).trained.cost
        share = cost.distillation_seconds / cost.seconds
        spent = f"{'trained before, in ' * known}{cost.seconds:.1f} s, {share:.0%} of it distillation"
        print(f"{folder}  accuracy {found.without(()):.4f}  {spent}")


def distribution(args: Namespace) -> int:
    """Show a partition without training: CSV and picture of the classes per client."""
    spec = federation_spec(args)
    data = load_dataset(spec.dataset, args.data_dir, spec.image_size)
    spec.check_images(len(data.train))
    experiment = _without_methods("distribution", args, "")
    for seed in experiment.seeds:
        rows = client_rows(spec, data.train.labels, seed)
        counts = class_counts(data.train.labels.numpy(), rows, len(data.class_names))
        label = dataset_label(spec.dataset, args.data_dir).replace(":", "-")
        name = f"{label}-{spec.distribution}-{spec.clients}-seed{seed}"
        folder = args.results_dir / args.preset / "distribution" / name
        refuse_links(folder, args.results_dir, "--results-dir")
        with writing("--results-dir", args.results_dir):
            paths = write_distribution(folder, counts, data.class_names, _title(experiment, seed))
        _print_counts(counts, data.class_names)
        print("\n".join(str(path) for path in paths))
    return 0


def _print_counts(counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Images by client and class, where so many columns can be read."""
    if len(class_names) > MOST_COLUMNS:
        return
    table = Table(
        "client", *(Column(name, justify="right") for name in (*class_names, "all")), box=None, pad_edge=False
    )
    for client, line in enumerate(counts):
        table.add_row(str(client), *map(str, line), str(line.sum()))
    Console(highlight=False).print(table)


def _without_methods(name: str, args: Namespace, precision: str) -> Experiment:
    """For commands that serve no request; what they do does not depend on the one given here."""
    requests = (UnlearningRequest("class", (0,)),)
    seeds = seeds_of(args)
    return Experiment(name, args.preset, federation_spec(args), requests, {}, seeds, args.data_dir, precision, Rules())


def _title(experiment: Experiment, seed: int) -> str:
    identity = experiment.identity()
    return f"{identity['dataset']}, {identity['clients']} clients, {identity['distribution']}, seed {seed}"
