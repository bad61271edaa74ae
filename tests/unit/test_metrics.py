"""Metrics: what they declare, which images they are about, and that a new one re-measures nothing else."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quickdrop_bench.data.backdoor import Backdoor, Planted
from quickdrop_bench.data.labelled import ImageData, LabelledSet
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.evaluation.metric import METRICS, PER_ROUND, SERVED, STAGES, Evaluated, measured
from quickdrop_bench.federation.phase import Phase
from quickdrop_bench.harness import sources
from quickdrop_bench.harness.federation_spec import TRAINING
from quickdrop_bench.harness.lacking import is_measured
from quickdrop_bench.harness.measure import measure
from quickdrop_bench.harness.run_spec import REQUEST
from quickdrop_bench.harness.session import Session
from quickdrop_bench.methods import METHODS
from quickdrop_bench.store.rows import RowFile, is_last
from tests.conftest import json_lines
from tests.unit.conftest import session_of, small_experiment

PAGE = sources.PACKAGE / "evaluation/README.md"
(PLUGIN,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

CLASS_2, CLIENT_1 = UnlearningRequest("class", (2,)), UnlearningRequest("client", (1,))
SAMPLES = UnlearningRequest("sample", (0, 1, 3))


Requests = tuple[UnlearningRequest, ...]


def evaluated(about: Requests, forgotten: Requests = ()) -> Evaluated:
    """A model that always answers class 0; six test images, two of each class, and clients with three images each.

    The retrained one always answers class 2.
    """

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.eye(3)[0] + torch.eye(3)[2] * (2 - self.w.sum())
            return logits.expand(len(images), 3)

    state, oracle = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    images = torch.zeros(6, 1, 3, 3)
    train = [LabelledSet(images, labels, torch.tensor(rows)) for rows in ([0, 3, 4], [1, 2, 5])]
    test = LabelledSet.of(images, torch.tensor([0, 0, 1, 1, 2, 2]))
    data = ImageData("toy", LabelledSet.of(images, labels), test, ("a", "b", "c"), (0.0,), (1.0,))
    planted = Planted(Backdoor(1, target=2), data, torch.tensor([5]))
    whose, phase = dict(enumerate(train)), Phase("fl-training", 1, 1, 2, 0.1)
    return Evaluated(
        Constant(), state, state, test, 3, whose, about, forgotten or about, 1, planted, oracle=oracle, training=phase
    )


F_SET, R_SET, OTHERS = "f_set_accuracy", "r_set_accuracy", "others_training_accuracy"
BY_HAND: dict[str, tuple[Requests, Requests, str, dict[str, float]]] = {
    "class": ((CLASS_2,), (), "total", {F_SET: 0, R_SET: 2 / 4}),
    "client": ((CLIENT_1,), (), "total", {F_SET: 2 / 3, R_SET: 2 / 6}),
    "the other clients": ((CLIENT_1,), (), "recovery", {OTHERS: 1 / 3}),
    "client after class": ((CLIENT_1,), (CLASS_2, CLIENT_1), "unlearning", {R_SET: 2 / 4}),
    "samples": ((SAMPLES,), (), "total", {F_SET: 2 / 3, R_SET: 2 / 6, OTHERS: 1 / 3}),
    "samples and a client": ((SAMPLES, CLIENT_1), (), "total", {F_SET: 3 / 5, OTHERS: 0}),
    "samples after class": ((SAMPLES,), (CLASS_2, SAMPLES), "total", {F_SET: 2 / 3, R_SET: 2 / 4}),
    "both": ((CLASS_2, CLIENT_1), (), SERVED, {F_SET: 2 / 5, R_SET: 2 / 4, "test_accuracy": 2 / 6}),
    "nothing forgotten": ((), (), SERVED, {R_SET: 2 / 6}),
}


@pytest.mark.parametrize(("about", "forgotten", "stage", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_f_set_and_r_set_by_hand(about: Requests, forgotten: Requests, stage: str, expected: dict[str, float]) -> None:
    found = measured(evaluated(about, forgotten), stage, ["accuracy"])["accuracy"]
    assert expected.items() <= found.items()
    assert ("f_set_accuracy" in found) == bool(about)


def test_training_images_of_a_request_leave_out_what_others_forgot() -> None:
    model = evaluated((CLIENT_1,), (CLASS_2, CLIENT_1))
    assert (model.forget_data().rows.tolist(), model.retain_data().rows.tolist()) == ([1, 2], [0, 3])


def test_samples_are_compared_with_test_images_of_their_classes_in_the_same_shares() -> None:
    """Two of class 0 and one of class 1 are to be forgotten; test images of class 0 alone are classified right."""
    found = measured(evaluated((SAMPLES,)), "total", ["samples"])["samples"]
    assert found["held_out_accuracy"] == pytest.approx(2 / 3)
    assert found["memorisation"] == pytest.approx(0)
    assert found["touched_share"] == (1 + 1 + 2) / 3  # client 0 has one image of each class, client 1 two of class 0
    assert measured(evaluated((CLIENT_1,)), "total", ["samples"]) == {"samples": {}}
    after_class = measured(evaluated((SAMPLES,), (UnlearningRequest("class", (1,)), SAMPLES)), "total", ["samples"])
    assert after_class["samples"]["held_out_accuracy"] == 1


@pytest.mark.parametrize("name", METRICS)
def test_each_gives_what_it_declares_where_it_declares_it(name: str) -> None:
    one = METRICS[name]
    assert one.summary.endswith(".")
    assert one.stages <= STAGES | {PER_ROUND, SERVED}
    assert {number.better for number in one.gives.values()} <= {"higher", "lower", "neutral"}
    names = {key.replace("{c}", str(c)) for key in one.gives for c in range(3)}
    given = Counter(key for stage in one.stages for about in (CLASS_2, CLIENT_1, SAMPLES)
                    for key in measured(evaluated((about,)), stage, [name])[name])  # fmt: skip
    assert given.keys() == names
    assert not measured(evaluated((CLASS_2,)), "no stage", [name])


def test_each_number_is_one_metrics() -> None:
    assert max(Counter(key for name in METRICS for key in METRICS[name].gives).values()) == 1


def test_the_page_lists_them() -> None:
    first, _, _ = PAGE.read_text(encoding="utf-8").partition("\n## ")
    listed = re.findall(r"^\| `([\w-]+)`", first, re.MULTILINE)
    assert listed == sorted(name for name in METRICS if METRICS[name].source.parent == PAGE.parent)


def test_no_result_depends_on_the_code_of_a_metric() -> None:
    """But for the counting of right answers, which training and the search for settings do too."""
    found = {p.name for p in sources.dependencies(*TRAINING, *REQUEST) if p.parent.name == "evaluation"}
    assert found == {"accuracy.py"}


# A metric of another package ---------------------------------------------------------------------------------


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a package with a metric under an entry point, in the place of the one before."""
    own: Any = METRICS
    monkeypatch.setattr(own, "_items", dict(own._items))
    monkeypatch.setattr(own, "_loaded", True)
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(factor: str) -> None:
        monkeypatch.delitem(sys.modules, "norms", raising=False)
        own._items.pop("norm", None)
        (tmp_path / "norms-1.dist-info").mkdir(exist_ok=True)
        (tmp_path / "norms-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: norms\nVersion: 1\n")
        (tmp_path / "norms-1.dist-info/entry_points.txt").write_text("[quickdrop_bench.metrics]\nnorm = norms\n")
        (tmp_path / "norms.py").write_text(PLUGIN.replace("** 0.5", f"** 0.5 * {factor}"))
        sources.metric_digest.cache_clear()
        own._loaded = False

    return put


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return session_of(small_experiment("table2", "retrain-or", "sga-or"), tmp_path)


