"""Mirroring into W&B, told to a stand-in that keeps a record and fails on demand."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import pytest

from quickdrop_bench.cli import main
from quickdrop_bench.errors import BadInput
from quickdrop_bench.harness.experiment import Session
from quickdrop_bench.listener import encode
from quickdrop_bench.methods import METHODS, Method
from quickdrop_bench.mirror import Mirror
from quickdrop_bench.produce import _process
from quickdrop_bench.progress import ProgressDisplay
from quickdrop_bench.tracking import resolve_mode, tracker_of
from tests.conftest import TINY, Run

pytestmark = pytest.mark.slow

TRAIN = ["train", *TINY]
TABLE = ["table", "2", *TINY]
BOTH = [*TABLE, "--methods", "retrain-or,quickdrop"]
QUICKDROP = [*TABLE, "--methods", "quickdrop"]
TRAINING = "fl-training · digits · 3 clients · dirichlet-0.1 · s = 10 · seed 1"
REQUEST = "quickdrop · class-9 · digits · seed 1"
KEY = {"WANDB_API_KEY": "k" * 40}


@dataclass
class Artifact:
    name: str
    type: str
    description: str
    metadata: Mapping[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    def add_file(self, path: str, name: str) -> None:
        self.files[name] = path

    def add_reference(self, uri: str, name: str, checksum: bool) -> None:
        self.files[name] = uri


@dataclass
class Recorded:
    """A W&B run as it was described, and what it was told."""

    wandb: Wandb
    mode: str
    about: dict[str, Any]
    dir: str
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    made: list[Artifact] = field(default_factory=list)
    used: list[Artifact] = field(default_factory=list)
    exit_code: int | None = None
    id: str = "id"
    start_time: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        return str(self.about["name"])

    @property
    def kind(self) -> str:
        return str(self.about["job_type"])

    def logged(self, key: str) -> list[Any]:
        return [line[key] for line in self.history if key in line]

    def define_metric(self, name: str, step_metric: str | None = None) -> None: ...

    def log(self, metrics: Mapping[str, Any]) -> None:
        self.wandb.try_to("log")
        self.history.append(dict(metrics))

    def log_artifact(self, artifact: Artifact, aliases: list[str]) -> None:
        self.wandb.try_to("log_artifact")
        self.made.append(artifact)

    def _log_artifact(self, artifact: Artifact, *, is_user_created: bool, use_after_commit: bool) -> None:
        self.wandb.try_to("use_artifact")
        self.used.append(artifact)

    def finish(self, exit_code: int = 0) -> None:
        self.wandb.try_to("finish")
        self.exit_code = exit_code


class Wandb(ModuleType):
    """Stands in for the package: keeps its runs, and lets calls fail."""

    def __init__(self, folder: Path) -> None:
        super().__init__("wandb")
        self.folder = folder
        self.runs: list[Recorded] = []
        self.left: dict[str, int] = {}
        """Calls that fail, and how often they still work before."""
        self.Settings, self.Artifact = SimpleNamespace, Artifact
        self.plot = SimpleNamespace(line_series=lambda **chart: chart)

    def setup(self, settings: SimpleNamespace) -> None:
        assert settings.silent

    def try_to(self, call: str) -> None:
        if call in self.left and (left := self.left[call]) <= 0:
            raise RuntimeError(f"{call}: no\nluck ({left})")
        self.left = {name: left - (name == call) for name, left in self.left.items()}

    def init(self, *, mode: str, **about: Any) -> Recorded:
        self.try_to("init")
        self.try_to(f"init {mode}")
        self.runs.append(Recorded(self, mode, about, str(self.folder / f"run-{len(self.runs)}" / "files")))
        return self.runs[-1]

    @staticmethod
    def Table(columns: list[str], data: list[Any], **types: Any) -> list[Any]:  # noqa: N802
        return data

    @staticmethod
    def Image(source: Any, caption: str | None = None) -> Any:  # noqa: N802
        return source

    @staticmethod
    def plot_table(definition: str, table: list[Any], fields: Mapping[str, str], texts: Mapping[str, str]) -> list[Any]:
        return table

    def one(self, name: str) -> Recorded:
        (found,) = (run for run in self.runs if run.name == name)
        return found

    def of_kind(self, kind: str) -> list[Recorded]:
        return [run for run in self.runs if run.kind == kind]


class HereAndNow:
    """Stands in for the process: what it is told is handled at once, after the same way through JSON."""

    errors = ""

    def __init__(self, module: str) -> None:
        assert module == "quickdrop_bench.mirror"
        self._mirror, self._answers = Mirror(), deque[Any]()

    def tell(self, event: Mapping[str, Any]) -> None:
        answer = self._mirror.handle(json.loads(encode(event)))
        self._answers.append(json.loads(json.dumps(answer)))

    def answers(self) -> Iterator[Any]:
        while self._answers:
            yield self._answers.popleft()

    def close(self) -> None:
        self._mirror.end()

    def abandon(self) -> None: ...


def ask(*args: object, **kwargs: object) -> NoReturn:
    raise AssertionError("somebody was asked")


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of somebody who never used W&B; returns where a netrc would lie."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "home" / ".netrc"
    path.parent.mkdir()
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.setenv("NETRC", str(path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(path.parent))
    monkeypatch.setattr("quickdrop_bench.tracking.listener", HereAndNow)
    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("getpass.getpass", ask)
    return path


@pytest.fixture
def wandb(nobody: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wandb:
    package = Wandb(tmp_path / "wandb")
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


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


def accuracies(folder: Path = Path()) -> list[tuple[object, ...]]:
    rows = map(json.loads, (folder / "results/quick/table2/rows.jsonl").read_text().splitlines())
    keys = ("seed", "method", "stage", "metric", "value")
    return [tuple(r[k] for k in keys) for r in rows if "accuracy" in r["metric"]]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it fails."""
    monkeypatch.setitem(sys.modules, "wandb", None)


