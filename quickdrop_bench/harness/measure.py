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

from quickdrop_bench.core.errors import printable
from quickdrop_bench.evaluation.metric import METRICS, PER_ROUND, Evaluated, measured
from quickdrop_bench.federation.federation import RoundInfo
from quickdrop_bench.federation.ranks import is_shared, on_first, spread
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.callbacks import TRAINING, RequestInfo
from quickdrop_bench.harness.experiment import ORACLE, ORIGINAL, Experiment, Row
from quickdrop_bench.harness.lacking import Missing, completed, identities, missing_of, take_over
from quickdrop_bench.harness.outcome import checked_stages
from quickdrop_bench.harness.provenance import provenance
from quickdrop_bench.harness.request import UNLEARN, total_cost
from quickdrop_bench.harness.session import Session
from quickdrop_bench.harness.tuning import UNTOUCHED, Tuned
from quickdrop_bench.methods import Context, Method
from quickdrop_bench.methods.registry import StageResult
from quickdrop_bench.store.rows import RowFile

log = logging.getLogger(__name__)

LONGEST_REASON = 300
"""Characters of what an error says that are printed."""

CLASS_ACCURACY = re.compile(r"class_(\d+)_accuracy")


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

    A finished run that lacks a metric, or has it from other code, is served again, and that metric alone is measured:
    its other rows stay. The oracle's model is kept for metrics that compare with it, and trained again if it is gone.
    Fabric's callbacks hear of every run, see :class:`~quickdrop_bench.harness.callbacks.RequestInfo`. A method or a
    training that fails leaves a mark and the others go on; it is tried again the next time. On a Fabric of several
    processes all of them call this; the first one alone reads and writes rows.

    Args:
        session: the experiment and the machine.
        rows: where rows are looked up and appended.
        methods: the methods to run, a subset of the experiment's.
        siblings: row files of other exhibits; a run that was measured for one of them is taken over.
        seeds: which of the experiment's; None for all.
        force: measure again what is there; old rows go when new ones replace them.

    Returns:
        Whether every run ended with a finite model.
    """
    e = session.experiment
    e.check(methods)
    ordered = [ORIGINAL, *sorted(methods, key=lambda name: name != ORACLE)]
    chosen = e.seeds if seeds is None else seeds
    well = True
    for seed in chosen:
        missing = on_first(session.fabric, partial(_to_do, session, rows, siblings, ordered, seed, force=force))
        well &= not missing or _measure_seed(session, rows, seed, missing)
    runs = [(m, seed, step) for m in ordered for seed in chosen for step in range(len(e.requests))]
    return on_first(session.fabric, lambda: well and not any(rows.marked(e.run_spec(*run).hash) for run in runs))


def _to_do(
    session: Session, rows: RowFile, siblings: Sequence[RowFile], methods: Sequence[str], seed: int, *, force: bool
) -> dict[str, list[Missing]]:
    """What methods' rows lack, request by request, once those of other exhibits are taken over."""
    e, found = session.experiment, dict[str, list[Missing]]()
    for method in methods:
        if not force:
            take_over(e, rows, siblings, method, seed)
        steps = missing_of(e, [] if force else [rows], method, seed)
        if None in steps:  # a sequence is measured as a whole
            found[method] = [None] * len(steps)
        elif any(steps):
            found[method] = steps
    if found:
        rows.check_writable()
    if {*found} - {ORIGINAL} and ORACLE in {*methods} - {*found} and not session.has_oracle(seed):
        return {ORACLE: [()] * len(e.requests), **found}  # its rows are there, its model is not
    return found


def _measure_seed(session: Session, rows: RowFile, seed: int, missing: Mapping[str, list[Missing]]) -> bool:
    """Serve the requests on a seed's federation, method by method; whether none failed."""
    began, well = time.monotonic(), True
    try:
        context = session.prepare(seed)
        if ORACLE not in missing:
            session.check_oracle(seed)
    except (RuntimeError, ArithmeticError, MemoryError) as error:
        _check_shared(session, error)
        mark_failed(session, rows, seed, error, began)
        return False
    for method, lacking in missing.items():
        for served in _serve(session, context, method, lacking):
            well &= not served.failed
            _write(session, rows, served, lacking[served.info.step])
    return well


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


@dataclass(frozen=True)
class Served:
    """What was measured of a request, since ``began`` (monotonic seconds)."""

    info: RequestInfo
    began: float
    values: Sequence[Value]

    @property
    def failed(self) -> bool:
        """Whether it ended without a model."""
        return any(value.metric == "failed" for value in self.values)


