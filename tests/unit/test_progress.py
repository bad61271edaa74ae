"""How far a command is, and how long the rest takes."""

from __future__ import annotations

import pytest

from quickdrop_bench.cli.progress import Work, duration
from quickdrop_bench.harness.callbacks import EVALUATION, TRAINING, UNLEARNING, RequestInfo


def info(kind: str, method: str, request: str = "class-9") -> RequestInfo:
    return RequestInfo(kind, method, 1, 0, 1, {"federation_hash": "f", "request": request}, {})


def test_what_is_left_goes_by_the_steps_that_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 steps of training and two requests of 10: after 10 s half the training is done, and 70 steps are left."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    work = Work({("f", TRAINING, ""): 100, ("f", "sga-or", "class-9"): 10, ("f", "sga-or", "class-3"): 10})
    work.begin(info(TRAINING, "original"))
    assert (str(work), work.left()) == ("run 1/3 · ", None)
    now = 110.0
    assert work.left(0.5) == pytest.approx(10 * 70 / 50)
    work.begin(info(EVALUATION, "original"))
    assert str(work) == ""
    work.begin(info(UNLEARNING, "sga-or"))
    now = 120.0
    assert str(work) == "run 2/3 · "
    assert work.left() == pytest.approx(20 * 20 / 100)
    work.begin(info(UNLEARNING, "sga-or", "class-3"))
    assert (str(work), work.left()) == ("run 3/3 · ", pytest.approx(20 * 10 / 110))


def test_a_federation_that_is_only_loaded_is_no_run() -> None:
    work = Work({("f", "sga-or", "class-9"): 10})
    work.begin(info(TRAINING, "original"))
    assert (str(work), work.left(1.0)) == ("", None)


def test_durations_are_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (7.4, 89, 90, 5399, 5400)] == ["7 s", "89 s", "2 min", "90 min", "1.5 h"]
