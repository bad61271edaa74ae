"""Requests that are served on a trained federation."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file, save_file

from quickdrop_bench.cli.main import main
from quickdrop_bench.cli.resolve import federation_spec, methods_of, options_of
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.federation.federation import Federation, RoundInfo
from quickdrop_bench.harness.experiment import ORIGINAL, Experiment
from quickdrop_bench.harness.measure import measure
from quickdrop_bench.harness.session import Session
from quickdrop_bench.harness.spec import Rules
from quickdrop_bench.methods import METHODS
from quickdrop_bench.methods.stages import Relearning
from quickdrop_bench.serving import TrainedRun, export, find_run
from quickdrop_bench.store.rows import RowFile
from tests.conftest import NEVER_EQUAL, TINY, Run
from tests.damage import largest_file

OPTIONS = [*TINY, "--min-client-size", "5", "--record-every", "1"]
CLASS_9, CLASS_3, CLIENT_0 = (UnlearningRequest.parse(text) for text in ("class-9", "class-3", "client-0"))
REQUESTS = {"class": CLASS_9, "client": CLIENT_0}
TABLES = {"class": "2", "client": "4"}
CASES = [(name, level) for name in METHODS for level in sorted(METHODS[name].levels)]
UNBOUNDED = ["--quickdrop.unlearn-lr", "1e30", "--quickdrop.unlearn-stop-loss", "null"]
NAME = "federation"


# A federation that every test gets a copy of -----------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What the harness measured on the federation in ``folder``: rows by requests and method."""

    folder: Path
    rows: dict[tuple[str, str], dict[tuple[str, str], float]]


def experiment(level: str, requests: tuple[UnlearningRequest, ...], names: list[str] | None = None) -> Experiment:
    args = options_of(["table", TABLES[level], *OPTIONS], f"table{TABLES[level]}")
    methods = {n: m for n, m in methods_of(args).items() if level in m.levels and (names is None or n in names)}
    rules = Rules(args.protocol, args.patience, relearn=True)
    spec = federation_spec(args)
    return Experiment(f"table{TABLES[level]}", "quick", spec, requests, methods, (1,), Path("data"), "32-true", rules)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    place = tmp_path_factory.mktemp("measured")
    found: dict[tuple[str, str], dict[tuple[str, str], float]] = defaultdict(dict)
    experiments = [experiment(level, (request,)) for level, request in REQUESTS.items()]
    experiments.append(experiment("class", (CLASS_9, CLASS_3), ["quickdrop"]))
    with torch.random.fork_rng(devices=[]):
        for k, e in enumerate(experiments):
            session = Session(e, Fabric(accelerator="cpu", devices=1), place / "artifacts")
            rows = RowFile(place / f"{k}.jsonl")
            assert measure(session, rows, list(e.methods))
            for row in rows.rows:
                found[row["request"], row["method"]][row["stage"], row["metric"]] = row["value"]
    (folder,) = (place / "artifacts").iterdir()
    return Measured(folder, dict(found))


@pytest.fixture
def folder(measured: Measured, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured.folder, tmp_path / "artifacts" / NAME))


