"""How many local steps ascent and recovery need, measured on the clients' training data (DEVIATIONS.md, 13 and 14).

``python benchmarks/local_steps.py --preset quick --seeds 11,12,13`` takes the options of ``table 2``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product

import pandas as pd
import torch

from quickdrop_bench.allocator import keep_freed_memory
from quickdrop_bench.cli import make_session, parse
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.evaluation.accuracy import class_accuracy
from quickdrop_bench.files import write_text
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.run import Experiment, Session
from quickdrop_bench.methods import Context
from quickdrop_bench.methods.quickdrop import QuickDrop
from quickdrop_bench.methods.sga import Sga
from quickdrop_bench.options import federation_spec, request_of, seeds_of
from quickdrop_bench.seeding import generator

ASCENTS = ((10, 6.0), (2, None), (10, None))
"""Most local steps, and the loss at which a client stops."""
RECOVERIES = (1, 2, 5, 10)
IMAGES = 10_000
"""Training images, drawn at random, on which a setting is judged."""


def accuracies(session: Session, context: Context, state: State) -> tuple[float, float]:
    """Forget and retain accuracy on training images."""
    train = session.data.train
    chosen = torch.randperm(len(train), generator=generator(context.seed, "local-steps"))[:IMAGES]
    session.federation.load(state)
    sample: LabelledSet = train.subset(chosen)
    result = class_accuracy(session.federation.model, sample, len(session.data.class_names))
    return result.over(context.request.targets), result.without(context.request.targets)


def measure(session: Session, seed: int) -> list[dict[str, object]]:
    """Every combination on one trained federation."""
    context = session.context(seed)
    lines: list[dict[str, object]] = []
    for method, (ascent_steps, stop_loss) in product((QuickDrop, Sga), ASCENTS):
        first = method(unlearn_rounds=1, unlearn_local_steps=ascent_steps, unlearn_stop_loss=stop_loss, recover_lr=0.05)
        unlearned = first.unlearn(context)
        forget, retain = accuracies(session, context, unlearned.state)
        for steps in RECOVERIES:
            recovered = replace(first, recover_local_steps=steps).recover(context, unlearned.state)
            assert recovered is not None
            after = accuracies(session, context, recovered.state)
            lines.append(
                {
                    "method": method.__name__,
                    "unlearn_local_steps": ascent_steps,
                    "unlearn_stop_loss": stop_loss,
                    "recover_local_steps": steps,
                    "seed": seed,
                    "forget_unlearned": forget,
                    "retain_unlearned": retain,
                    "forget_recovered": after[0],
                    "retain_recovered": after[1],
                    "sample_gradients": (unlearned.cost + recovered.cost).sample_gradients,
                }
            )
    return lines


def main() -> None:
    """Measure and print."""
    keep_freed_memory()
    args = parse(["table", "2", *sys.argv[1:]])["table"]
    experiment = Experiment(
        "local_steps",
        args.preset,
        federation_spec(args),
        request_of(args),
        {},
        seeds_of(args),
        args.data_dir,
        args.precision,
    )
    session, display = make_session(args, experiment)
    with display:
        lines = [line for seed in experiment.seeds for line in measure(session, seed)]
    keys = ["method", "unlearn_local_steps", "unlearn_stop_loss", "recover_local_steps"]
    table = pd.DataFrame(lines).drop(columns="seed").groupby(keys, dropna=False, sort=False).mean().round(4)
    label = str(experiment.identity()["dataset"]).replace(":", "-")
    write_text(args.results_dir / args.preset / "local_steps" / f"{label}.csv", table.to_csv())
    print(table.to_string())


if __name__ == "__main__":
    main()
