"""Runs in W&B, told to a stand-in that keeps a record and fails on demand."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import wandb as package
from jsonargparse import Namespace

from quickdrop_bench.cli.main import main
from quickdrop_bench.cli.progress import ProgressDisplay
from quickdrop_bench.cli.resolve import parse
from quickdrop_bench.cli.runner import _process
from quickdrop_bench.core.cost import Clock
from quickdrop_bench.harness.callbacks import EVALUATION, TRAINING, UNLEARNING
from quickdrop_bench.harness.session import Session
from quickdrop_bench.methods import METHODS, Method
from quickdrop_bench.tracking.wandb_logger import _name, tracking
from tests.conftest import TINY, Run, accuracies, json_lines
from tests.recorded_wandb import Recorded, Wandb, event

TRAIN = ["train", *TINY]
TABLE = ["table", "2", *TINY]
QUICKDROP = [*TABLE, "--methods", "quickdrop"]
SWEEP = ["sweep", *TINY, "--scales", "10", "--methods", "quickdrop"]
TRAINED = "training · digits · N=3 · α=0.1 · s=10 · seed 1"
EVALUATED = "original · class-9 · digits · s=10 · α=0.1 · seed 1"
REQUEST = "quickdrop · class-9 · digits · s=10 · α=0.1 · seed 1"


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who never used W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wandb:
    stand_in = Wandb(tmp_path / "wandb")
    for call in ("setup", "login", "init"):
        monkeypatch.setattr(package, call, getattr(stand_in, call))
    return stand_in


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a federation was trained and ``quickdrop`` was measured without W&B."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.chdir(folder)
        assert main([*QUICKDROP, "--wandb", "disabled"]) == 0
    return folder


@pytest.fixture
def measured(undisturbed: Path, tmp_path: Path) -> None:
    """The same, here."""
    for name in ("artifacts", "results"):
        shutil.copytree(undisturbed / name, tmp_path / name)


def measured_in(folder: Path) -> list[tuple[object, ...]]:
    return accuracies(json_lines(folder / "results/quick/table2/rows.jsonl"))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def options(mode: str = "auto", project: str | None = None, entity: str | None = None) -> Namespace:
    return Namespace(wandb=mode, wandb_project=project, wandb_entity=entity)


MODES = {
    "no key": ("auto", "online", False, "offline"),
    "key": ("auto", "online", True, "online"),
    "older word for online": ("auto", "run", True, "online"),
    "offline by the environment": ("auto", "offline", True, "offline"),
    "older word for offline": ("auto", "dryrun", True, "offline"),
    "online above the environment": ("online", "offline", True, "online"),
    "offline above the environment": ("offline", "online", True, "offline"),
    "online without a key": ("online", "online", False, "offline"),
}


@pytest.mark.parametrize(("asked", "known", "has_key", "mode"), MODES.values(), ids=MODES.keys())
def test_mode_is_that_of_options_environment_and_key(
    wandb: Wandb,
    asked: str,
    known: str,
    has_key: bool,
    mode: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wandb.mode, wandb.has_key = known, has_key
    with tracking(options(asked)) as tracker:
        assert tracker is not None
        tracker.on_run_start(event())
    assert [(r.mode, r.name, r.kind, r.exit_code) for r in wandb.runs] == [(mode, REQUEST, UNLEARNING, 0)]
    there = f"kept offline; browse: wandb leet {wandb.folder}" if mode == "offline" else "in project quickdrop-bench"
    assert f"W&B: 1 run {there}" in capsys.readouterr().err
    said = ["no API key is configured"] if (asked, has_key) == ("online", False) else []
    assert [part for part, text in zip(said, warnings(caplog), strict=True) if part in text] == said


def test_project_and_entity_are_passed_on(wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "of the environment")
    for asked in (options(entity="we"), options(project="ours")):
        with tracking(asked) as tracker:
            assert tracker is not None
            tracker.on_run_start(event())
    named = [(r.about["project"], r.about["entity"]) for r in wandb.runs]
    assert named == [("of the environment", "we"), ("ours", None)]


def test_unreachable_wandb_means_offline_with_a_warning(wandb: Wandb, caplog: pytest.LogCaptureFixture) -> None:
    wandb.has_key, wandb.left = True, {"init online": 1}
    with tracking(options()) as tracker:
        assert tracker is not None
        for seed in range(3):
            tracker.on_run_start(event(seed=seed))
    assert [(r.mode, r.exit_code) for r in wandb.runs] == [("online", 0), ("offline", 0), ("offline", 0)]
    (warning,) = warnings(caplog)
    assert warning.startswith("W&B cannot be reached; runs are kept offline: RuntimeError('init online: no")


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--wandb", "disabled", "--force"], ["--force"], []], ids=["option", "mode", "old"])
def test_without_runs_the_package_is_not_imported(
    run: Run, measured: None, more: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    if more == ["--force"]:
        monkeypatch.setenv("WANDB_MODE", "disabled")
    code, _, err = run(*QUICKDROP, *more)
    assert (code, warnings(caplog), "W&B" in err) == (0, [], False)


FAILURES = {"init": 0, "log": 4, "log_artifact": 0, "finish": 1, "import": 0}
"""Calls that fail, and how often they work before; last, the package is missing."""


@pytest.mark.slow
@pytest.mark.parametrize("call", FAILURES)
def test_failing_wandb_is_said_once_and_changes_nothing(
    run: Run,
    wandb: Wandb,
    call: str,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wandb.left = {call: FAILURES[call]}
    if call == "import":
        monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(*QUICKDROP)[0] == 0
    assert measured_in(Path()) == measured_in(undisturbed)
    (warning,) = warnings(caplog)
    assert warning.startswith("W&B failed and is left out from here on")
    assert "\n" not in warning
    assert f"{call}: no" in warning or call == "import"
    if call.startswith("log"):
        assert [r.exit_code for r in wandb.runs][-1] == 1


@pytest.mark.slow
def test_trained_federation_is_not_trained_again(run: Run, wandb: Wandb, measured: None) -> None:
    run("figure", "2", *TINY)
    assert [r.kind for r in wandb.runs] == [EVALUATION, UNLEARNING, "artefact"]
    assert not any(r.made for r in wandb.runs)
    assert len(wandb.runs[-1].logged("figure")) == len(wandb.runs[-1].logged("table")) == 1


@pytest.mark.slow
def test_requests_one_after_the_other_are_one_run(run: Run, wandb: Wandb, measured: None) -> None:
    run(*QUICKDROP, "--class", "9,3,1")
    (one,) = wandb.of_kind(UNLEARNING)
    assert (one.name, one.exit_code) == ("quickdrop · 3 requests · digits · s=10 · α=0.1 · seed 1", 0)
    assert one.logged("request") == [1, 2, 3]
    assert one.logged("stage") == [1, 2, 4, 5, 7, 8]
    assert one.logged("round") == [*range(1, 10)]  # each has one of unlearning and two of recovery
    retained = one.logged("per_request/r_set_accuracy")
    assert retained == one.logged("per_stage/r_set_accuracy")[1::2]
    assert one.summary["total/r_set_accuracy"] == retained[-1]
    assert one.config["request"] == "class-9>class-3>class-1"
    (original,) = wandb.of_kind(EVALUATION)
    assert len(original.logged("per_request/r_set_accuracy")) == 3


@pytest.mark.slow
def test_methods_that_fail_or_diverge_end_as_failed(
    run: Run, wandb: Wandb, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Method, context: object) -> NoReturn:
        raise RuntimeError("no")

    monkeypatch.setattr(METHODS["random-subset"], "unlearn", fail)
    wild = ["--sga-or.unlearn-lr", "1e30", "--sga-or.unlearn-stop-loss", "null"]
    methods = "sga-or,random-subset,quickdrop"
    assert run(*TABLE, "--methods", methods, "--class", "9,3", "--results-dir", "others", *wild)[0] == 1
    codes = {r.config["method"]: r.exit_code for r in wandb.of_kind(UNLEARNING)}
    assert codes == {"sga-or": 1, "random-subset": 1, "quickdrop": 0}
    assert wandb.runs[-1].kind == "artefact"
    by_method = {r.config["method"]: r.summary for r in wandb.of_kind(UNLEARNING)}
    assert (by_method["random-subset"]["total/failed"], by_method["sga-or"]["total/diverged"]) == (1, 1)


@pytest.mark.slow
def test_training_that_diverges_and_a_run_that_cannot_start_are_failed_ones(
    run: Run, wandb: Wandb, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(self: Session, name: str) -> NoReturn:
        raise RuntimeError("nothing was found")

    assert run(*QUICKDROP, "--lr", "1e30", "--class", "9,3")[0] == 1
    assert [(r.name, r.exit_code) for r in wandb.of_kind(TRAINING)] == [(TRAINED, 1)]
    wandb.runs.clear()
    monkeypatch.setattr(Session, "configured", search)
    run(*QUICKDROP, "--results-dir", "others")
    assert [(r.name, r.exit_code) for r in wandb.of_kind(UNLEARNING)] == [(REQUEST, 1)]


@pytest.mark.slow
def test_interrupted_run_ends_as_failed(run: Run, wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ProgressDisplay.on_round_end

    def interrupt(self: ProgressDisplay, federation: Any, info: Any) -> None:
        shown(self, federation, info)
        if (info.phase.name, info.round) == ("recovery", 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressDisplay, "on_round_end", interrupt)
    assert run(*QUICKDROP)[0] == 130
    assert [(r.name, r.exit_code) for r in wandb.runs] == [(TRAINED, 0), (EVALUATED, 0), (REQUEST, 1)]


@pytest.mark.slow
def test_run_that_an_agent_waits_for_is_the_artefacts(
    run: Run, wandb: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parameters.yaml").write_text("wandb_version: 1\nscales:\n  value: 10\n")
    given = {"sweep_id": "s", "run_id": "chosen", "sweep_param_path": str(tmp_path / "parameters.yaml")}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name.upper()}", value)
    assert run(*SWEEP)[0] == 0
    settings = {r.kind: dict(r.about["settings"]) for r in wandb.runs}
    assert settings.keys() == {TRAINING, EVALUATION, UNLEARNING, "artefact"}
    for kind, own in settings.items():
        assert {name: own[name] for name in given} == (given if kind == "artefact" else dict.fromkeys(given))
    assert not {f"WANDB_{name.upper()}" for name in given} & os.environ.keys()
    (request,), (artefact,) = wandb.of_kind(UNLEARNING), wandb.of_kind("artefact")
    assert artefact.config["scales"] == 10
    for metric in ("total/r_set_accuracy", "total/f_set_accuracy", "total/seconds"):
        assert artefact.summary[metric] == pytest.approx(request.summary[metric], rel=1e-4)  # from a CSV
    wandb.runs.clear()
    monkeypatch.setenv("WANDB_RUN_ID", "again")
    run(*SWEEP)  # all of it was measured before
    assert [(r.kind, r.about["settings"].run_id, r.exit_code) for r in wandb.runs] == [("artefact", "again", 0)]


@pytest.mark.slow
def test_process_of_its_own_logs_its_cells(wandb: Wandb, measured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("die_with_parent", "keep_freed_memory"):
        monkeypatch.setattr(f"quickdrop_bench.cli.runner.{name}", lambda: None)
    with pytest.raises(SystemExit):
        _process("sweep", parse([*SWEEP, "--force"]), [(0, 1)], 1)
    assert [(r.kind, r.exit_code) for r in wandb.runs] == [(EVALUATION, 0), (UNLEARNING, 0)]


@pytest.mark.slow
def test_fine_tuning_is_drawn_over_its_initialisations(run: Run, wandb: Wandb) -> None:
    run(*TRAIN)
    run(*TRAIN, "--fine-tune", "2", "--fine-tune-epochs", "1", "--fine-tune-steps", "1")
    assert [r.name for r in wandb.runs] == [TRAINED, TRAINED.replace("s=10", "s=10 · F=2")]
    assert wandb.runs[-1].logged("initialisation") == [1, 2]
    assert len(wandb.runs[-1].logged("fine_tuning/matching_distance")) == 2
    assert [len(r.made) for r in wandb.runs] == [1, 1]


@pytest.mark.slow
def test_rounds_of_a_search_are_in_no_run(
    run: Run, wandb: Wandb, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(METHODS["quickdrop"], "search", {"recovery": {"recover_lr": (0.05,)}})
    _, _, err = run(*QUICKDROP, "--protocol", "tuned")
    assert err.count("quickdrop · recovery") > 2
    (one,) = wandb.of_kind(UNLEARNING)
    assert "tuned" in one.name
    assert one.logged("round") == [1, 2, 3]
    assert "round" not in {key for r in wandb.of_kind(EVALUATION) for line in r.history for key in line}


@pytest.mark.slow
def test_served_requests_are_logged_when_asked_and_only_if_they_are_served(
    run: Run, wandb: Wandb, measured: None
) -> None:
    federation = next(Path("artifacts").glob("[!.]*")).name
    assert run("unlearn", federation, "--class", "9", "--json")[0] == 0
    assert not wandb.runs
    code, out, err = run("unlearn", federation, "--class", "3", "--json", "--wandb", "offline")
    entry = json.loads(out)
    assert code == 0
    assert "W&B: 1 run kept offline" in err
    assert run("relearn", federation, "--class", "3", "--wandb", "auto")[0] == 0
    unlearnt, relearnt = wandb.runs
    assert [(r.kind, r.exit_code, r.about["group"]) for r in wandb.runs] == [
        ("unlearn", 0, "unlearn-quick"),
        ("relearn", 0, "relearn-quick"),
    ]
    assert unlearnt.name == REQUEST.replace("9", "3")
    assert unlearnt.config["federation_hash"] == federation
    assert unlearnt.config["hyper_parameters"]["unlearn_lr"] == 0.02
    assert (unlearnt.logged("round"), unlearnt.logged("stage")) == ([1, 2, 3], [1, 2])
    assert unlearnt.logged("per_stage/seconds") == [entry["cost"][s]["seconds"] for s in ("unlearning", "recovery")]
    for name in ("f_set_accuracy", "r_set_accuracy"):
        assert unlearnt.summary[f"total/{name}"] == entry["after"][name]
        assert unlearnt.summary[f"total/{name}_before"] == entry["before"][name]
    assert unlearnt.summary["total/version"] == 2
    assert relearnt.logged("stage") == [3]
    assert run("relearn", federation, "--class", "0", "--wandb", "offline")[0] == 2  # it is not forgotten
    wild = ["--quickdrop.unlearn-lr", "1e30", "--quickdrop.unlearn-stop-loss", "null"]
    assert run("unlearn", federation, "--class", "0", "--wandb", "offline", *wild)[0] == 1
    assert [r.exit_code for r in wandb.runs[2:]] == [1]


@pytest.mark.parametrize("requests", [1, 10])
@pytest.mark.parametrize("kind", [TRAINING, EVALUATION, UNLEARNING])
def test_names_are_short_and_end_with_the_seed(kind: str, requests: int) -> None:
    long = {"dataset": "imagefolder:a-folder-with-a-long-name", "clients": 100, "distribution": "dirichlet-0.05"}
    long |= {"request": "class-12", "protocol": "letter-passes", "scale": 1000.0, "fine_tuning": 200}
    name = _name(event(kind, "a-method-with-a-long-name", 1234, requests, **long))
    assert len(name) < 60
    assert name.endswith(" · seed 1234")
    name = _name(event(kind, "random-subset", 1, requests, **long | {"dataset": "cifar10", "protocol": "preset"}))
    assert len(name) < 60
    assert "cifar10" in name
    assert "s=1000" in name


@pytest.mark.slow
def test_nothing_is_logged_while_a_clock_runs(run: Run, wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    running, log, timed = Clock.running, Recorded.log, [0]

    @contextmanager
    def noted(self: Clock) -> Iterator[None]:
        with running(self):
            timed[0] += 1
            yield
            timed[0] -= 1

    def check(self: Recorded, metrics: Mapping[str, Any]) -> None:
        assert not timed[0]
        log(self, metrics)

    monkeypatch.setattr(Clock, "running", noted)
    monkeypatch.setattr(Recorded, "log", check)
    run(*QUICKDROP)
    assert [r.exit_code for r in wandb.runs] == [0] * 4
    assert all(r.history for r in wandb.runs)