@pytest.fixture(scope="module")
def requested(measured: Measured, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Path(shutil.copytree(measured.folder, tmp_path_factory.mktemp("requested") / NAME))
    served(place, CLASS_9, CLASS_3)
    return place


@pytest.fixture
def history(requested: Path, tmp_path: Path) -> Path:
    """A federation that forgot class 9, and then class 3."""
    return Path(shutil.copytree(requested, tmp_path / "artifacts" / NAME))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def versions(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.startswith("versions/")}


def served(folder: Path, *requests: UnlearningRequest) -> TrainedRun:
    run = TrainedRun(folder)
    for request in requests:
        run.unlearn(request)
    return run


def without_data(folder: Path) -> TrainedRun:
    run = TrainedRun(folder)
    run.data = None
    return run


class Participants:
    """Fabric callback: who took part, by phase."""

    def __init__(self) -> None:
        self.by_phase: dict[str, set[int]] = defaultdict(set)

    def on_round_end(self, federation: Federation, info: RoundInfo) -> None:
        self.by_phase[info.phase.name] |= set(info.participants)


def watched(folder: Path) -> tuple[TrainedRun, dict[str, set[int]]]:
    seen = Participants()
    return TrainedRun(folder, Fabric(accelerator="cpu", devices=1, callbacks=[seen])), seen.by_phase


def sentence(err: str) -> str:
    (line,) = err.splitlines()
    assert line.startswith("quickdrop-bench: ")
    assert line.endswith(".")
    assert "Traceback" not in line
    return line


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


def test_what_is_forgotten_follows_from_the_log(folder: Path) -> None:
    run = TrainedRun(folder)
    for action, request, _ in SEQUENCE:
        getattr(run, action)(request)
    again = TrainedRun(folder)
    assert again.log == run.log
    found = [tuple(map(str, again.forgotten(version))) for version in range(5)]
    assert found == [(), *(forgotten for _, _, forgotten in SEQUENCE)]
    assert again.forgotten() == again.forgotten(4)


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


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_requests_in_a_row_give_what_the_harness_measures(measured: Measured, folder: Path) -> None:
    run = served(folder, CLASS_9, CLASS_3)
    for entry, requests in zip(run.log, ("class-9", "class-9>class-3"), strict=True):
        rows = measured.rows[requests, "quickdrop"]
        assert_costs_equal(dict(entry.cost), rows)
        assert_accuracies_equal(entry.after, rows, "total")


def test_the_command_takes_the_settings_of_the_harness(measured: Measured, folder: Path, run: Run) -> None:
    for level, request in REQUESTS.items():
        code, out, _ = run(
            "unlearn", NAME, f"--{level}", str(request.targets[0]), "--method", "random-subset", "--json"
        )
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


# Plans -------------------------------------------------------------------------------------------------------


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
        assert sum(phase.cost.sample_gradients for phase in phases) >= total["sample_gradients"] > 0


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
        for metric in ("sample_gradients", "data_size", "upload_bytes", "rounds"):
            assert sum(getattr(phase.cost, metric) for phase in phases) >= entry.cost["total"][metric]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_plan_is_an_upper_bound_where_few_clients_take_part(folder: Path, share: float) -> None:
    run = TrainedRun(folder)
    method = METHODS["quickdrop"](recover_participation=share, recover_local_epochs=1)
    ((_, phases),) = run.plan("unlearn", [(CLASS_3, method)])
    spent = run.unlearn(CLASS_3, method).cost["recovery"]["sample_gradients"]
    assert phases[-1].cost.sample_gradients >= spent


def test_a_plan_has_the_round_that_only_measures(folder: Path) -> None:
    run = TrainedRun(folder)
    method = run.method("fu-mp")
    ((_, phases),) = run.plan("unlearn", [(CLASS_9, method)])
    total = run.unlearn(CLASS_9, method).cost["total"]
    assert sum(phase.cost.rounds for phase in phases) >= total["rounds"]
    assert sum(phase.cost.upload_bytes for phase in phases) >= total["upload_bytes"]


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
    assert contents(folder) == before


# Refusals ----------------------------------------------------------------------------------------------------


def refused(folder: Path, match: str, call: Callable[[], object]) -> None:
    before = {name: content for name, content in contents(folder).items() if name != ".lock"}
    with pytest.raises(BadInput, match=match):
        call()
    assert {name: content for name, content in contents(folder).items() if name != ".lock"} == before


def test_nothing_is_forgotten_twice(folder: Path) -> None:
    run = served(folder, CLASS_9, CLIENT_0)
    refused(folder, "--class 9: this is forgotten already", lambda: run.unlearn(CLASS_9))
    refused(folder, "--client 0: this is forgotten already", lambda: run.unlearn(CLIENT_0))


def test_only_what_is_forgotten_is_learnt_again(folder: Path) -> None:
    run = served(folder, CLASS_9)
    refused(folder, "--class 3: this is not forgotten", lambda: run.relearn(CLASS_3))
    run.relearn(CLASS_9)
    refused(folder, "--class 9: this is not forgotten", lambda: run.relearn(CLASS_9))
    assert run.unlearn(CLASS_9).version == 3


def test_nothing_is_forgotten_twice_as_a_part_of_a_request(folder: Path) -> None:
    run = served(folder, CLASS_9)
    refused(folder, "forgotten already", lambda: run.unlearn(UnlearningRequest("class", (9, 3))))


def test_a_part_of_a_request_is_learnt_again(folder: Path) -> None:
    run = served(folder, UnlearningRequest("class", (9, 3)))
    run.relearn(CLASS_9)
    assert run.forgotten() == (CLASS_3,)


def test_a_request_about_nothing_is_refused(folder: Path) -> None:
    run = TrainedRun(folder)
    refused(folder, "class", lambda: run.unlearn(UnlearningRequest("class", ())))


def test_what_does_not_exist_is_refused(folder: Path) -> None:
    run = TrainedRun(folder)
    refused(folder, "--class 10: between 0 and 9", lambda: run.unlearn(UnlearningRequest("class", (10,))))
    refused(folder, "--client 3: between 0 and 2", lambda: run.unlearn(UnlearningRequest("client", (3,))))
    refused(folder, "quikdrop: did you mean quickdrop", lambda: run.method("quikdrop"))
    for version in (-1, 1):
        refused(folder, f"--version {version}: between 0", partial(run.state, version))
        refused(folder, f"--version {version}: between 0", partial(run.forgotten, version))


def test_a_method_without_what_it_needs_is_refused(folder: Path) -> None:
    run = TrainedRun(folder)
    refused(folder, "fu-mp.*not client requests", lambda: run.unlearn(CLIENT_0, run.method("fu-mp", "client")))
    refused(folder, "s2u.*not class requests", lambda: run.unlearn(CLASS_9, run.method("s2u")))
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


def test_what_cannot_learn_again_is_refused(folder: Path) -> None:
    run = served(folder, CLASS_9)
    refused(folder, "--method fu-mp: it cannot learn again", lambda: run.relearn(CLASS_9, run.method("fu-mp")))


def test_an_absent_client_is_refused(folder: Path) -> None:
    run = TrainedRun(folder)
    for name in ("quickdrop", "random-subset", "sga-or", "s2u"):
        method = run.method(name, "client")
        refused(folder, f"--client 0: it is absent, and {name}", partial(run.unlearn, CLIENT_0, method, absent=(0, 1)))
    refused(folder, "--absent 3: between 0 and 2", lambda: run.unlearn(CLASS_9, absent=(3,)))
    run.unlearn(CLIENT_0)
    refused(folder, "--client 0: it is absent", lambda: run.relearn(CLIENT_0, absent=(0,)))


def test_a_class_is_refused_when_all_who_hold_it_are_absent(folder: Path) -> None:
    run = TrainedRun(folder)
    everyone = (0, 1, 2)
    refused(folder, "--class 9: all clients that hold it are absent", lambda: run.unlearn(CLASS_9, absent=everyone))
    assert run.unlearn(CLASS_9, absent=(0, 1)).version == 1
    refused(folder, "--class 9: all clients that hold it are absent", lambda: run.relearn(CLASS_9, absent=everyone))


def test_others_than_the_absent_go_on(folder: Path) -> None:
    run, participants = watched(folder)
    run.unlearn(CLASS_9, absent=(2,))
    assert participants == {"unlearning": {0, 1}, "recovery": {0, 1}}


def test_who_is_not_needed_may_be_absent(folder: Path) -> None:
    run, participants = watched(folder)
    run.unlearn(CLIENT_0, run.method("retrain-or", "client"), absent=(0,))
    assert participants == {"retraining": {1, 2}}


@pytest.mark.parametrize(
    ("name", "request_", "absent"),
    [("retrain-or", CLASS_9, (0, 1, 2)), ("federaser", CLASS_9, (0, 1, 2)), ("s2u", CLIENT_0, (1, 2))],
)
def test_a_request_is_refused_when_nobody_is_there_to_serve_it(
    folder: Path, name: str, request_: UnlearningRequest, absent: tuple[int, ...]
) -> None:
    run = TrainedRun(folder)
    refused(folder, "absent", lambda: run.unlearn(request_, run.method(name, request_.level), absent))


@pytest.mark.parametrize("name", ["retrain-or", "federaser"])
def test_relearning_is_refused_when_the_client_is_absent(folder: Path, name: str) -> None:
    run = served(folder, CLIENT_0)
    refused(folder, "absent", lambda: run.relearn(CLIENT_0, run.method(name, "client"), absent=(0,)))


def test_relearning_on_original_data_is_refused_without_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Still(Relearning):
        levels, needs = frozenset({"class"}), frozenset()

    registered: Any = METHODS
    monkeypatch.setattr(registered, "_items", registered._items | {"still": Still})
    served(folder, CLASS_9)
    run = without_data(folder)
    refused(folder, "data", lambda: run.relearn(CLASS_9, Still()))  # type: ignore[arg-type]


# The command line --------------------------------------------------------------------------------------------


def test_commands_serve_show_and_evaluate(folder: Path, run: Run) -> None:
    code, out, _ = run("unlearn", NAME, "--class", "9,3", "--client", "0", "--json")
    entries = list(map(json.loads, out.splitlines()))
    assert code == 0
    assert [entry["request"] for entry in entries] == ["class-9", "class-3", "client-0"]
    assert all(Path(entry["model"]).is_file() for entry in entries)
    code, out, _ = run("relearn", NAME, "--class", "3", "--json")
    entries.append(json.loads(out))
    code, out, _ = run("show", NAME, "--json")
    shown = json.loads(out)
    assert (shown["current"], shown["forgotten"]) == (4, ["class-9", "client-0"])
    own = {"run", "model"}
    assert shown["requests"] == [{k: v for k, v in entry.items() if k not in own} for entry in entries]
    code, out, _ = run("evaluate", NAME, "--version", "1", "--json")
    found = json.loads(out)
    assert found["forgotten"] == ["class-9"]
    assert entries[0]["after"].items() <= found.items()


def test_commands_print_before_after_and_cost(folder: Path, run: Run) -> None:
    code, out, _ = run("unlearn", NAME, "--class", "9", "--quickdrop.recover-rounds", "1")
    after = TrainedRun(folder).log[0].after
    assert code == 0
    assert after is not None
    assert "version 0 → 1 · forgotten: class-9" in out
    lines = {line.split("  ")[0].strip(): line.split() for line in out.splitlines() if line}
    assert {"F-Set", "R-Set", *(f"class {c}" for c in range(10)), "unlearning", "total"} <= lines.keys()
    assert lines["R-Set"][-1] == f"{after['r_set_accuracy']:.2%}"
    assert lines["recovery"][1] == "1"
    code, out, _ = run("show", NAME)
    assert "current version 1 · forgotten: class-9" in out
    code, out, _ = run("evaluate", NAME)
    assert f"R-Set {after['r_set_accuracy']:.2%}" in out


def test_one_request_that_is_refused_keeps_back_the_others(folder: Path, run: Run) -> None:
    before = contents(folder)
    code, out, err = run("unlearn", NAME, "--class", "9,3,77")
    assert (code, out) == (2, "")
    assert "--class 77" in sentence(err)
    assert contents(folder) == before


BAD = {
    "no run": (["show", "nothing"], "RUN nothing"),
    "a name too long": (["show", "a" * 300], f"RUN {'a' * 300}"),
    "no run given": (["unlearn"], "run"),
    "no request": (["unlearn", NAME], "--class and --client"),
    "class in words": (["unlearn", NAME, "--class", "nine"], "--class nine"),
    "class out of range": (["unlearn", NAME, "--class", "10"], "--class 10: between 0 and 9"),
    "negative class": (["unlearn", NAME, "--class", "-1"], "--class -1"),
    "client out of range": (["unlearn", NAME, "--client", "3"], "--client 3: between 0 and 2"),
    "not forgotten": (["relearn", NAME, "--class", "9"], "--class 9: this is not forgotten"),
    "absent out of range": (["unlearn", NAME, "--class", "9", "--absent", "7"], "--absent 7: between 0 and 2"),
    "absent in words": (["unlearn", NAME, "--class", "9", "--absent", "all"], "--absent all"),
    "absent client": (["unlearn", NAME, "--client", "1", "--absent", "1"], "--client 1: it is absent"),
    "absent in a plan": (["unlearn", NAME, "--client", "1", "--absent", "1", "--dry-run"], "--client 1: it is absent"),
    "unknown preset": (["unlearn", NAME, "--class", "9", "--preset", "qick"], "--preset qick"),
    "method option": (["unlearn", NAME, "--class", "9", "--quickdrop.unlearn-lr", "-1"], "--quickdrop.unlearn-lr -1"),
    "unknown option": (["show", NAME, "--nope"], "--nope"),
    "version out of range": (["evaluate", NAME, "--version", "1"], "--version 1: between 0 (as trained) and 0"),
    "version of an export": (["export", NAME, "--version", "-1"], "--version -1"),
    "unknown format": (["export", NAME, "--format", "pickle"], "--format pickle"),
    "output in a file": (["export", NAME, "--output", "in_the_way/model.pt"], "--output in_the_way/model.pt"),
    "unknown precision": (["evaluate", NAME, "--precision", "8"], "--precision 8"),
}


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        *(pytest.param(*case, id=name) for name, case in BAD.items()),
        pytest.param(
            ["unlearn", NAME, "--class", "9", "--method", "quikdrop"],
            "--method quikdrop: did you mean quickdrop",
            id="unknown method",
        ),
        pytest.param(
            ["unlearn", NAME, "--client", "1", "--method", "fu-mp"],
            "--method fu-mp",
            id="method of another level",
        ),
        pytest.param(
            ["export", NAME, "--output", ""],
            "--output",
            id="empty output",
        ),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, run: Run, argv: list[str], named: str) -> None:
    before = contents(folder)
    Path("in_the_way").touch()
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert named in sentence(err)
    assert contents(folder) == before