ENVIRONMENTS: dict[str, tuple[dict[str, str], str]] = {
    "nothing": ({}, "offline"),
    "key": (KEY, "online"),
    "identity token": ({"WANDB_IDENTITY_TOKEN_FILE": "token"}, "online"),
    "mode above key": ({"WANDB_MODE": "offline", **KEY}, "offline"),
    "online with a key": ({"WANDB_MODE": "online", **KEY}, "online"),
    "disabled": ({"WANDB_MODE": "disabled", **KEY}, "disabled"),
    "older word for offline": ({"WANDB_MODE": "dryrun", **KEY}, "offline"),
    "older word for online": ({"WANDB_MODE": "run", **KEY}, "online"),
    "unknown mode": ({"WANDB_MODE": "nonsense"}, "offline"),
    "empty key": ({"WANDB_API_KEY": ""}, "offline"),
}


@pytest.mark.parametrize(("environment", "mode"), ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())
def test_auto_follows_the_environment(
    nobody: Path, environment: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve_mode("auto") == mode


def test_auto_is_offline_without_a_key_whatever_wandb_mode_says(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert resolve_mode("auto") == "offline"


def test_auto_is_online_with_a_key_of_the_server_in_netrc(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody.write_text("machine my.server:8080\n  login user\n  password k\n")
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "http://my.server:8080")
    assert resolve_mode("auto") == "online"


def test_netrc_is_looked_for_at_home(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NETRC")
    nobody.write_text("machine api.wandb.ai login user password k")
    assert resolve_mode("auto") == "online"


OWN_SERVER = "[default]\nbase_url = http://my.server:8080\n"
NETRC: dict[str, tuple[bytes, str, str]] = {
    "of the default server": (b"machine api.wandb.ai\n  login user\n  password k\n", "", "online"),
    "of another machine": (b"machine example.org login user password k", "", "offline"),
    "no netrc at all": (b"machine", "", "offline"),
    "as written by wandb login": (
        b"machine api.forge.coreweave.com\n  login user\n  password k\n",
        "",
        "online",
    ),
    "without a password": (b"machine api.wandb.ai login user", "", "offline"),
    "as written by wandb login --host": (
        b"machine my.server:8080 login user password k",
        OWN_SERVER,
        "online",
    ),
    "of another server than the settings name": (
        b"machine api.wandb.ai login user password k",
        OWN_SERVER,
        "offline",
    ),
    "in an old encoding": (b"# caf\xe9\n", "", "offline"),
}


@pytest.mark.parametrize(("netrc", "settings", "mode"), NETRC.values(), ids=NETRC.keys())
def test_auto_finds_the_key_that_wandb_would_find(nobody: Path, netrc: bytes, settings: str, mode: str) -> None:
    nobody.write_bytes(netrc)
    (nobody.parent / "settings").write_text(settings)
    assert resolve_mode("auto") == mode


def test_auto_is_offline_for_somebody_without_a_home(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NETRC")
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert resolve_mode("auto") == "offline"


def test_default_is_offline_without_a_word_but_where_it_is(
    run: Run, wandb: Wandb, caplog: pytest.LogCaptureFixture
) -> None:
    code, _, err = run(*TRAIN)
    assert code == 0
    assert [(r.mode, r.name, r.kind, r.exit_code) for r in wandb.runs] == [("offline", TRAINING, "fl-training", 0)]
    assert f"1 run kept offline; browse: wandb leet {wandb.folder}" in err
    assert not warnings(caplog)


def test_online_without_a_key_is_offline_with_a_warning(
    run: Run, wandb: Wandb, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(*TRAIN, "--wandb", "online")[0] == 0
    assert [r.mode for r in wandb.runs] == ["offline"]
    (warning,) = warnings(caplog)
    assert "no API key is configured" in warning


def test_project_and_entity_are_passed_on(run: Run, wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("WANDB_PROJECT", "of the environment")
    _, _, err = run(*TRAIN, "--wandb-project", "ours", "--wandb-entity", "we")
    (one,) = wandb.runs
    assert (one.mode, one.about["project"], one.about["entity"]) == ("online", "ours", "we")
    assert "in project ours" in err


def test_project_may_come_from_the_environment(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "of the environment")
    args = SimpleNamespace(wandb="offline", wandb_project=None, wandb_entity=None, wandb_images=False)
    tracker = tracker_of(args)
    assert tracker
    assert tracker.name == "of the environment"


@pytest.mark.parametrize("how", ["option", "environment"])
def test_disabled_imports_nothing(
    run: Run, nobody: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_package(monkeypatch)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    code, _, err = run(*TRAIN, *(["--wandb", "disabled"] if how == "option" else []))
    assert (code, warnings(caplog), "W&B" in err) == (0, [], False)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--wandb", "sometimes", "use one of auto, online, offline, disabled."),
        ("--wandb-project", "a/b", "none of / \\ # ? % :."),
        ("--wandb-project", "x" * 129, "at most 128 characters"),
        ("--wandb-project", " ", "at most 128 characters"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, wandb: Wandb, option: str, value: str, allowed: str) -> None:
    code, out, err = run(*QUICKDROP, option, value)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"quickdrop-bench: {option} {value}: ")
    assert allowed in err
    assert not list(Path("artifacts").glob("*"))


def test_unknown_mode_raises(nobody: Path) -> None:
    with pytest.raises(BadInput, match="sometimes"):
        resolve_mode("sometimes")


FAILURES = {"init": 0, "log": 4, "log_artifact": 0, "use_artifact": 0, "finish": 1}
"""Calls that fail, and how often they work before."""


@pytest.mark.parametrize("call", FAILURES)
def test_failing_wandb_is_said_once_and_changes_nothing(
    run: Run, wandb: Wandb, call: str, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.left = {call: FAILURES[call]}
    assert run(*QUICKDROP)[0] == 0
    assert accuracies() == accuracies(undisturbed)
    (warning,) = warnings(caplog)
    assert warning.startswith("W&B failed and is left out from here on")
    assert f"{call}: no luck" in warning


def test_run_in_which_wandb_failed_ends_as_failed(run: Run, wandb: Wandb) -> None:
    wandb.left = {"log": 4}
    run(*QUICKDROP)
    assert [r.exit_code for r in wandb.runs] == [1]


def test_missing_wandb_is_said_once_and_changes_nothing(
    run: Run, nobody: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_package(monkeypatch)
    assert run(*QUICKDROP)[0] == 0
    assert accuracies() == accuracies(undisturbed)
    (warning,) = warnings(caplog)
    assert "left out from here on" in warning


def test_unreachable_wandb_means_offline_with_a_warning(
    run: Run, wandb: Wandb, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    wandb.left = {"init online": 1}
    assert run(*QUICKDROP)[0] == 0
    assert accuracies() == accuracies(undisturbed)
    assert [r.mode for r in wandb.runs] == ["online", "offline", "offline"]
    assert {r.exit_code for r in wandb.runs} == {0}
    (warning,) = warnings(caplog)
    assert warning == "W&B cannot be reached; runs are kept offline: init online: no luck (0)"


def test_methods_that_fail_or_diverge_end_as_failed(
    run: Run, wandb: Wandb, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Method, context: object) -> NoReturn:
        raise RuntimeError("no")

    monkeypatch.setattr(METHODS["random-subset"], "unlearn", fail)
    wild = ["--sga-or.unlearn-lr", "1e30", "--sga-or.unlearn-stop-loss", "null"]
    assert run(*TABLE, "--methods", "sga-or,random-subset,quickdrop", "--results-dir", "others", *wild)[0] == 1
    codes = {r.about["config"]["method"]: r.exit_code for r in wandb.of_kind("unlearning")}
    assert codes == {"sga-or": 1, "random-subset": 1, "quickdrop": 0}
    assert wandb.runs[-1].kind == "artefact"
    by_method = {r.about["config"]["method"]: r.summary for r in wandb.of_kind("unlearning")}
    assert (by_method["random-subset"]["total/failed"], by_method["sga-or"]["total/diverged"]) == (1, 1)


def test_training_that_diverges_at_once_is_a_failed_run(run: Run, wandb: Wandb) -> None:
    assert run(*QUICKDROP, "--lr", "1e30")[0] == 1
    assert [(r.name, r.exit_code) for r in wandb.of_kind("fl-training")] == [(TRAINING, 1)]


def test_interrupted_run_ends_as_failed(run: Run, wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ProgressDisplay.on_round_end

    def interrupt(self: ProgressDisplay, federation: Any, info: Any) -> None:
        shown(self, federation, info)
        if (info.phase.name, info.round) == ("recovery", 1):
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressDisplay, "on_round_end", interrupt)
    assert run(*QUICKDROP)[0] == 130
    assert [(r.name, r.exit_code) for r in wandb.runs] == [(TRAINING, 0), (REQUEST, 1)]


SWEEP = ["sweep", *TINY, "--scales", "10", "--methods", "quickdrop"]


def as_an_agent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment in which a sweep's agent starts a program."""
    (folder / "parameters.yaml").write_text("wandb_version: 1\nscales:\n  value: 10\n")
    given = {"sweep_id": "s", "run_id": "r", "sweep_param_path": str(folder / "parameters.yaml")}
    for name, value in given.items():
        monkeypatch.setenv(f"WANDB_{name.upper()}", value)
    return given


def test_agents_run_is_the_artefacts(run: Run, wandb: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = as_an_agent(tmp_path, monkeypatch)
    assert run(*SWEEP)[0] == 0
    settings = {r.kind: vars(r.about["settings"]) for r in wandb.runs}
    assert settings.keys() == {"fl-training", "unlearning", "artefact"}
    for kind, own in settings.items():
        assert (given.items() <= own.items()) == (kind == "artefact")
        assert (not given.keys() & own.keys()) == (kind != "artefact")
    assert not {f"WANDB_{name.upper()}" for name in given} & os.environ.keys()


def test_agents_run_has_the_metrics_that_a_sweep_compares(run: Run, wandb: Wandb, measured: None) -> None:
    run(*SWEEP)
    request, artefact = wandb.runs
    assert (request.kind, artefact.kind) == ("unlearning", "artefact")
    for metric in ("total/r_set_accuracy", "total/f_set_accuracy", "total/seconds"):
        assert artefact.summary[metric] == pytest.approx(request.summary[metric], rel=1e-4)  # from a CSV


def test_agents_run_has_the_agents_parameters(
    run: Run, wandb: Wandb, measured: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_an_agent(tmp_path, monkeypatch)
    run(*SWEEP)
    assert wandb.runs[-1].about["config"]["scales"] == 10


def test_agents_run_reports_what_was_measured_before(
    run: Run, wandb: Wandb, measured: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_an_agent(tmp_path, monkeypatch)
    run(*QUICKDROP)
    assert [r.kind for r in wandb.runs] == ["artefact"]


def test_process_of_its_own_mirrors_its_cells_and_ends_with_a_number(
    wandb: Wandb, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("die_with_parent", "keep_freed_memory"):
        monkeypatch.setattr(f"quickdrop_bench.produce.{name}", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        _process("sweep", [*SWEEP, "--force"], [(0, 1)], 1)
    assert [(r.kind, r.exit_code) for r in wandb.runs] == [("evaluation", 0), ("unlearning", 0)]
    assert type(stopped.value.code) is int


def test_trained_federation_is_evaluated_and_used_but_not_trained_again(run: Run, wandb: Wandb, measured: None) -> None:
    run("figure", "2", *TINY)
    evaluation, request, figure = wandb.runs
    assert [r.kind for r in wandb.runs] == ["evaluation", "unlearning", "artefact"]
    assert evaluation.name == "original · class-9 · digits · seed 1"
    (used,) = evaluation.used
    assert request.used == [used]
    assert (used.name, used.type) == ("federation-digits-3-clients-dirichlet-0.1-s10-seed1", "federation")
    assert not [*evaluation.made, *request.made, *figure.made, *figure.used]
    assert len(figure.logged("figure")) == len(figure.logged("numbers")) == 1


def test_nothing_new_makes_no_run(
    run: Run, nobody: Path, measured: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_package(monkeypatch)
    code, _, err = run(*QUICKDROP)
    assert (code, warnings(caplog), "W&B" in err) == (0, [], False)


def test_request_after_request_starts_from_what_the_last_one_left(run: Run, wandb: Wandb, measured: None) -> None:
    run(*QUICKDROP, "--class", "9,3")
    first, second = wandb.of_kind("unlearning")
    assert second.name == "quickdrop · class-9>class-3 · digits · seed 1"
    before, between, after = (
        *first.logged("confusion_matrix_before"),
        *first.logged("confusion_matrix_after"),
        *second.logged("confusion_matrix_after"),
    )
    assert second.logged("confusion_matrix_before") == [between]
    assert before != between != after


def test_fine_tuning_is_drawn_over_its_initialisations(run: Run, wandb: Wandb) -> None:
    run(*TRAIN)
    run(*TRAIN, "--fine-tune", "2", "--fine-tune-epochs", "1", "--fine-tune-steps", "1")
    assert [r.name for r in wandb.runs] == [TRAINING, TRAINING.replace("s = 10", "s = 10 · F = 2")]
    last = wandb.runs[-1]
    assert last.logged("initialisation") == [1, 2]
    assert len(last.logged("fine_tuning/matching_distance")) == 2
    assert last.made != wandb.runs[0].made


def test_failed_training_uses_no_federation(
    run: Run, wandb: Wandb, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Session.context

    def diverge(self: Session, seed: int) -> Any:
        if seed == 2:
            raise ArithmeticError("it diverged")
        return prepare(self, seed)

    monkeypatch.setattr(Session, "context", diverge)
    run(*QUICKDROP, "--seeds", "1,2", "--results-dir", "others")
    assert not wandb.one(TRAINING.replace("seed 1", "seed 2")).used


def test_rounds_of_a_search_are_shown_under_the_method_that_it_is_for(
    run: Run, nobody: Path, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(METHODS["quickdrop"], "search", {"recovery": {"recover_lr": (0.05,)}})
    _, _, err = run(*QUICKDROP, "--protocol", "tuned", "--wandb", "disabled")
    assert err.count("quickdrop · recovery") > 1
    assert "original · recovery" not in err


def test_rounds_of_a_search_are_in_no_run(
    run: Run, wandb: Wandb, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(METHODS["quickdrop"], "search", {"recovery": {"recover_lr": (0.05,)}})
    tuned = [*TABLE, "--protocol", "tuned", "--methods"]
    run(*tuned, "retrain-or", "--wandb", "disabled")
    shutil.rmtree("artifacts")
    run(*tuned, "quickdrop")
    assert wandb.one(TRAINING).logged("round") == [1, 2]
    assert wandb.one(REQUEST.replace(" · seed", " · tuned · seed")).logged("round") == [1, 2, 3]


def with_a_search_that_fails(run: Run, wandb: Wandb, monkeypatch: pytest.MonkeyPatch) -> tuple[Recorded, Recorded]:
    """The runs of a method, and of one after it whose settings were not found."""
    configured = Session.configured

    def search(self: Session, name: str) -> Method:
        if name == "quickdrop":
            raise RuntimeError("nothing was found")
        return configured(self, name)

    monkeypatch.setattr(Session, "configured", search)
    run(*BOTH, "--results-dir", "others")
    before, failed = wandb.of_kind("unlearning")
    assert (failed.name, failed.exit_code) == (REQUEST, 1)
    return before, failed


def test_run_that_could_not_start_begins_from_the_trained_model(
    run: Run, wandb: Wandb, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, failed = with_a_search_that_fails(run, wandb, monkeypatch)
    assert failed.logged("confusion_matrix_before") == before.logged("confusion_matrix_before")


def test_run_without_a_stage_has_no_state_after(
    run: Run, wandb: Wandb, measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, failed = with_a_search_that_fails(run, wandb, monkeypatch)
    assert not failed.logged("confusion_matrix_after")


def test_summary_of_training_has_the_papers_overhead(run: Run, wandb: Wandb) -> None:
    run("table", "6", *TINY)
    assert wandb.one(TRAINING).summary["fl_training/overhead_percent_paper"] == 54
