"""Requests that cannot be served, and clients that cannot take part."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.methods import METHODS
from quickdrop_bench.methods.stages import Relearning
from quickdrop_bench.serving import TrainedRun
from tests.conftest import Run
from tests.served import (
    CLASS_3,
    CLASS_9,
    CLIENT_0,
    CONTROLS,
    NAME,
    REQUESTS,
    contents,
    refused,
    served,
    watched,
    without_data,
)

NINE_AND_THREE, NO_CLASS = UnlearningRequest("class", (9, 3)), UnlearningRequest("class", ())
Requests, Absent = tuple[UnlearningRequest, ...], tuple[int, ...]
REFUSED: dict[str, tuple[Requests, str, UnlearningRequest, str, Absent, str]] = {
    "a class twice": ((CLASS_9,), "unlearn", CLASS_9, "quickdrop", (), "--class 9: this is forgotten already"),
    "a client twice": ((CLIENT_0,), "unlearn", CLIENT_0, "quickdrop", (), "--client 0: this is forgotten already"),
    "as a part": ((CLASS_9,), "unlearn", NINE_AND_THREE, "quickdrop", (), "forgotten already"),
    "not forgotten": ((CLASS_9,), "relearn", CLASS_3, "quickdrop", (), "--class 3: this is not forgotten"),
    "about nothing": ((), "unlearn", NO_CLASS, "quickdrop", (), "class"),
    "no class": ((), "unlearn", UnlearningRequest("class", (10,)), "quickdrop", (), "--class 10: between 0 and 9"),
    "no client": ((), "unlearn", UnlearningRequest("client", (3,)), "quickdrop", (), "--client 3: between 0 and 2"),
    "of another level": ((), "unlearn", CLIENT_0, "fu-mp", (), "fu-mp.*not client requests"),
    "of the other level": ((), "unlearn", CLASS_9, "s2u", (), "s2u.*not class requests"),
    "cannot learn again": ((CLASS_9,), "relearn", CLASS_9, "fu-mp", (), "--method fu-mp: it cannot learn again"),
    **{
        f"absent, {name}": ((), "unlearn", CLIENT_0, name, (0, 1), f"--client 0: it is absent, and {name}")
        for name in ("quickdrop", "random-subset", "sga-or", "s2u")
    },
    **{
        f"absent when learning again, {name}": ((CLIENT_0,), "relearn", CLIENT_0, name, (0,), "absent")
        for name in ("quickdrop", "retrain-or", "federaser")
    },
    "no such client is absent": ((), "unlearn", CLASS_9, "quickdrop", (3,), "--absent 3: between 0 and 2"),
    "nobody holds it": ((), "unlearn", CLASS_9, "quickdrop", (0, 1, 2), "all clients that hold it are absent"),
    "nobody teaches it": ((CLASS_9,), "relearn", CLASS_9, "quickdrop", (0, 1, 2), "all clients that hold it"),
    "nobody retrains": ((), "unlearn", CLASS_9, "retrain-or", (0, 1, 2), "absent"),
    "nobody calibrates": ((), "unlearn", CLASS_9, "federaser", (0, 1, 2), "absent"),
    "nobody else": ((), "unlearn", CLIENT_0, "s2u", (1, 2), "absent"),
}


@pytest.mark.parametrize(("before", "action", "request_", "name", "absent", "match"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_is_refused(
    folder: Path, before: Requests, action: str, request_: UnlearningRequest, name: str, absent: Absent, match: str
) -> None:
    run = served(folder, *before)
    refused(folder, match, lambda: getattr(run, action)(request_, run.method(name, request_.level), absent))


def test_what_was_learnt_again_can_be_forgotten_again_and_a_part_of_a_request_learnt(folder: Path) -> None:
    run = served(folder, NINE_AND_THREE)
    run.relearn(CLASS_9)
    assert run.forgotten() == (CLASS_3,)
    refused(folder, "--class 9: this is not forgotten", lambda: run.relearn(CLASS_9))
    assert run.unlearn(CLASS_9).version == 3


@pytest.mark.parametrize(
    "asked",
    ["--client 0,1,2", "--client 0,1 --absent 2", "--class 0,1,2,3,4,5,6,7,8,9", "--class 9 --client 0,1,2"],
)
def test_of_several_requests_all_are_served_or_none(folder: Path, run: Run, asked: str) -> None:
    before = contents(folder)
    for more in ((), ("--dry-run",)):
        code, out, err = run("unlearn", NAME, *asked.split(), *more)
        assert (code, out) == (2, "")
        assert "the stage recovery changes nothing: no client has data for it" in err
        assert contents(folder) == before


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_no_way_to_forget(folder: Path, name: str) -> None:
    run = TrainedRun(folder)
    for serve in (run.unlearn, lambda request, method: run.plan("unlearn", [(request, method)])):
        refused(folder, "unlearning changes nothing", partial(serve, CLASS_9, run.method(name, "class")))


def test_what_does_not_exist_is_refused(folder: Path) -> None:
    run = TrainedRun(str(folder))  # type: ignore[arg-type]  # as a user may give it
    method: Any = "quickdrop"
    refused(folder, "method 'quickdrop': a method is needed", lambda: run.unlearn(CLASS_9, method))
    refused(folder, "quikdrop: did you mean quickdrop", lambda: run.method("quikdrop"))
    for version in (-1, 1):
        refused(folder, f"--version {version}: between 0", partial(run.state, version))
        refused(folder, f"--version {version}: between 0", partial(run.forgotten, version))


def test_a_method_without_what_it_needs_is_refused(folder: Path) -> None:
    run = TrainedRun(folder)
    (folder / "updates").rename(folder / "elsewhere")
    refused(folder, "federaser.*needs update-history", lambda: run.unlearn(CLASS_9, run.method("federaser")))
    run.deployment = replace(run.deployment, spec=replace(run.spec, distill=False))
    refused(folder, "quickdrop.*needs synthetic-sets", lambda: run.unlearn(CLASS_9))


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].needs & {"forget-data", "retain-data"}])
def test_a_method_that_needs_original_data_is_refused_without_them(folder: Path, name: str) -> None:
    level = min(METHODS[name].levels)
    run = without_data(folder)
    method = run.method(name, level)
    refused(folder, f"--data-dir data: {name} needs original data", lambda: run.unlearn(REQUESTS[level], method))
    if method.can_relearn:
        run.unlearn(REQUESTS[level])
        refused(folder, f"--data-dir data: {name} needs original", lambda: run.relearn(REQUESTS[level], method))


def test_relearning_on_original_data_is_refused_without_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Still(Relearning):
        levels, needs = frozenset({"class"}), frozenset()

    registered: Any = METHODS
    monkeypatch.setattr(registered, "_items", registered._items | {"still": Still})
    served(folder, CLASS_9)
    run = without_data(folder)
    refused(folder, "data", lambda: run.relearn(CLASS_9, Still()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "request_", "absent", "expected"),
    [
        ("quickdrop", CLASS_9, (2,), {"unlearning": {0, 1}, "recovery": {0, 1}}),
        ("quickdrop", CLASS_9, (0, 1), {"unlearning": {2}, "recovery": {2}}),
        ("retrain-or", CLIENT_0, (0,), {"retraining": {1, 2}}),  # who is not needed may be absent
    ],
)
def test_others_than_the_absent_go_on(
    folder: Path, name: str, request_: UnlearningRequest, absent: tuple[int, ...], expected: dict[str, set[int]]
) -> None:
    run, participants = watched(folder)
    run.unlearn(request_, run.method(name, request_.level), absent)
    assert participants == expected


NO_REQUESTS: dict[str, tuple[Any, str]] = {
    "text": ("class-3", "request 'class-3': one is needed"),
    "a number": (3, "request 3: one is needed"),
    "nothing": (None, "request None: one is needed"),
    "a target in words": (UnlearningRequest("class", ("3",)), "--class ('3',): a tuple"),  # type: ignore[arg-type]
    "a text of targets": (UnlearningRequest("class", "3"), "--class '3': a tuple"),  # type: ignore[arg-type]
    "a lone target": (UnlearningRequest("class", 3), "--class 3: a tuple"),  # type: ignore[arg-type]
    "a list": (UnlearningRequest("client", [0]), "--client [0]: a tuple"),  # type: ignore[arg-type]
    "a fraction": (UnlearningRequest("client", (0.5,)), "--client (0.5,): a tuple"),  # type: ignore[arg-type]
    "a truth value": (UnlearningRequest("class", (True,)), "--class (True,): a tuple"),
}


@pytest.mark.parametrize(("request_", "said"), NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_what_is_no_request_is_said_at_once(folder: Path, request_: Any, said: str) -> None:
    run = TrainedRun(folder)
    method = run.method()
    for call in (
        partial(run.unlearn, request_),
        partial(run.relearn, request_, method),
        partial(run.check, "unlearn", [(request_, method)]),
        partial(run.plan, "unlearn", [(request_, method)]),
    ):
        refused(folder, re.escape(said), call)
