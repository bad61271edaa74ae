"""What a request would cost, before it is served."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from quickdrop_bench.methods import METHODS
from quickdrop_bench.serving import TrainedRun
from quickdrop_bench.serving.plan import PlannedPhase
from tests.conftest import Run
from tests.served import (
    CASES,
    CLASS_3,
    CLASS_9,
    CLIENT_0,
    NAME,
    REQUESTS,
    contents,
    watched,
)


def assert_at_least(phases: Sequence[PlannedPhase], total: Mapping[str, float]) -> None:
    for metric in ("rounds", "data_size", "sample_gradients", "upload_bytes"):
        assert sum(getattr(phase.cost, metric) for phase in phases) >= total[metric], metric


@pytest.mark.parametrize(("name", "level"), CASES)
def test_a_plan_names_who_takes_part_and_is_no_less_than_the_cost(folder: Path, name: str, level: str) -> None:
    run, participants = watched(folder)
    method, request = run.method(name, level), REQUESTS[level]
    for action in ("unlearn", "relearn") if method.can_relearn else ("unlearn",):
        before = contents(folder)
        ((_, phases),) = run.plan(action, [(request, method)])
        assert contents(folder) == before
        participants.clear()
        total = getattr(run, action)(request, method).cost["total"]
        assert {phase.name: set(phase.participants) for phase in phases if phase.local_steps} == participants
        assert_at_least(phases, total)
        assert total["seconds"] > 0


def test_a_plan_of_several_requests_follows_them(folder: Path) -> None:
    run, participants = watched(folder)
    pairs = [(request, run.method(level=request.level)) for request in (CLASS_9, CLIENT_0, CLASS_3)]
    before = contents(folder)
    planned = run.plan("unlearn", pairs, absent=(1,))
    assert contents(folder) == before
    assert [request for request, _ in planned] == [CLASS_9, CLIENT_0, CLASS_3]
    for (request, method), (_, phases) in zip(pairs, planned, strict=True):
        participants.clear()
        entry = run.unlearn(request, method, absent=(1,))
        assert {phase.name: set(phase.participants) for phase in phases} == participants
        assert_at_least(phases, entry.cost["total"])


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_plan_is_an_upper_bound_where_few_clients_take_part(folder: Path, share: float) -> None:
    run = TrainedRun(folder)
    method = METHODS["quickdrop"](recover_participation=share, recover_local_epochs=1)
    ((_, phases),) = run.plan("unlearn", [(CLASS_3, method)])
    spent = run.unlearn(CLASS_3, method).cost["recovery"]["sample_gradients"]
    assert phases[-1].cost.sample_gradients >= spent


def test_a_dry_run_prints_the_plan_and_changes_nothing(folder: Path, run: Run) -> None:
    before = contents(folder)
    code, out, _ = run("unlearn", NAME, "--class", "9,3", "--client", "0", "--dry-run", "--json")
    lines = list(map(json.loads, out.splitlines()))
    assert code == 0
    assert [(line["request"], line["name"]) for line in lines] == [
        (request, stage) for request in ("class-9", "class-3", "client-0") for stage in ("unlearning", "recovery")
    ]
    assert lines[4]["participants"] == [0]
    code, out, _ = run("unlearn", NAME, "--class", "9", "--dry-run")
    assert code == 0
    assert "0, 1, 2" in out
    assert "Nothing was changed." in " ".join(out.split())
    assert "client-0 on the server alone" in " ".join(
        run("unlearn", NAME, "--client", "0", "--method", "conda", "--dry-run")[1].split()
    )
    assert contents(folder) == before
