"""Measure: trained federations, requests, several methods → rows."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd
import torch

from quickdrop_bench.data.labelled import LabelledSet, pool
from quickdrop_bench.data.requests import forgotten_classes
from quickdrop_bench.evaluation.accuracy import ClassAccuracy, class_accuracy
from quickdrop_bench.evaluation.collapse import is_collapsed
from quickdrop_bench.evaluation.membership import membership_inference
from quickdrop_bench.federation.federation import RoundInfo
from quickdrop_bench.federation.ranks import is_shared, on_first
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.callbacks import TRAINING, Run
from quickdrop_bench.harness.experiment import ORACLE, ORIGINAL, Experiment, Row, Session
from quickdrop_bench.harness.provenance import provenance
from quickdrop_bench.harness.tuning import UNTOUCHED, Tuned
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.methods.base import StageResult
from quickdrop_bench.store.rows import RowFile

__all__ = ["is_measured", "mark_failed", "mark_lost", "measure"]

log = logging.getLogger(__name__)

CLASS_ACCURACY = re.compile(r"class_(\d+)_accuracy")

PER_ROUND = "per-round"
"""The stage of rows about a single round; their columns ``phase`` and ``round`` say which."""


def measure(
    session: Session,
    rows: RowFile,
    methods: Sequence[str],
    siblings: Sequence[RowFile] = (),
    *,
    seeds: Sequence[int] | None = None,
    force: bool = False,
) -> bool:
    """Run what is missing, seed by seed, the oracle first; rows of a finished run are on disk at once.

    Fabric's callbacks hear of every run, see :class:`~quickdrop_bench.harness.callbacks.Run`. A method or a training
    that fails leaves a mark and the others go on; it is tried again the next time. On a Fabric of several processes
    all of them call this; the first one alone reads and writes rows.

    Args:
        session: the experiment and the machine.
        rows: where rows are looked up and appended.
        methods: the methods to run, a subset of the experiment's.
        siblings: row files of other artefacts; a run that was measured for one of them is taken over.
        seeds: which of the experiment's; None for all.
        force: measure again what is there; old rows go when new ones replace them.

    Returns:
        Whether every run ended with a finite model.
    """
    e = session.experiment
    e.check(methods)
    ordered = [ORIGINAL, *sorted(methods, key=lambda name: name != ORACLE)]
    chosen = e.seeds if seeds is None else seeds

    def missing_of(seed: int) -> list[str]:
        missing = [m for m in ordered if force or not _present(e, rows, siblings, m, seed)]
        if missing:
            rows.check_writable()
        return missing

    for seed in chosen:
        missing = on_first(session.fabric, partial(missing_of, seed))
        if not missing:
            continue
        began = time.monotonic()
        try:
            context = session.prepare(seed)
        except (RuntimeError, ArithmeticError, MemoryError) as error:
            _check_shared(session, error)
            mark_failed(session, rows, seed, error, began)
            continue
        for method in missing:
            for served in _serve(session, context, method):
                _write(session, rows, served)
    runs = [(m, seed, step) for m in ordered for seed in chosen for step in range(len(e.requests))]
    return on_first(session.fabric, lambda: not any(rows.marked(e.run_spec(*run).hash) for run in runs))


def mark_failed(session: Session, rows: RowFile, seed: int, error: Exception, began: float) -> None:
    """Write that no federation of a seed could be had, and log why."""
    mark = [_failure(TRAINING, error, f"FL training, seed {seed}")]
    for step in range(len(session.experiment.requests)):
        _write(session, rows, (session.run(ORIGINAL, seed, step, kind=TRAINING), began, mark))


def mark_lost(session: Session, rows: RowFile, methods: Sequence[str], seed: int, error: Exception) -> None:
    """Write that methods' runs on a trained federation are missing, and log why; runs that are there stay."""
    for method in methods:
        for step in range(len(session.experiment.requests)):
            run = session.run(method, seed, step)
            if not rows.has(run.columns["spec_hash"]):
                mark = _failure("total", error, f"{method}, seed {seed},")
                _write(session, rows, (run, time.monotonic(), [mark]))


