"""How far a command is, and how long the rest takes."""

from __future__ import annotations

import pytest

from quickdrop_bench.cli.progress import ProgressDisplay, RoundAccuracy, Work
from quickdrop_bench.evaluation.accuracy import ClassAccuracy
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


def test_what_an_earlier_command_made_says_nothing_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training goes on from 80 of 100 steps; in 10 s it makes 10 more, so that 20 are left at a step a second."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    work = Work({("f", TRAINING, ""): 100, ("f", "sga-or", "class-9"): 10})
    work.begin(info(TRAINING, "original"))
    work.resume(0.8)
    assert work.left(0.8) is None
    now = 110.0
    assert work.left(0.9) == pytest.approx(20)
    work.begin(info(UNLEARNING, "sga-or"))
    assert work.left() == pytest.approx(10 / 20 * 10)


def test_a_federation_that_is_only_loaded_is_no_run() -> None:
    work = Work({("f", "sga-or", "class-9"): 10})
    work.begin(info(TRAINING, "original"))
    assert (str(work), work.left(1.0)) == ("", None)


def test_the_last_class_of_a_sequence_leaves_no_r_set() -> None:
    """Two classes, three of four images of the first and one of two of the second right."""
    found = ClassAccuracy(((3, 1), (1, 1)))
    display = ProgressDisplay(RoundAccuracy(lambda federation: found), Work({}))
    display.on_search_start(info(UNLEARNING, "quickdrop", "class-0"))
    assert display._accuracies(found) == "F-Set 0.750 · R-Set 0.500"
    display.on_search_start(info(UNLEARNING, "quickdrop", "class-0>class-1"))
    assert display._accuracies(found) == "F-Set 0.500 · no class is retained"