def mark_failed(session: Session, rows: RowFile, seed: int, error: Exception, began: float) -> None:
    """Write that no federation of a seed could be had, and log why."""
    mark = [_failure(TRAINING, error, f"FL training, seed {seed}")]
    for step in range(len(session.experiment.requests)):
        _write(session, rows, Served(session.info(ORIGINAL, seed, step, kind=TRAINING), began, mark))


def mark_lost(session: Session, rows: RowFile, methods: Sequence[str], seed: int, error: Exception) -> None:
    """Write that methods' runs on a trained federation are missing, and log why; runs that are there stay."""
    for method in methods:
        for step in range(len(session.experiment.requests)):
            info = session.info(method, seed, step)
            if rows.measured_by(info.columns["spec_hash"]) is None:
                mark = _failure("total", error, f"{method}, seed {seed},")
                _write(session, rows, Served(info, time.monotonic(), [mark]))


def _write(session: Session, rows: RowFile, served: Served, missing: Missing = None) -> None:
    """Write a run's rows, in the place of what an earlier attempt left; the first process alone does.

    Of a finished run the missing metrics are written alone, and a failure does not take the place of its rows.
    """
    if not session.fabric.is_global_zero:
        return
    info, spec_hash = served.info, served.info.columns["spec_hash"]
    base = {
        **info.columns,
        "wall_seconds": round(time.monotonic() - served.began, 3),
        **provenance(session.fabric, session.experiment.preset),
    }
    new = [{**base, **value.columns(), **_class_name(session.experiment, value.metric)} for value in served.values]
    if served.failed and rows.measured_by(spec_hash) is not None and not rows.marked(spec_hash):
        log.warning("%s, seed %s, was measured before; those rows stay", info.method, info.seed)
    elif missing is None:
        rows.write(new)
    elif missing:
        rows.write(completed(session.experiment, rows.of(spec_hash), new, missing))
    e = session.experiment
    oracle = rows.of(e.run_spec(ORACLE, info.seed, info.step).hash) if ORACLE in e.methods else ()
    session.fabric.call("on_run_end", run=info, rows=new, oracle=oracle)


def _class_name(e: Experiment, metric: str) -> Row:
    """Whose accuracy a metric is, if it is a class's."""
    found = CLASS_ACCURACY.fullmatch(metric)
    return {"class_name": e.class_names[int(found[1])]} if found else {}


def _failure(stage: str, error: BaseException, what: str) -> Value:
    """The mark of a run that ended in an error, which is logged."""
    said = printable(" ".join(str(error).split()))[:LONGEST_REASON]
    log.warning("%s failed: %s", what, said if isinstance(error, Exception) and said else type(error).__name__)
    log.debug("where it failed", exc_info=error)
    return Value(stage, "failed", 1.0, {"error": type(error).__name__})


def _serve(session: Session, context: Context, name: str, missing: Sequence[Missing]) -> Iterator[Served]:
    """The requests one after the other; a failure ends the sequence. Only what is missing of metrics is measured."""
    for step, request in enumerate(session.requests(context.seed)):
        if step:
            context = context.then(context.state, request)
        began = time.monotonic()
        info = session.info(name, context.seed, step)
        try:
            if name != ORIGINAL:
                session.fabric.call("on_search_start", run=info)
                method = session.configured(name)  # with the tuned protocol, this searches
                info = info.using(asdict(method))  # type: ignore[call-overload]
            session.fabric.call("on_run_start", run=info)
            began = time.monotonic()  # neither the search nor starting a W&B run counts
            if name == ORIGINAL:
                values, state = list(_original(session, info, context, missing[step])), context.state
            else:
                values, state = _run(session, info, context, method, missing[step])
        except (Exception, SystemExit) as error:  # whatever a method does, a plug-in's too, leaves the others alone
            _check_shared(session, error)
            stage = TRAINING if name == ORIGINAL else "total"
            yield Served(info, began, [_failure(stage, error, f"{name}, seed {context.seed},")])
            return
        yield Served(info, began, values)
        context = replace(context, state=state)


def _check_shared(session: Session, error: BaseException) -> None:
    """Raise what one of several processes has met alone: the others are elsewhere, and none can go on."""
    if session.fabric.world_size > 1 and not is_shared(error):
        raise error


