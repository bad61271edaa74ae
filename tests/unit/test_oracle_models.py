"""Where the retrained model that metrics compare with comes from, and what they measure where."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.harness.lacking import identities, is_measured
from quickdrop_bench.harness.measure import measure
from quickdrop_bench.harness.session import Session
from quickdrop_bench.reporting.render import render
from quickdrop_bench.store import states
from quickdrop_bench.store.rows import RowFile
from tests.conftest import json_lines
from tests.golden import common
from tests.unit.conftest import session_of, small_experiment

NAMES = ("retrain-or", "retrain-again", "none")


ITSELF = {
    **{f"{part}_set_{name}": best for part in "fr" for name, best in (("agreement", 1), ("js", 0))},
    **{f"{part}_set_activation_distance": 0 for part in "fr"},
    **dict.fromkeys(("layer_distance", "layer_distance_mean", "worst_client_drop"), 0),
    **dict.fromkeys(("tug_of_war", "weight_cosine"), 1),
}
"""What metrics that compare with the oracle say of the oracle."""


def values(rows: RowFile, metric: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in json_lines(rows.path):
        if row["metric"] == metric:
            found.setdefault(row["method"], []).append(row["value"])
    return found


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return session_of(small_experiment("table7", *NAMES), tmp_path)


def test_another_retraining_is_near_the_oracle_and_none_is_itself(session: Session, tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")
    assert measure(session, rows, NAMES)
    for metric, best in ITSELF.items():
        found = values(rows, metric)
        assert found["retrain-or"] == pytest.approx([best, best], abs=1e-6), metric
        assert all(map(math.isfinite, found["retrain-again"])), metric
        assert any(value != pytest.approx(best, abs=1e-6) for value in found["retrain-again"]), metric
    distance, near = values(rows, "layer_distance"), values(rows, "tug_of_war")
    assert all(value > 0 for value in distance["retrain-again"])
    assert all(again > untouched for again, untouched in zip(near["retrain-again"], near["none"], strict=True))
    assert "original" not in distance
    files = sorted((tmp_path / "artifacts").glob("*/oracles/*.safetensors"))
    assert files == sorted(session.oracle_path(1, step) for step in (0, 1))


def test_where_its_model_is_gone_the_oracle_is_trained_again_and_its_rows_stay(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")
    assert measure(session, rows, NAMES[:1])
    paths = [session.oracle_path(1, step) for step in (0, 1)]
    before, kept = rows.of(session.experiment.run_spec("retrain-or", 1, 0).hash), [p.read_bytes() for p in paths]
    for path in paths:
        path.unlink()
    assert measure(session, rows, NAMES)
    assert rows.of(session.experiment.run_spec("retrain-or", 1, 0).hash) == before
    assert [path.read_bytes() for path in paths] == kept
    assert len(values(rows, "tug_of_war")["none"]) == 2
    monkeypatch.setattr(Session, "prepare", None)  # nothing is served
    paths[0].unlink()
    assert measure(session, rows, NAMES)


def test_a_folder_that_cannot_be_written_keeps_it_in_memory(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> None:
        raise BadInput("--artifacts-dir", "there", "it cannot be written (disk full)")

    monkeypatch.setattr(states, "save", full)
    rows = RowFile(tmp_path / "rows.jsonl")
    assert measure(session, rows, NAMES)
    assert len(values(rows, "tug_of_war")["none"]) == 2
    assert "is not kept" in caplog.text


def test_a_damaged_model_is_refused_before_anything_runs(session: Session, tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "rows.jsonl")
    assert measure(session, rows, NAMES[:1])
    path = session.oracle_path(1, 1)
    whole = path.read_bytes()
    for content in (whole[:-3], b"", whole + bytes(2**21)):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=rf"{path.name} is damaged .* delete it"):
            measure(session, rows, NAMES)
    states.save(path, {"other": torch.ones(2)}, tmp_path / "artifacts")
    with pytest.raises(BadInput, match="it holds another model"):
        measure(session, rows, NAMES)
    assert "none" not in values(rows, "tug_of_war")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "artifacts/aaa").mkdir(parents=True)
    (tmp_path / "artifacts/aaa/oracles").symlink_to(outside)
    with pytest.raises(BadInput, match="symbolic link"):
        states.save(tmp_path / "artifacts/aaa/oracles/b.safetensors", {"w": torch.ones(1)}, tmp_path / "artifacts")
    assert not list(outside.iterdir())


def test_what_takes_long_is_measured_where_a_table_shows_it(session: Session, tmp_path: Path) -> None:
    assert "relearn-cost" in identities(session.experiment)
    for artefact in ("table2", "figure4", "sweep", "train"):
        assert "relearn-cost" not in identities(replace(session.experiment, artefact=artefact))
    rows, other = RowFile(tmp_path / "7.jsonl"), RowFile(tmp_path / "2.jsonl")
    assert measure(session, rows, NAMES[:1])
    shorter = session_of(small_experiment("table2", *NAMES), tmp_path)
    shorter.prepare = None  # type: ignore[method-assign, assignment]  # it is taken over
    assert measure(shorter, other, NAMES[:1], [rows])
    assert is_measured(shorter.experiment, [other], "retrain-or", 1)
    assert not is_measured(session.experiment, [], "retrain-or", 1)


def test_a_table_says_how_often_relearning_was_capped() -> None:
    rows = []
    outcomes = {"relearn_gradients": 40.0}, {"relearn_capped": 1.0}, {"relearn_gradients": 60.0}
    for seed, relearnt in enumerate(outcomes):
        total = {"f_set_accuracy": 0.1, "r_set_accuracy": 0.9, **relearnt}
        rows += [*common.run(common.setting(7), "sga-or", seed, {"total": total})]
    text = " ".join(render(exhibit("table7"), common.frame(rows))["table.md"].split())
    assert "| 50 (1 of 3 not in 20 passes) |" in text
