"""The process that makes W&B's calls: with a stand-in for the package that keeps a record, and misbehaves on demand."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, Run
from tests.integration.forks import Forked, start_command

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "lightning", "sklearn", "scipy", "torchmetrics")
COMMAND = ["table", "2", *TINY, "--methods", "quickdrop"]
LONG = [*COMMAND, "--rounds", "2000", "--record-every", "0"]

PACKAGE = """
import json, os, signal, sys, time
from types import SimpleNamespace

def note(what, **about):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps({"what": what, "pid": os.getpid(), **about}) + "\\n")

def misbehave(at):
    wanted = os.environ.get("MISBEHAVE", "")
    if wanted == f"hang at {at}":
        time.sleep(1000)
    if wanted == f"die at {at}":
        os.kill(os.getpid(), signal.SIGKILL)
    if wanted == f"fail at {at}":
        raise RuntimeError("no luck")
    if wanted == "chatter":
        print("noise")
        print("noise", file=sys.stderr)
        assert sys.stdin.read() == ""

note("import", nice=os.nice(0))

class Run:
    def __init__(self, about):
        self.id, self.dir, self.about = "id", os.path.join(os.getcwd(), "wandb", "run", "files"), about
        self.summary, self.config, self.start_time = {}, {}, time.time()
    def define_metric(self, name, step_metric=None): pass
    def log(self, metrics):
        note("log", keys=sorted(metrics))
        misbehave("log")
    def log_artifact(self, artifact, aliases): pass
    def _log_artifact(self, artifact, *, is_user_created, use_after_commit): pass
    def finish(self, exit_code=0):
        misbehave("finish")
        note("finish", name=self.about["name"], exit_code=exit_code)

class Artifact(SimpleNamespace):
    def add_file(self, path, name): assert os.path.exists(path)
    def add_reference(self, uri, name, checksum): pass

def setup(settings): misbehave("setup")
def teardown(): pass
def init(*, mode, **about):
    misbehave("init")
    note("init", mode=mode, name=about["name"], argv=sys.argv[1:], settings=vars(about["settings"]))
    return Run(about)

Settings = SimpleNamespace
plot = SimpleNamespace(line_series=lambda **chart: chart)
def Table(columns, data, **types): return data
def Image(source, caption=None): return source
def plot_table(definition, table, fields, texts): return table
"""


@dataclass(frozen=True)
class Place:
    """A folder where commands find the stand-in."""

    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        path = os.pathsep.join([str(self.folder / "fake"), str(ROOT)])
        return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "NOTES": str(self.folder / "notes")} | more

    def start(self, *argv: str, mode: str = "offline", **more: str) -> Forked:
        """Start a command in a process group of its own, as a shell does."""
        return start_command([*argv, "--wandb", mode], self.folder, self.environment(WANDB_API_KEY="k", **more))

    def command(self, *argv: str, **more: str) -> tuple[int, str, str]:
        """Run a command; exit code, standard output and standard error."""
        return self.start(*argv, **more).end()

    def notes(self, what: str = "") -> list[dict[str, Any]]:
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [note for note in map(json.loads, lines) if what in ("", note["what"])]

    def wait_for(self, there: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not there():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.02)

    @property
    def ended(self) -> list[tuple[str, int]]:
        return [(note["name"].split(" · ")[0], note["exit_code"]) for note in self.notes("finish")]

    def processes(self) -> set[int]:
        """Those of the stand-in that run, whether they have noted anything or not."""
        mark, found = f"NOTES={self.folder / 'notes'}".encode(), set()
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it has ended meanwhile, or is another user's
                if mark in environment.read_bytes().split(b"\0"):
                    found.add(int(environment.parent.name))
        return found

    def measured(self) -> set[str]:
        path = self.folder / "results/quick/table2/rows.jsonl"
        return {json.loads(line)["method"] for line in path.read_text().splitlines()}


def is_alive(pid: int) -> bool:
    """Whether there is such a process that is not only waiting to be forgotten."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def with_stand_in(folder: Path) -> Place:
    (folder / "fake").mkdir()
    (folder / "fake/wandb.py").write_text(textwrap.dedent(PACKAGE))
    return Place(folder)