def _write(session: Session, rows: RowFile, served: Served) -> None:
    """Write a run's rows, in the place of what an earlier attempt left; the first process alone does."""
    if not session.fabric.is_global_zero:
        return
    run, began, values = served
    base = {
        **run.columns,
        "wall_seconds": round(time.monotonic() - began, 3),
        **provenance(session.fabric, session.experiment.preset),
    }
    new = [{**base, **value.columns(), **_class_name(session.experiment, value.metric)} for value in values]
    rows.write(new)
    session.fabric.call("on_run_end", run=run, rows=new, oracle=_oracle(session.experiment, rows, run))


def _class_name(e: Experiment, metric: str) -> Row:
    """Whose accuracy a metric is, if it is a class's."""
    found = CLASS_ACCURACY.fullmatch(metric)
    return {"class_name": e.class_names[int(found[1])]} if found else {}


def _oracle(e: Experiment, rows: RowFile, run: Run) -> list[Row]:
    if ORACLE not in e.methods:
        return []
    spec_hash = e.run_spec(ORACLE, run.seed, run.step).hash
    return [row for row in rows.rows if row["spec_hash"] == spec_hash]


def _failure(stage: str, error: Exception, what: str) -> Value:
    """The mark of a run that ended in an error, which is logged."""
    log.warning("%s failed: %s", what, " ".join(str(error).split()) or type(error).__name__)
    log.debug("where it failed", exc_info=error)
    return Value(stage, "failed", 1.0, {"error": type(error).__name__})


def is_measured(e: Experiment, files: Iterable[RowFile], method: str, seed: int) -> bool:
    """Whether the rows of a run are in one of the files."""
    known = list(files)
    hashes = (e.run_spec(method, seed, step).hash for step in range(len(e.requests)))
    return all(any(file.has(spec_hash) for file in known) for spec_hash in hashes)


def _present(e: Experiment, rows: RowFile, siblings: Sequence[RowFile], method: str, seed: int) -> bool:
    """Whether the rows of a run are there, if need be by taking them over from another artefact."""
    if not is_measured(e, [rows, *siblings], method, seed):
        return False
    for step in range(len(e.requests)):
        spec_hash = e.run_spec(method, seed, step).hash
        if not rows.has(spec_hash):
            known = next(other for other in siblings if other.has(spec_hash))
            own = {**e.identity(step), **e.method_setting(method)}
            rows.write({**row, **own} for row in known.rows if row["spec_hash"] == spec_hash)
    return True


@dataclass(frozen=True)
class Value:
    """One measured value.

    Attributes:
        stage, metric, value: as in rows.
        extra: other columns that differ from the run's.
    """

    stage: str
    metric: str
    value: float
    extra: Mapping[str, Any] = field(default_factory=dict)

    def columns(self) -> Row:
        """Ready for a row; JSON knows no NaN."""
        value = self.value if isinstance(self.value, int | float) and math.isfinite(self.value) else None
        return {"stage": self.stage, "metric": self.metric, "value": value, **self.extra}


Served = tuple[Run, float, list[Value]]
"""A run, when it began (monotonic seconds), and what was measured."""


def _serve(session: Session, context: Context, name: str) -> Iterator[Served]:
    """The requests one after the other; a failure ends the sequence."""
    for step, request in enumerate(session.experiment.requests):
        if step:
            context = context.then(context.state, request)
        began = time.monotonic()
        run = session.run(name, context.seed, step)
        if name == ORIGINAL:
            session.fabric.call("on_run_start", run=run)
            began = time.monotonic()
            yield run, began, list(_original(session, run, context))
            continue
        try:
            session.fabric.call("on_search_start", run=run)
            method = session.configured(name)  # with the tuned protocol, this searches
            run = run.using(asdict(method))  # type: ignore[call-overload]
            session.fabric.call("on_run_start", run=run)
            began = time.monotonic()  # neither the search nor starting a W&B run counts
            values, state = _run(session, run, context, method)
        except Exception as error:  # whatever goes wrong in one method, also in a plug-in, leaves the others alone
            _check_shared(session, error)
            yield run, began, [_failure("total", error, f"{name}, seed {context.seed},")]
            return
        yield run, began, values
        context = replace(context, state=state)