def test_brackets_in_a_path_are_printed(folder: Path, run: Run) -> None:
    _, out, _ = run("show", str(folder.rename(folder.with_name("run[v2]"))))
    assert "run[v2]" in out


def test_an_interrupted_command_continues_as_it_says(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        break_at(patched, "quickdrop_bench.serving.versions.save_file", 2, KeyboardInterrupt())
        code, _, err = run("unlearn", NAME, "--class", "9,3")
    assert code == 130
    assert TrainedRun(folder).current == 1
    assert "the same command continues" not in err or run("unlearn", NAME, "--class", "9,3")[0] == 0


# Finding a run -----------------------------------------------------------------------------------------------


@pytest.fixture
def known(tmp_path: Path) -> Path:
    parent = tmp_path / "trained"
    for name in ("abc1", "abc2", "xyz1", "unfinished1"):
        (parent / name).mkdir(parents=True)
        if name != "unfinished1":
            (parent / name / "manifest.json").touch()
    return parent


def test_a_run_is_found_by_path_name_and_beginning(known: Path) -> None:
    for name in ("abc1", known / "abc1", Path("trained/abc1"), f"{known}/abc1/"):
        assert find_run(name, known).resolve() == known / "abc1"
    assert find_run("x", known) == find_run("xyz1", known) == known / "xyz1"


def test_a_run_that_is_not_the_only_one_is_refused(known: Path) -> None:
    with pytest.raises(BadInput, match=r"RUN abc: several begin like this: abc1, abc2\."):
        find_run("abc", known)


@pytest.mark.parametrize("name", ["nothing", "unfinished", "bc1", "abc1/clients", ""])
def test_a_run_that_is_not_there_is_refused(known: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"no trained federation is there.*there are abc1, abc2, xyz1"):
        find_run(name, known)


def test_without_any_run_the_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="train one first"):
        find_run("abc", tmp_path / "none")


