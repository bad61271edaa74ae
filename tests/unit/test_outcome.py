"""Whatever a method of another package gives, no wrong model and no wrong number is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from quickdrop_bench.core.cost import Cost
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.labelled import LabelledSet
from quickdrop_bench.evaluation.metric import METRICS, SERVED, STAGES, Number, metric
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.functional.aggregation import State
from quickdrop_bench.harness.outcome import checked_stages
from quickdrop_bench.harness.request import UNLEARN
from quickdrop_bench.methods import METHODS, Context
from quickdrop_bench.methods.registry import StageResult
from quickdrop_bench.serving import TrainedRun
from quickdrop_bench.store.rows import KEY
from tests.asked import asked
from tests.conftest import TINY, Run, json_lines
from tests.served import CLASS_3, CLASS_9, contents, served

ONE = Cost(rounds=1)


def each(change: Callable[[torch.Tensor], torch.Tensor], state: State) -> State:
    return {name: change(value) for name, value in state.items()}


def nan(state: State) -> StageResult:
    return StageResult(each(lambda value: value * math.nan, state), ONE)


class Outside:
    """A method whose stages are functions of the state."""

    def __init__(self, unlearn: Callable[[State], Any], recover: Callable[[State], Any] = lambda state: None) -> None:
        self.first, self.second = unlearn, recover

    def unlearn(self, context: Context) -> Any:
        return self.first(context.state)

    def recover(self, context: Context, state: State) -> Any:
        return self.second(state)


@pytest.fixture
def context(make_federation: Callable[..., Federation], toy_clients: dict[int, LabelledSet]) -> Context:
    return asked(make_federation(), toy_clients)


WRONG: dict[str, tuple[Callable[[State], Any], str]] = {
    "nothing": (lambda state: None, "no StageResult"),
    "the state alone": (lambda state: state, "no StageResult"),
    "no cost": (lambda state: StageResult(state, None), "no StageResult with a Cost"),  # type: ignore[arg-type]
    "shapes": (lambda state: StageResult(each(lambda v: v[:1], state), ONE), "weights of other names, shapes"),
    "names": (lambda state: StageResult({f"x{n}": v for n, v in state.items()}, ONE), "weights of other names"),
    "types": (
        lambda state: StageResult(each(torch.Tensor.double, state), ONE),
        "weights of other names, shapes or types",
    ),
    "fewer": (lambda state: StageResult(dict(list(state.items())[:-1]), ONE), "weights of other names"),
    "negative cost": (lambda state: StageResult(state, Cost(rounds=-1)), "a cost with rounds -1"),
    "endless cost": (lambda state: StageResult(state, Cost(seconds=math.nan)), "a cost with seconds nan"),
    "cost in words": (lambda state: StageResult(state, Cost(rounds="1")), "a cost with rounds '1'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_model_and_its_cost_is_refused(context: Context, kind: str) -> None:
    give, said = WRONG[kind]
    method: Any = Outside(give)
    with pytest.raises(BadInput, match=f"--method Outside: its unlearning gave {said}"):
        list(checked_stages(UNLEARN, context, method))
    method = Outside(lambda state: StageResult(state, ONE), give)
    if kind != "nothing":  # a method without recovery
        with pytest.raises(BadInput, match=f"--method Outside: its recovery gave {said}"):
            list(checked_stages(UNLEARN, context, method))


def test_weights_that_are_not_finite_have_diverged(context: Context) -> None:
    method: Any = Outside(nan, lambda state: pytest.fail("a stage after one that diverged"))
    ((stage, result),) = checked_stages(UNLEARN, context, method)
    assert (stage, result.diverged) == ("unlearning", True)
    assert all(torch.equal(result.state[name], value) for name, value in context.state.items())
    method = Outside(lambda state: StageResult(each(torch.zeros_like, state), ONE), nan)
    (_, (stage, result)) = checked_stages(UNLEARN, context, method)
    assert (stage, result.diverged) == ("recovery", True)
    assert not any(value.any() for value in result.state.values())


def in_place(state: State) -> StageResult:
    for value in state.values():
        value.zero_()
    return StageResult(state, ONE)


def test_a_method_that_writes_into_the_model_spoils_no_other(context: Context) -> None:
    before = {name: value.clone() for name, value in context.state.items()}
    method: Any = Outside(in_place)
    ((_, result),) = checked_stages(UNLEARN, replace(context), method)
    assert not any(value.any() for value in result.state.values())
    assert all(torch.equal(context.state[name], value) for name, value in before.items())


def test_no_such_model_becomes_a_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = served(folder, CLASS_9)
    before = contents(folder)

    def give(what: Callable[[State], Any]) -> Callable[[], Any]:
        monkeypatch.setattr(METHODS["conda"], "unlearn", lambda self, context: what(context.state))
        request = replace(CLASS_3, level="client", targets=(0,))
        return partial(run.unlearn, request, run.method("conda", "client"))

    with pytest.raises(ArithmeticError, match="conda diverged on client-0; version 1 stays the current one"):
        give(nan)()
    with pytest.raises(BadInput, match="its unlearning gave weights of other names"):
        give(WRONG["shapes"][0])()
    assert contents(folder) == before
    assert TrainedRun(folder).current == 1
    kept = {name: value.clone() for name, value in run.state().items()}
    give(in_place)()
    assert all(torch.equal(value, kept[name]) for name, value in run.state(1).items())


# What fails -------------------------------------------------------------------------------------------------


def fails(*args: object, **options: object) -> Any:
    raise TypeError("on\npurpose")


@pytest.mark.parametrize(("action", "stage"), [("unlearn", "unlearn"), ("unlearn", "recover"), ("relearn", "relearn")])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_request_that_a_method_fails_on_is_one_sentence(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, action: str, stage: str, more: list[str]
) -> None:
    served(folder, CLASS_9)
    before = contents(folder)
    monkeypatch.setattr(METHODS["quickdrop"], stage, fails)
    code, out, err = run(action, str(folder), "--class", "9" if action == "relearn" else "3", *more)
    assert (code, out) == (2, "")
    assert err == "quickdrop-bench: --method quickdrop: it failed (TypeError: on purpose).\n"
    assert contents(folder) == before


def test_a_request_that_a_metric_fails_on_is_one_sentence(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(folder, CLASS_9)
    before = contents(folder)
    items = cast("Any", METRICS)._items
    failing = metric({"weight_norm": Number("weights")}, {SERVED, *STAGES})(fails)
    for own in (failing, replace(failing, measure=lambda model, stage: {"weight_norm": "high"})):
        monkeypatch.setitem(items, "norm", own)
        for argv in (["unlearn", str(folder), "--class", "3"], ["evaluate", str(folder)]):
            code, out, err = run(*argv)
            assert (code, out) == (2, "")
            assert err.startswith("quickdrop-bench: --metric norm: it failed (TypeError: ")
            assert len(err.splitlines()) == 1
            assert contents(folder) == before


def values(path: Path) -> set[tuple[Any, ...]]:
    return {tuple(row.get(name) for name in (*KEY, "value")) for row in json_lines(path)}


def test_a_table_marks_what_a_metric_fails_on_and_keeps_its_rows(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = ["table", "2", *TINY, "--methods", "quickdrop"]
    assert run(*table)[0] == 0
    (path,) = Path("results").rglob("rows.jsonl")
    before = values(path)
    failing = metric({"weight_norm": Number("weights")}, {"fl-training"})(fails)
    monkeypatch.setitem(cast("Any", METRICS)._items, "norm", failing)
    code, _, err = run(*table)
    assert code == 1
    assert "original, seed 1, failed: on purpose" in caplog.text
    assert "Traceback" not in err
    assert before <= values(path)


def test_a_package_that_cannot_be_imported_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("mine", "no_such_module:Mine", "quickdrop_bench.methods")
    monkeypatch.setattr("quickdrop_bench.core.registry.entry_points", lambda group: [broken])
    monkeypatch.setattr(METHODS, "_loaded", False)
    code, out, err = run("methods")
    assert (code, out) == (2, "")
    assert err == (
        "quickdrop-bench: entry point quickdrop_bench.methods no_such_module:Mine: it failed (ModuleNotFoundError: "
        "No module named 'no_such_module').\n"
    )