def _check_shared(session: Session, error: Exception) -> None:
    """Raise what one of several processes has met alone: the others are elsewhere, and none can go on."""
    if session.fabric.world_size > 1 and not is_shared(error):
        raise error


def _run(session: Session, run: Run, context: Context, method: Method) -> tuple[list[Value], State]:
    """The stages of a method, evaluated after each; and the unlearned state, which the next request meets."""
    values: list[Value] = []
    if session.experiment.rules.protocol == "tuned":
        values += _search_values(session.tuned(run.method))

    def during(stage: str) -> Context:
        if not session.experiment.rules.each_round:
            return context
        return replace(context, on_round=lambda info: values.extend(_round(session, stage, info)))

    unlearned = method.unlearn(during("unlearning"))
    values += _stage(session, run, context, "unlearning", unlearned)
    total, last = unlearned.cost, unlearned
    recovered = None if unlearned.diverged else method.recover(during("recovery"), unlearned.state)
    if recovered is not None:
        values += _stage(session, run, context, "recovery", recovered)
        total, last = total + recovered.cost, recovered
    diverged = last.diverged
    if session.experiment.relearns(run.method) and not diverged:
        relearned = method.relearn(context, last.state)
        values += _stage(session, run, context, "relearning", relearned)
        diverged = relearned.diverged
    stored = method.storage(context).metrics()
    values += [Value("total", metric, value) for metric, value in stored.items()]
    values += _membership(session, context, "total", last.state)
    values += _stage(session, run, context, "total", replace(last, cost=total, diverged=diverged))
    return values, last.state


def _round(session: Session, stage: str, info: RoundInfo) -> Iterable[Value]:
    """Accuracy by class after one round; the model that trains next loads its own state."""
    session.federation.load(info.state)
    classes = len(session.data.class_names)
    found = class_accuracy(session.federation.model, session.data.test, classes).metrics()
    return [Value(PER_ROUND, name, value, {"phase": stage, "round": info.round + 1}) for name, value in found.items()]


def _search_values(tuned: Tuned) -> Iterable[Value]:
    """What the search cost and chose, and how many settings it tried, not to count the trial that does nothing."""
    cost = {name: value for name, value in tuned.cost.metrics().items() if name not in ("rounds", "data_size")}
    tried = sum(trial["stage"] != UNTOUCHED for trial in tuned.trials)
    return [Value("search", metric, value) for metric, value in {**cost, "tried": tried, **tuned.chosen}.items()]


def _original(session: Session, run: Run, context: Context) -> Iterator[Value]:
    """The trained model before the request, and what its training cost."""
    trained, spec = session.trained(context.seed), session.experiment.federation
    cost, device = trained.cost, {"device": trained.device}
    images = session.data.train.images[0].numel()
    yield Value("fl-training", "data_bytes", images * sum(len(c.original) for c in context.clients.values()))
    computed = trained.history.filter(["participants", "late", "rejected"]).to_numpy().sum()
    gradients = {
        "fl-training": spec.local_steps * int(computed),
        "fine-tuning": trained.fine_tuning_gradients,
    }
    for stage, count in gradients.items():
        yield Value(stage, "original_gradients", count / spec.clients)
    if spec.fine_tune:
        for metric, value in trained.fine_tuning.metrics().items():
            yield Value("fine-tuning", metric, value, device)
    if spec.distill:
        share = 100 * cost.distillation_seconds / cost.seconds
        # Distillation is a cost of QuickDrop alone, so Table 6 has it under that name.
        for metric, value in (
            ("total_seconds", cost.seconds),
            ("distillation_seconds", cost.distillation_seconds),
            ("overhead_percent", share),
            *([("shared_cores", float(cost.shared_cores))] if cost.cpu_seconds else []),
        ):
            yield Value("fl-training", metric, value, {"method": "quickdrop", **device})
    if session.experiment.rules.each_round and len(context.forgotten) == 1:
        yield from _last_rounds(trained.history)  # once for a sequence of requests
    yield from _membership(session, context, "fl-training", context.state)
    for evaluated in _stage(session, run, context, "fl-training", StageResult(context.state, cost)):
        yield replace(evaluated, extra=device)