# Two at a time -----------------------------------------------------------------------------------------------

HOLDER = """
import sys, time, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder / ".lock"], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


def test_a_run_serves_one_command_at_a_time_and_is_free_when_that_was_killed(folder: Path, run: Run) -> None:
    with held(folder) as holder:
        code, out, err = run("unlearn", NAME, "--class", "9")
        assert (code, out) == (2, "")
        assert "another command is working on it" in sentence(err)
        assert TrainedRun(folder).current == 0
        assert (
            run("show", NAME)[0]
            == run("evaluate", NAME)[0]
            == run("unlearn", NAME, "--class", "9", "--dry-run")[0]
            == 0
        )
        holder.kill()
        holder.wait()
        assert run("unlearn", NAME, "--class", "9")[0] == 0
    assert TrainedRun(folder).current == 1


def test_a_run_that_was_opened_before_takes_in_what_others_did(folder: Path) -> None:
    first, second = TrainedRun(folder), TrainedRun(folder)
    first.unlearn(CLASS_9)
    refused(folder, "this is forgotten already", lambda: second.unlearn(CLASS_9))
    assert second.unlearn(CLASS_3).parent == 1
    assert TrainedRun(folder).forgotten() == (CLASS_9, CLASS_3)


# Damage ------------------------------------------------------------------------------------------------------


Damage = Callable[[bytes], bytes]


def edited(**values: object) -> Damage:
    """Replace fields of the first entry; ``...`` removes one."""

    def edit(log: bytes) -> bytes:
        first, *others = log.splitlines(keepends=True)
        entry = {name: value for name, value in (json.loads(first) | values).items() if value is not ...}
        return b"".join([json.dumps(entry).encode() + b"\n", *others])

    return edit


LOG_DAMAGE: dict[str, Damage] = {
    "cut off": lambda log: log[:-40],
    "first entry gone": lambda log: log.split(b"\n", 1)[1],
    "entries in another order": lambda log: b"".join(reversed(log.splitlines(keepends=True))),
    "no JSON": lambda log: b"damaged\n" + log,
    "no UTF-8": lambda log: b"\xff\xfe" + log,
    "zeros": lambda log: bytes(len(log)),
    "a list": lambda log: b"[" + log.splitlines()[0] + b"]\n",
    "nested without end": lambda log: b"[" * 100_000,
    "version in words": edited(version="1"),
    "version true": edited(version=True),
    "no version": edited(version=...),
    "own parent": edited(parent=1),
    "unknown action": edited(action="forget"),
    "unknown request": edited(request="galaxy-1"),
    "forgotten is a text": edited(forgotten="class-9"),
    "forgotten is a number": edited(forgotten=9),
    "forgotten holds numbers": edited(forgotten=[9]),
    "cost is a number": edited(cost=1),
    "an accuracy is a text": edited(before={"f_set_accuracy": "high"}),
    "method is a number": edited(method=1),
    "checksum is missing": edited(sha256=...),
    "unknown field": edited(more=1),
}
NOT_CHECKED = "the log's reader does not look at this"


@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(damage, id=name) for name, damage in LOG_DAMAGE.items()),
        pytest.param(edited(provenance="here"), id="provenance is a text"),
        pytest.param(edited(provenance={"created_at": 5}), id="time is a number"),
        pytest.param(edited(method="[/x]"), id="unknown method"),
        pytest.param(edited(hyper_parameters=5), id="settings are a number"),
        pytest.param(edited(request="class-77"), id="unknown class"),
        pytest.param(edited(forgotten=["class-1"]), id="forgotten does not follow"),
        pytest.param(edited(forgotten=[]), id="nothing forgotten"),
    ],
)
def test_a_damaged_log_is_refused_in_one_sentence(history: Path, run: Run, damage: Damage) -> None:
    path, models = history / "requests.jsonl", versions(history)
    log = path.read_bytes()
    path.write_bytes(damage(log))
    code, out, err = run("show", NAME)
    assert (code, out) == (2, "")
    assert "requests.jsonl is damaged" in sentence(err)
    with pytest.raises(BadInput, match=r"RUN .*: requests\.jsonl is damaged"):
        TrainedRun(history)
    assert versions(history) == models
    path.write_bytes(log)
    assert TrainedRun(history).unlearn(CLIENT_0).version == 3


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_text("")], ids=["deleted", "emptied"])
def test_a_lost_log_does_not_let_versions_be_overwritten(history: Path, lose: Callable[[Path], object]) -> None:
    before = versions(history)
    lose(history / "requests.jsonl")
    with pytest.raises(BadInput, match=r"requests\.jsonl"):
        TrainedRun(history).unlearn(CLASS_9)
    assert before.items() <= versions(history).items()


def assert_newest_is_refused_and_the_older_is_readable(history: Path, run: Run) -> None:
    code, out, err = run("evaluate", NAME)
    assert (code, out) == (2, "")
    assert "0002.safetensors" in sentence(err)
    opened = TrainedRun(history)
    refused(history, r"0002\.safetensors", partial(opened.unlearn, CLIENT_0))
    refused(history, r"0002\.safetensors", partial(opened.plan, "unlearn", [(CLIENT_0, opened.method(level="client"))]))
    refused(history, r"0002\.safetensors", partial(export, opened, Path("model.safetensors"), "safetensors"))
    assert run("show", NAME)[0] == 0
    for version in (0, 1):
        assert opened.evaluate(version)
        export(opened, Path("model.safetensors"), "safetensors", version)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


FILE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "a bit flipped": flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "another version": lambda path: shutil.copy(path.with_name("0001.safetensors"), path),
}


@pytest.mark.parametrize("damage", FILE_DAMAGE.values(), ids=FILE_DAMAGE.keys())
def test_a_damaged_version_is_refused_in_one_sentence(
    history: Path, run: Run, damage: Callable[[Path], object]
) -> None:
    damage(history / "versions/0002.safetensors")
    assert_newest_is_refused_and_the_older_is_readable(history, run)


Tensors = dict[str, torch.Tensor]


def test_a_version_that_is_no_file_is_refused_without_reading_it(history: Path, run: Run) -> None:
    path = history / "versions/0002.safetensors"
    path.unlink()
    os.mkfifo(path)
    code, _, err = run("export", str(history))
    assert (code, "0002.safetensors is missing or damaged" in err) == (2, True)


def test_a_version_that_is_too_large_is_refused_without_reading_it(history: Path, run: Run) -> None:
    with (history / "versions/0002.safetensors").open("r+b") as file:
        file.truncate(2**40)
    code, _, err = run("export", str(history))
    assert (code, "0002.safetensors is larger than the model" in err) == (2, True)


SPEC_DAMAGE = {
    "no seed": ("seed: 1", "other: 1", "does not say the seed"),
    "no number": ("width: 4", "width: four", "describes no federation"),
    "another model": ("width: 4", "width: 8", "and the model has"),
    "a giant model": ("width: 4", "width: 4096", "and the model has"),
    "an impossible model": ("width: 4", "width: 0", "describes no federation"),
}


@pytest.mark.parametrize(("old", "new", "sentence"), SPEC_DAMAGE.values(), ids=SPEC_DAMAGE.keys())
def test_a_spec_that_is_not_the_models_is_refused(folder: Path, run: Run, old: str, new: str, sentence: str) -> None:
    config, manifest = folder / "config.yaml", folder / "manifest.json"
    entry = {"bytes": config.stat().st_size, "sha256": hashlib.sha256(config.read_bytes()).hexdigest()}
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    changed = {"bytes": config.stat().st_size, "sha256": hashlib.sha256(config.read_bytes()).hexdigest()}
    values = json.loads(manifest.read_text())
    assert values["files"]["config.yaml"] == entry
    values["files"]["config.yaml"] = changed
    manifest.write_text(json.dumps(values))
    code, _, err = run("export", str(folder))
    assert (code, "Traceback" in err, sentence in err) == (2, False, True)


MODEL_DAMAGE: dict[str, Callable[[Tensors], Tensors]] = {
    "not finite": lambda state: {name: value * float("nan") for name, value in state.items()},
    "other shapes": lambda state: {name: value[:1].clone() for name, value in state.items()},
    "a tensor is missing": lambda state: dict(list(state.items())[1:]),
    "a tensor too many": lambda state: state | {"more": torch.zeros(1)},
    "whole numbers": lambda state: {name: value.to(torch.int64) for name, value in state.items()},
}


@pytest.mark.parametrize("damage", MODEL_DAMAGE.values(), ids=MODEL_DAMAGE.keys())
def test_a_version_that_is_no_model_of_the_run_is_refused(
    history: Path, run: Run, damage: Callable[[Tensors], Tensors]
) -> None:
    path, log = history / "versions/0002.safetensors", history / "requests.jsonl"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    save_file(damage(load_file(path)), path)
    log.write_text(log.read_text().replace(before, hashlib.sha256(path.read_bytes()).hexdigest()))
    assert_newest_is_refused_and_the_older_is_readable(history, run)


# Crashes -----------------------------------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, "No space left on device")
WRITE_STEPS = {
    "save_file": ("quickdrop_bench.serving.versions.save_file", 1),
    "fsync": ("os.fsync", 2),
    "replace": ("pathlib.Path.replace", 2),
    "write_text": ("pathlib.Path.write_text", 1),
}
"""Where a request writes, and how often."""


def failing_at(count: int, real: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    calls = iter(range(1, 100))

    def call(*args: Any, **options: Any) -> Any:
        if next(calls) == count:
            raise error
        return real(*args, **options)

    return call


def break_at(monkeypatch: pytest.MonkeyPatch, target: str, count: int, error: BaseException = FULL) -> None:
    monkeypatch.setattr(target, failing_at(count, pkgutil.resolve_name(target), error))


@pytest.mark.parametrize(
    ("target", "count"),
    [pytest.param(t, k, id=f"{name} {k}") for name, (t, most) in WRITE_STEPS.items() for k in range(1, most + 1)],
)
def test_a_full_disk_leaves_the_last_good_state(
    folder: Path, target: str, count: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(folder, CLASS_9)
    before = contents(folder)
    with monkeypatch.context() as patched:
        break_at(patched, target, count)
        code, _, err = run("unlearn", NAME, "--class", "3")
    assert code == 2
    assert f"RUN artifacts/{NAME}: it cannot be written" in sentence(err)
    assert before.items() <= contents(folder).items()
    assert {path.name for path in folder.rglob(".*")} <= {".lock", ".training.lock"}
    after = TrainedRun(folder)
    assert (after.current, after.forgotten()) == (1, (CLASS_9,))
    assert after.unlearn(CLASS_3).version == 2
    assert TrainedRun(folder).evaluate().keys() == after.evaluate().keys()


def test_these_are_all_the_steps_of_a_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = served(folder, CLASS_9)
    for target, most in WRITE_STEPS.values():
        with monkeypatch.context() as patched:
            break_at(patched, target, most + 1)
            run.unlearn(CLASS_3)
        run.relearn(CLASS_3)


def test_a_run_in_memory_is_what_is_on_disk_after_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = served(folder, CLASS_9)
    with monkeypatch.context() as patched:
        break_at(patched, "os.fsync", 2)
        with pytest.raises(BadInput, match="cannot be written"):
            run.unlearn(CLASS_3)
    assert (run.current, run.forgotten()) == (1, (CLASS_9,))


@pytest.mark.parametrize("size", [100, 3000], ids=["model", "log"])
def test_a_disk_that_is_really_full_leaves_the_last_good_state(folder: Path, size: int) -> None:
    run = served(folder, CLASS_9)
    before = contents(folder)
    with largest_file(size), pytest.raises(BadInput, match="cannot be written"):
        run.unlearn(CLASS_3)
    assert before.items() <= contents(folder).items()
    assert TrainedRun(folder).unlearn(CLASS_3).version == 2


def test_an_export_to_a_full_disk_is_refused(folder: Path) -> None:
    run = TrainedRun(folder)
    with largest_file(100), pytest.raises(BadInput, match="--output"):
        export(run, Path("model.safetensors"), "safetensors")


@pytest.mark.parametrize("obstacle", [".lock", "versions"])
def test_a_folder_that_cannot_be_written_is_refused_and_read(folder: Path, run: Run, obstacle: str) -> None:
    if obstacle == ".lock":
        (folder / ".lock").mkdir()
    else:
        (folder / "versions").touch()
    code, out, err = run("unlearn", NAME, "--class", "9")
    assert (code, out) == (2, "")
    assert "it cannot be written" in sentence(err)
    assert run("show", NAME)[0] == run("evaluate", NAME)[0] == 0


def test_a_model_that_nothing_names_does_no_harm(folder: Path) -> None:
    run = served(folder, CLASS_9)
    (folder / "versions/.0002.new.safetensors").write_bytes(b"from a process that was killed")
    (folder / "versions/.0002.99.tmp.safetensors").write_bytes(b"half")
    assert TrainedRun(folder).current == 1
    run.unlearn(CLASS_3)
    assert TrainedRun(folder).state(2).keys() == run.state(0).keys()


def test_the_next_request_clears_away_what_a_killed_process_was_writing(folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-S", "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    half = folder / f"versions/.0001.{int(ended.stdout)}.tmp.safetensors"
    half.parent.mkdir()
    half.write_bytes(b"half of a model")
    served(folder, CLASS_9)
    assert not half.exists()


# Divergence --------------------------------------------------------------------------------------------------


def test_a_request_that_diverges_leaves_the_current_version(folder: Path, run: Run) -> None:
    served(folder, CLASS_9)
    before = contents(folder)
    code, out, err = run("unlearn", NAME, "--class", "3", *UNBOUNDED)
    assert (code, out) == (1, "")
    assert err == "quickdrop-bench: quickdrop diverged on class-3; version 1 stays the current one\n"
    assert contents(folder) == before
    assert run("unlearn", NAME, "--class", "3")[0] == 0


def test_what_was_served_before_a_divergence_stays(folder: Path) -> None:
    assert main(["unlearn", NAME, "--class", "9", "--client", "0", "--quickdrop.recover-lr", "1e38"]) == 1
    run = TrainedRun(folder)
    assert run.current == len(versions(folder)) == len(run.log)
    assert all(value.isfinite().all() for value in run.state().values())
