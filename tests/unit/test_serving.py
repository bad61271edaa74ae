"""Requests that are served on a trained federation."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file

from quickdrop_bench.data.requests import Samples, UnlearningRequest
from quickdrop_bench.federation.federation import Federation
from quickdrop_bench.harness.experiment import ORIGINAL
from quickdrop_bench.harness.measure import measure
from quickdrop_bench.harness.session import Session
from quickdrop_bench.methods import METHODS
from quickdrop_bench.serving import TrainedRun
from quickdrop_bench.store.rows import RowFile
from tests.by_hand import equal
from tests.conftest import NEVER_EQUAL, Run
from tests.served import (
    CASES,
    CLASS_3,
    CLASS_9,
    CLIENT_0,
    NAME,
    REQUESTS,
    Measured,
    contents,
    experiment,
    refused,
    served,
    versions,
    watched,
    without_data,
)
from tests.unit.conftest import session_of, small_experiment

# Requests, one after the other -------------------------------------------------------------------------------

SEQUENCE = [
    ("unlearn", CLASS_9, ("class-9",)),
    ("unlearn", CLIENT_0, ("class-9", "client-0")),
    ("unlearn", CLASS_3, ("class-9", "client-0", "class-3")),
    ("relearn", CLASS_9, ("client-0", "class-3")),
]


def test_each_request_makes_a_version_beside_the_old_ones(folder: Path) -> None:
    run, trained = TrainedRun(folder), contents(folder)
    for version, (action, request, forgotten) in enumerate(SEQUENCE, 1):
        before = versions(folder)
        entry = getattr(run, action)(request)
        assert (entry.version, entry.parent) == (version, version - 1)
        assert (entry.action, entry.request) == (action, str(request))
        assert entry.forgotten == forgotten
        assert TrainedRun(folder).current == version
        assert before.items() <= versions(folder).items()
        assert len(versions(folder)) == version
    assert trained.items() <= contents(folder).items()
    again = TrainedRun(folder)
    assert again.log == run.log
    found = [tuple(map(str, again.forgotten(version))) for version in range(5)]
    assert found == [(), *(forgotten for _, _, forgotten in SEQUENCE)]


def test_every_version_is_another_model_and_the_newest_is_the_current_one(folder: Path) -> None:
    run = served(folder, CLASS_9, CLIENT_0)
    vectors = [torch.cat([v.flatten() for v in run.state(version).values()]) for version in range(3)]
    assert not any(torch.equal(vectors[a], vectors[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    model = run.model().state_dict()
    assert all(torch.equal(value, model[name]) for name, value in run.state(2).items())
    assert load_file(folder / "global.safetensors").keys() == model.keys()


def test_the_same_requests_give_the_same_bytes(folder: Path, requested: Path) -> None:
    served(folder, CLASS_9, CLASS_3)
    assert versions(folder) == versions(requested)


def test_quickdrop_does_not_depend_on_the_original_data(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    served(folder, CLASS_9, CLIENT_0)
    run = without_data(other)
    for request in (CLASS_9, CLIENT_0):
        entry = run.unlearn(request)
        assert entry.before is entry.after is None
    assert versions(folder) == versions(other)


def test_before_and_after_are_what_evaluation_finds(history: Path) -> None:
    run = TrainedRun(history)
    for entry in run.log:
        about, gone = [UnlearningRequest.parse(entry.request)], run.forgotten(entry.version)
        assert run.evaluate(entry.parent, about, gone) == entry.before
        assert run.evaluate(entry.version, about, gone) == entry.after
    assert run.log[0].after is not None
    assert run.log[0].after["f_set_accuracy"] == run.log[0].after["class_9_accuracy"]


@pytest.mark.parametrize("name", ["quickdrop", "sga-or"])
def test_a_class_is_learnt_again_without_the_clients_that_stay_forgotten(folder: Path, name: str) -> None:
    served(folder, CLASS_9, CLIENT_0)
    run, participants = watched(folder)
    run.relearn(CLASS_9, run.method(name))
    assert participants["relearning"] == {1, 2}


@pytest.mark.parametrize("name", ["quickdrop", "sga-or"])
def test_a_client_is_learnt_again_without_the_classes_that_stay_forgotten(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, classes, real = served(folder, CLASS_3, CLIENT_0), set(), Federation.run

    def watch(self: Federation, state: Any, data: Any, *args: Any, **options: Any) -> Any:
        classes.update(int(c) for z in data.values() for c in z.own_labels())
        return real(self, state, data, *args, **options)

    monkeypatch.setattr(Federation, "run", watch)
    run.relearn(CLIENT_0, run.method(name, "client"))
    assert classes
    assert 3 not in classes


@pytest.mark.parametrize("name", ["quickdrop", "sga-or"])
def test_a_client_that_was_forgotten_takes_no_part_in_later_requests(folder: Path, name: str) -> None:
    served(folder, CLIENT_0)
    run, participants = watched(folder)
    run.unlearn(CLASS_9, run.method(name))
    assert participants == {"unlearning": {1, 2}, "recovery": {1, 2}}


# The same as the harness -------------------------------------------------------------------------------------


def assert_costs_equal(cost: dict[str, Any], rows: dict[tuple[str, str], float]) -> None:
    for stage, metrics in cost.items():
        assert {"rounds", "data_size", "sample_gradients", "upload_bytes"} <= metrics.keys()
        for metric, value in metrics.items():
            if not metric.endswith(NEVER_EQUAL):
                assert rows[stage, metric] == value, (stage, metric)


def assert_accuracies_equal(found: Any, rows: dict[tuple[str, str], float], stage: str) -> None:
    for metric in ("f_set_accuracy", "r_set_accuracy"):
        assert found[metric] == rows[stage, metric]


@pytest.mark.parametrize(("name", "level"), CASES)
def test_a_request_gives_what_the_harness_measures(measured: Measured, folder: Path, name: str, level: str) -> None:
    run, request = TrainedRun(folder), REQUESTS[level]
    rows = measured.rows[str(request), name]
    entry = run.unlearn(request, run.method(name, level))
    assert_costs_equal(dict(entry.cost), rows)
    assert_accuracies_equal(entry.before, measured.rows[str(request), ORIGINAL], "fl-training")
    assert_accuracies_equal(entry.after, rows, "total")
    assert not equal(run.state(0), run.state(1))
    if METHODS[name].can_relearn:
        entry = run.relearn(request, run.method(name, level))
        assert_costs_equal({"relearning": entry.cost["relearning"]}, rows)
        assert_accuracies_equal(entry.after, rows, "relearning")
        assert run.forgotten() == ()


def test_requests_in_a_row_give_what_the_harness_measures(measured: Measured, folder: Path) -> None:
    run = served(folder, CLASS_9, CLASS_3)
    for entry, requests in zip(run.log, ("class-9", "class-9>class-3"), strict=True):
        rows = measured.rows[requests, "quickdrop"]
        assert_costs_equal(dict(entry.cost), rows)
        assert_accuracies_equal(entry.after, rows, "total")


def test_the_command_takes_the_settings_of_the_harness(measured: Measured, folder: Path, run: Run) -> None:
    for level, request in REQUESTS.items():
        asked = (request.option, "7" if level == "sample" else str(request.targets[0]))
        code, out, _ = run("unlearn", NAME, *asked, "--method", "random-subset", "--json")
        assert code == 0
        settings = json.loads(out)["hyper_parameters"]
        assert settings == vars(experiment(level, (request,)).methods["random-subset"])


def test_a_run_is_served_in_the_precision_of_its_training(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"32-true"', '"bf16-mixed"'))
    run = TrainedRun(folder)
    assert run.trained.precision == "bf16-mixed"
    assert run.fabric.strategy.precision.precision == "bf16-mixed"


def test_a_fine_tuned_federation_serves_what_the_harness_serves(measured: Measured, tmp_path: Path) -> None:
    e = experiment("class", (CLASS_9,), ["federaser"])
    tuned = replace(e.federation, fine_tune=1, fine_tune_steps=1, fine_tune_epochs=1)
    session = Session(replace(e, federation=tuned), Fabric(accelerator="cpu", devices=1), tmp_path / "artifacts")
    shutil.copytree(measured.folder, session.folder(1, e.federation))
    assert session.context(1).history is not None
    run = TrainedRun(session.folder(1))
    run.check("unlearn", [(CLASS_9, run.method("federaser"))])


# Samples -----------------------------------------------------------------------------------------------------


def test_samples_are_forgotten_and_learnt_again_on_the_command_line(folder: Path, run: Run) -> None:
    code, out, _ = run(
        "unlearn", NAME, "--class", "3", "--client", "0", "--samples", "12,5", "--method", "sga-or", "--json"
    )
    assert code == 0
    entries = [json.loads(line) for line in out.splitlines()]
    by_class, by_client, twelve, five = (UnlearningRequest.parse(e["request"]) for e in entries)
    assert (by_class, by_client) == (CLASS_3, CLIENT_0)
    assert entries[3]["forgotten"] == [str(r) for r in (CLASS_3, CLIENT_0, twelve, five)]
    assert (len(twelve.targets), len(five.targets)) == (12, 5)
    assert {*twelve.targets}.isdisjoint(five.targets)
    left = TrainedRun(folder).deployment.clients
    held = {row: i for i, client in left.items() for row in client.original.rows.tolist()}
    assert all(held[row] and left[1].original.labels[row] != 3 for row in (*twelve.targets, *five.targets))
    assert {"held_out_accuracy", "memorisation"} <= entries[3]["after"].keys()
    shown = " ".join(run("show", NAME)[1].split())
    assert f"forgotten: class-3, client-0, {twelve.named(())}, {five.named(())}" in shown
    assert json.loads(run("evaluate", NAME, "--json")[1])["forgotten"] == entries[3]["forgotten"]

    lines = "".join(f"{held[row]},{row}\n" for row in reversed(twelve.targets[:7]))
    Path("some.csv").write_text(lines, encoding="utf-8-sig")  # as spreadsheets write it
    code, out, _ = run("relearn", NAME, "--samples", "some.csv", "--method", "sga-or", "--json")
    assert code == 0
    some, others = (UnlearningRequest("sample", rows) for rows in (twelve.targets[:7], twelve.targets[7:]))
    assert json.loads(out)["forgotten"] == [str(r) for r in (CLASS_3, CLIENT_0, others, five)]
    assert json.loads(out)["request"] == str(some)
    code, _, err = run("relearn", NAME, "--samples", "some.csv", "--method", "sga-or")
    assert code == 2
    assert "this row is not forgotten" in err
    assert run("relearn", NAME, "--samples", "10", "--method", "sga-or")[0] == 0
    assert TrainedRun(folder).forgotten() == (CLASS_3, CLIENT_0)
    code, _, err = run("unlearn", NAME, "--samples", "some.csv", "--method", "s2u")
    assert code == 2
    assert "not sample requests" in err


def test_forgotten_samples_are_read_by_no_later_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = TrainedRun(folder), Federation.run
    samples = run.samples(Samples(60))
    rows: set[int] = set()

    def watch(self: Federation, state: Any, data: Any, *args: Any, **options: Any) -> Any:
        rows.update(row for z in data.values() for row in z.dataset_rows().tolist())
        return real(self, state, data, *args, **options)

    run.unlearn(samples, run.method("sga-or", "sample"))
    monkeypatch.setattr(Federation, "run", watch)
    for name, request in (("sga-or", CLASS_3), ("quickdrop", CLASS_9), ("fu-mp", UnlearningRequest("class", (1,)))):
        rows.clear()
        run.unlearn(request, run.method(name, request.level))
        assert rows
        assert rows.isdisjoint(samples.targets)


def test_tables_and_served_requests_draw_the_same_samples(measured: Measured, tmp_path: Path) -> None:
    e = experiment("sample", (Samples(20), Samples(10)), ["sga-or"])
    session = Session(e, Fabric(accelerator="cpu", devices=1), tmp_path / "artifacts")
    shutil.copytree(measured.folder, session.folder(1))
    rows = RowFile(tmp_path / "rows.jsonl")
    assert measure(session, rows, ["sga-or"])
    assert {row["request"] for row in rows.rows} == {"sample-20", "sample-20>sample-10"}
    run = TrainedRun(session.folder(1))
    for request, name in zip(e.requests, ("sample-20", "sample-20>sample-10"), strict=True):
        assert isinstance(request, Samples)
        entry = run.unlearn(run.samples(request), run.method("sga-or", "sample"))
        own = {
            (r["stage"], r["metric"]): r["value"] for r in rows.rows if (r["request"], r["method"]) == (name, "sga-or")
        }
        assert_costs_equal(dict(entry.cost), own)
        assert_accuracies_equal(entry.after, own, "total")
    assert [str(request) for request in session.requests(1)] == [entry.request for entry in run.log]


def test_samples_that_cannot_be_served(folder: Path, run: Run) -> None:
    opened = without_data(folder)
    request, method = UnlearningRequest("sample", (1, 2)), opened.method("quickdrop", "sample")
    refused(folder, "--data-dir data: which class a sample is of", lambda: opened.unlearn(request, method))
    refused(folder, "--data-dir data: .* samples are chosen in it", lambda: opened.samples(Samples(3)))
    opened = TrainedRun(folder)
    owners = dict(list(opened.deployment.clients.items())[:2])
    request, absent = UnlearningRequest("sample", tuple(int(c.original.rows[0]) for c in owners.values())), {*owners}
    for away in (absent, {max(absent)}):  # also where others hold the rest
        reason = f"--absent {min(away)}: it holds samples that are to be forgotten"
        refused(folder, reason, partial(opened.unlearn, request, method, away))
    nobody = UnlearningRequest("sample", (10**6,))
    refused(folder, "--samples 1000000: between 0 and", lambda: opened.unlearn(nobody, method))
    for argv, said in {
        ("--samples", "5000"): "--samples 5000: on seed 1, there are 1442 to be drawn from",
        ("--samples", "nowhere.csv"): "--samples nowhere.csv: a number, or a file that lists client,row a line, is",
        ("--samples", "3", "--from-version", "2"): "--from-version 2",
        (): "--class, --client, --samples are missing: give at least one",
    }.items():
        code, _, err = run("unlearn", NAME, *argv)
        assert code == 2
        assert said in err


def test_a_model_s_parameters_come_in_the_same_order_from_training_and_from_disk(tmp_path: Path) -> None:
    """What a method draws or sums parameter by parameter must not depend on where the model comes from."""
    e = small_experiment("table2", "retrain-or")
    session = session_of(e, tmp_path)
    fresh = session.prepare(1).state
    again = session_of(e, tmp_path)
    assert [*again.prepare(1).state] == [*fresh] == [*session.federation.read()]
    run = TrainedRun(session.folder(1))
    run.unlearn(UnlearningRequest("class", (9,)), METHODS["retrain-or"](rounds=1))
    assert [*run.state()] == [*fresh]