def _last_rounds(history: pd.DataFrame) -> Iterator[Value]:
    """Accuracy by class after the training's last rounds."""
    names = [name for name in history.columns if name.startswith("class_")]
    for _, line in history.dropna(subset=names, how="all").iterrows():
        for name in names:
            yield Value(PER_ROUND, name, line[name], {"phase": "fl-training", "round": int(line["round"])})


def _membership(session: Session, context: Context, stage: str, state: State) -> Iterator[Value]:
    """How often two attacks call forgotten and retained training images members (§4.2.3)."""
    session.federation.load(state)
    forget, retain = (pool(*parts.values()) for parts in (context.forget_data(), context.retain_data()))
    found = membership_inference(session.federation.model, forget, retain, session.data.test, context.seed)
    for feature, rates in found.items():
        suffix = "" if feature == "entropy" else f"_{feature}"
        yield Value(stage, f"f_set_mia{suffix}", rates.forget)
        yield Value(stage, f"r_set_mia{suffix}", rates.retain)
        yield Value(stage, f"f_set_false_positive_mia{suffix}", rates.forget_false_positive)
        yield Value(stage, f"r_set_false_positive_mia{suffix}", rates.retain_false_positive)
        yield Value(stage, f"f_set_advantage_mia{suffix}", rates.forget_advantage)
        yield Value(stage, f"r_set_advantage_mia{suffix}", rates.retain_advantage)


def _stage(session: Session, run: Run, context: Context, stage: str, result: StageResult) -> Iterator[Value]:
    federation, classes = session.federation, len(session.data.class_names)
    federation.load(result.state)
    on_test = class_accuracy(federation.model, session.data.test, classes)
    original = session.trained(context.seed).state
    collapsed = is_collapsed(on_test, forgotten_classes(context.forgotten), result.state, original)
    metrics = result.cost.metrics() | _accuracies(session, context, on_test)
    if stage != "total":
        session.fabric.call("on_stage_end", run=run, stage=stage, values=metrics, accuracy=on_test)
        metrics |= on_test.metrics() if context.request.level == "class" else {}
    for metric, value in metrics.items():
        yield Value(stage, metric, value)
    yield Value(stage, "collapsed", float(collapsed))
    yield Value(stage, "diverged", float(result.diverged))  # last: rows.LAST


def _accuracies(session: Session, context: Context, on_test: ClassAccuracy) -> dict[str, float]:
    """F-Set and R-Set accuracy of the model that the federation holds.

    Class requests: the test images of the class, and of all classes that are not forgotten (paper §4.1). Client
    requests: the clients' own training images, as no test data belong to a client, and the whole test set; beside
    them the other clients' training images.
    """
    model, classes = session.federation.model, len(session.data.class_names)
    metrics = {"r_set_accuracy": on_test.without(forgotten_classes(context.forgotten))}
    if context.request.level == "class":
        metrics["f_set_accuracy"] = on_test.over(context.request.targets)
    else:
        own, others = (_pooled(context, of_targets=which) for which in (True, False))
        metrics["f_set_accuracy"] = class_accuracy(model, own, classes).without(())
        metrics["others_training_accuracy"] = class_accuracy(model, others, classes).without(())
    return metrics


def _pooled(context: Context, *, of_targets: bool) -> LabelledSet:
    """Training images of the clients that are, or are not, to be forgotten."""
    nothing = torch.empty(0, dtype=torch.int64)
    chosen = (
        c.original if (i in context.request.targets) == of_targets else c.original.subset(nothing)
        for i, c in context.clients.items()
    )
    return pool(*chosen)