@pytest.fixture
def place(tmp_path: Path, warm_server: None) -> Place:
    return with_stand_in(tmp_path)


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The same for commands in this process."""
    monkeypatch.delenv("WANDB_MODE")
    for name in ("PYTHONPATH", "NOTES"):
        monkeypatch.setenv(name, place.environment()[name])
    return place


def test_nothing_heavy_is_imported() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "quickdrop_bench.mirror"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, env=environment
    )
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert {"wandb", "numpy", "quickdrop_bench"} <= imported
    assert imported.isdisjoint(HEAVY)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, subprocess.CompletedProcess[str]]:
    """A command as it is typed, and where it ran."""
    place = with_stand_in(tmp_path_factory.mktemp("typed"))
    command = [sys.executable, "-m", "quickdrop_bench", *COMMAND, "--wandb", "offline"]
    environment = place.environment(XDG_CACHE_HOME=str(place.folder / "cache"))
    options: dict[str, Any] = {"cwd": place.folder, "env": environment, "stdin": subprocess.DEVNULL, "timeout": 300}
    return place, subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.slow
def test_all_is_said_when_the_command_ends(typed: tuple[Place, subprocess.CompletedProcess[str]]) -> None:
    place, done = typed
    assert done.returncode == 0
    assert place.ended == [("fl-training", 0), ("quickdrop", 0), ("table2", 0)]
    assert "W&B: 3 runs kept offline" in done.stderr
    (process,) = {note["pid"] for note in place.notes()}
    assert not is_alive(process)


@pytest.mark.slow
def test_process_gives_way(typed: tuple[Place, subprocess.CompletedProcess[str]]) -> None:
    assert [note["nice"] for note in typed[0].notes("import")] == [os.nice(0) + 5]


@pytest.mark.slow
def test_run_knows_the_command_that_made_it(typed: tuple[Place, subprocess.CompletedProcess[str]]) -> None:
    notes = typed[0].notes("init")
    assert len(notes) == 3
    for note in notes:
        assert note["argv"] == [*COMMAND, "--wandb", "offline"]
        assert note["settings"]["program"] == "-m quickdrop_bench"


@pytest.mark.slow
def test_sweeps_agent_is_known_to_the_artefacts_run_alone(place: Place) -> None:
    (place.folder / "parameters.yaml").write_text("wandb_version: 1\nscales:\n  value: 10\n")
    given = {"sweep_id": "s", "run_id": "r", "sweep_param_path": str(place.folder / "parameters.yaml")}
    environment = {f"WANDB_{name.upper()}": value for name, value in given.items()}
    assert place.command("sweep", *TINY, "--methods", "quickdrop", "--jobs", "2", **environment)[0] == 0
    settings = {note["name"].split(" · ")[0]: note["settings"] for note in place.notes("init")}
    assert settings.keys() == {"fl-training", "quickdrop", "sweep"}
    assert [name for name, own in settings.items() if given.items() <= own.items()] == ["sweep"]
    assert [name for name, own in settings.items() if given.keys() & own.keys()] == ["sweep"]
    assert {code for _, code in place.ended} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("call", ["setup", "init", "log", "finish"])
def test_process_that_dies_is_said_once_and_changes_nothing(place: Place, call: str) -> None:
    code, _, err = place.command(*COMMAND, MISBEHAVE=f"die at {call}")
    assert code == 0
    assert place.measured() == {"original", "quickdrop"}
    assert err.count("W&B failed and is left out from here on") == 1
    assert "its process ended with -9" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_what_the_package_writes_stays_apart_and_nobody_is_asked(place: Place) -> None:
    code, out, err = place.command(*COMMAND, MISBEHAVE="chatter")
    assert (code, place.ended[-1]) == (0, ("table2", 0))
    assert "noise" not in out + err


@pytest.mark.slow
@pytest.mark.parametrize("call", ["setup", "init", "log", "finish"])
def test_process_that_hangs_is_waited_for_no_longer_than_it_may(
    run: Run, here: Place, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("quickdrop_bench.listener.PATIENCE", 1.0)
    monkeypatch.setenv("MISBEHAVE", f"hang at {call}")
    assert run(*COMMAND, "--wandb", "offline")[0] == 0
    assert here.measured() == {"original", "quickdrop"}
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "its process answered nothing for 1 seconds" in warning
    assert not here.processes()


@pytest.mark.slow
def test_process_that_cannot_start_is_said_once_and_changes_nothing(
    run: Run, here: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    code, _, err = run(*COMMAND, "--wandb", "offline")
    assert (code, here.measured(), here.notes()) == (0, {"original", "quickdrop"}, [])
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "its process could not be started" in warning
    assert "kept offline" not in err


@pytest.mark.slow
def test_failure_is_said_once_and_its_run_ends_as_failed(place: Place) -> None:
    code, _, err = place.command(*COMMAND, MISBEHAVE="fail at log")
    assert (code, place.ended) == (0, [("fl-training", 1)])
    assert err.count("rows are complete without it: no luck") == 1
    assert "Traceback" not in err


@pytest.mark.slow
def test_nothing_to_say_leaves_no_process_and_takes_no_time(place: Place) -> None:
    assert place.command(*COMMAND)[0] == 0
    code, _, err = place.command(*COMMAND, MISBEHAVE="hang at setup")
    assert (code, "W&B" in err) == (0, False)
    place.wait_for(lambda: not place.processes())


@pytest.mark.slow
def test_bad_input_leaves_no_process(place: Place) -> None:
    code, _, err = place.command(*COMMAND, "--scale", "-1")
    assert (code, err.count("\n")) == (2, 1)
    place.wait_for(lambda: not place.processes())


@pytest.mark.slow
def test_run_of_a_command_that_was_killed_ends_as_failed(place: Place) -> None:
    command = place.start(*LONG)
    place.wait_for(lambda: "round 5/" in command.err.read_text())
    assert not place.notes("log")  # offline, all is handled together
    command.process.kill()
    place.wait_for(lambda: place.notes("finish"))
    assert place.ended == [("fl-training", 1)]
    place.wait_for(lambda: not place.processes())


@pytest.mark.slow
def test_interrupted_command_keeps_what_was_said(place: Place) -> None:
    command = place.start(*LONG, mode="online")
    place.wait_for(lambda: len(place.notes("log")) > 3)
    os.killpg(command.pid, signal.SIGINT)
    code, _, err = command.end(timeout=120)
    assert code == 130
    assert place.ended == [("fl-training", 1)]
    assert "W&B: 1 run in project" in err
    assert "W&B failed" not in err
    assert "Traceback" not in err
    assert not place.processes()


@pytest.mark.slow
def test_interrupt_that_reaches_the_process_is_ignored(place: Place) -> None:
    command = place.start(*COMMAND, "--rounds", "30", mode="online")
    place.wait_for(lambda: len(place.notes("log")) > 3)
    os.kill(place.notes("log")[0]["pid"], signal.SIGINT)
    assert (command.end()[0], place.ended[-1]) == (0, ("table2", 0))


@pytest.mark.slow
def test_second_interrupt_ends_the_waiting(place: Place) -> None:
    command = place.start(*LONG, mode="online", MISBEHAVE="hang at finish")
    place.wait_for(lambda: len(place.notes("log")) > 3)
    os.kill(command.pid, signal.SIGINT)
    time.sleep(2)
    assert command.process.is_alive()
    os.kill(command.pid, signal.SIGINT)
    code, _, err = command.end(timeout=30)
    for process in place.processes():
        os.kill(process, signal.SIGKILL)
    assert code == 130
    assert "Traceback" not in err