def others(rows: RowFile) -> list[str]:
    """The lines of all other metrics and costs as they stand; the last line of a run lists its metrics."""
    pairs = zip(rows.path.read_text().splitlines(), json_lines(rows.path), strict=True)
    return [text for text, row in pairs if row["metric"] != "weight_norm" and not is_last(row)]


def norms(rows: RowFile) -> list[float]:
    return [row["value"] for row in json_lines(rows.path) if row["metric"] == "weight_norm"]


def test_a_new_metric_measures_itself_and_a_changed_one_again_and_nothing_else(
    session: Session, tmp_path: Path, install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    e, rows = session.experiment, RowFile(tmp_path / "rows.jsonl")
    assert measure(session, rows, list(e.methods))
    before, runs = others(rows), 2 * 3
    assert not norms(rows)
    install("1")
    assert not is_measured(e, [rows], "sga-or", 1)
    measured_now: list[str] = []
    for name in ("membership", "accuracy", "collapse", "class-accuracy"):
        real = METRICS[name].measure
        monkeypatch.setitem(
            METRICS[name].__dict__, "measure", lambda *a, n=name, r=real: measured_now.append(n) or r(*a)
        )
    assert measure(session, rows, list(e.methods))
    assert measured_now == []
    assert sorted(others(rows)) == sorted(before)
    first = norms(rows)
    assert len(first) == runs
    again = RowFile(rows.path)
    content = rows.path.read_bytes()
    assert all(is_measured(e, [again], name, 1) for name in ("original", *e.methods))
    assert measure(session, again, list(e.methods))
    assert rows.path.read_bytes() == content
    install("2")
    assert measure(session, RowFile(rows.path), list(e.methods))
    assert sorted(others(rows)) == sorted(before)
    assert norms(rows) == [2 * value for value in first]


def test_a_run_measured_for_another_exhibit_is_taken_over_with_the_metrics_that_it_has(
    session: Session, tmp_path: Path, install: Callable[[str], None]
) -> None:
    own, other = RowFile(tmp_path / "own/rows.jsonl"), RowFile(tmp_path / "other/rows.jsonl")
    assert measure(session, own, ["sga-or"])
    install("1")
    assert measure(session, other, ["sga-or"])
    trained = sorted((tmp_path / "artifacts").glob("[!.]*"))
    session.prepare = None  # type: ignore[method-assign, assignment]  # nothing is served
    assert measure(session, own, ["sga-or"], [other])
    assert sorted(norms(own)) == sorted(norms(other))
    assert sorted((tmp_path / "artifacts").glob("[!.]*")) == trained


@pytest.mark.parametrize("error", [SystemExit(0), RuntimeError("boom\x1b[31m" + 3000 * "x")])
def test_a_method_that_ends_the_program_or_commands_a_terminal_is_a_failed_run(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")

    def end(*args: object) -> None:
        raise error

    monkeypatch.setattr(METHODS["sga-or"], "unlearn", end)
    assert not measure(session, rows, ["sga-or"])
    failed = {row["method"] for row in json_lines(rows.path) if row["metric"] == "failed"}
    assert failed == {"sga-or"}
    (said,) = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert said.isprintable()
    assert "SystemExit" in said or "boom" in said
    assert len(said) < 400


def test_force_where_memory_is_short_leaves_good_rows_as_they_were(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")
    assert measure(session, rows, ["sga-or"])
    before = [row for row in json_lines(rows.path) if row["method"] == "sga-or"]

    def starve(*args: object) -> None:
        raise MemoryError("no memory is left")

    for target, name in ((METHODS["sga-or"], "unlearn"), (Session, "prepare")):
        with monkeypatch.context() as patched:
            patched.setattr(target, name, starve)
            assert not measure(session, rows, ["sga-or"], force=True)
        assert [row for row in json_lines(rows.path) if row["method"] == "sga-or"] == before
        assert not any(row["metric"] == "failed" for row in json_lines(rows.path))
    assert "those rows stay" in caplog.text
    assert measure(session, rows, ["sga-or"])