def _run(
    session: Session, info: RequestInfo, context: Context, method: Method, missing: Missing
) -> tuple[list[Value], State]:
    """The stages of a method, evaluated after each; and the unlearned state, which the next request meets."""
    values: list[Value] = []
    rules = session.experiment.rules
    if rules.protocol == "tuned":
        values += _search_values(session.tuned(info.method))

    def on_round(stage: str, found: RoundInfo) -> None:
        model = _judged(session, context, found.state)
        values.extend(_numbers(session, model, PER_ROUND, missing, phase=stage, round=found.round + 1))

    results: dict[str, StageResult] = {}
    served = checked_stages(
        UNLEARN,
        context,
        method,
        relearn=session.experiment.relearns(info.method),
        on_round=on_round if rules.each_round else None,
    )
    for stage, result in served:
        values += _stage(session, info, context, stage, result, missing)
        results[stage] = result
    diverged = any(result.diverged for result in results.values())
    results.pop("relearning", None)  # which is no part of the request
    last = list(results.values())[-1]
    if info.method == ORACLE:
        session.keep_oracle(info.seed, info.step, last.state)
    values += [Value("total", metric, value) for metric, value in method.storage(context).metrics().items()]
    total = replace(last, cost=total_cost(results.values()), diverged=diverged)
    return [*values, *_stage(session, info, context, "total", total, missing)], last.state


def _search_values(tuned: Tuned) -> Iterable[Value]:
    """What the search cost and chose, and how many settings it tried, not to count the trial that does nothing."""
    cost = {name: value for name, value in tuned.cost.metrics().items() if name not in ("rounds", "data_size")}
    tried = sum(trial["stage"] != UNTOUCHED for trial in tuned.trials)
    return [Value("search", metric, value) for metric, value in {**cost, "tried": tried, **tuned.chosen}.items()]


def _original(session: Session, info: RequestInfo, context: Context, missing: Missing) -> Iterator[Value]:
    """The trained model before the request, and what its training cost."""
    trained, spec = session.deployment(context.seed).trained, session.experiment.federation
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
    for found in _stage(session, info, context, "fl-training", StageResult(context.state, cost), missing):
        yield replace(found, extra={**found.extra, **device})


def _last_rounds(history: pd.DataFrame) -> Iterator[Value]:
    """Accuracy by class after the training's last rounds."""
    names = [name for name in history.columns if name.startswith("class_")]
    for _, line in history.dropna(subset=names, how="all").iterrows():
        for name in names:
            yield Value(PER_ROUND, name, line[name], {"phase": "fl-training", "round": int(line["round"])})


def _stage(
    session: Session, info: RequestInfo, context: Context, stage: str, result: StageResult, missing: Missing
) -> list[Value]:
    """What a stage cost, and what metrics say of its model."""
    model, costs = _judged(session, context, result.state), result.cost.metrics()
    if stage == "total":
        model = replace(model, oracle=session.oracle(info.seed, info.step), training=context.training)
    numbers = _numbers(session, model, stage, missing)
    if stage != "total":
        shown = {v.metric: v.value for v in numbers if not CLASS_ACCURACY.fullmatch(v.metric)}
        told = {"stage": stage, "values": costs | shown, "accuracy": model.on_test}
        session.fabric.call("on_stage_end", run=info, **told)
    whole = {"measured_by": " ".join(identities(session.experiment).values())}
    spent = [Value(stage, metric, value) for metric, value in costs.items()]
    return [*spent, *numbers, Value(stage, "diverged", float(result.diverged), whole)]  # last: see rows.LAST


def _judged(session: Session, context: Context, state: State) -> Evaluated:
    """A model of a request; the one that trains next loads its own state."""
    return session.deployment(context.seed).judged(state, (context.request,), context.forgotten)


def _numbers(session: Session, model: Evaluated, stage: str, missing: Missing, **extra: Any) -> list[Value]:
    """What the metrics of a stage say of a model; of several processes each measures its share."""
    now = identities(session.experiment)
    chosen = [name for name in METRICS if name in now and (missing is None or name in missing)]
    work = {k: len(METRICS[name].gives) for k, name in enumerate(chosen) if stage in METRICS[name].stages}
    found = spread(session.fabric, ("metrics", stage), work, lambda k: measured(model, stage, [chosen[k]]))
    return [
        Value(stage, metric, value, {"measured_by": now[name], **extra})
        for numbers in found.values()
        for name, own in numbers.items()
        for metric, value in own.items()
    ]
