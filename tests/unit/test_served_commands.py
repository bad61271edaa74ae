"""Serving from the command line: what is printed and refused, which run is meant, two commands at a time."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quickdrop_bench.cli.main import main
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.serving import TrainedRun, find_run
from tests.conftest import Run
from tests.served import CLASS_3, CLASS_9, NAME, contents, refused, sentence, served, versions

UNBOUNDED = ["--quickdrop.unlearn-lr", "1e30", "--quickdrop.unlearn-stop-loss", "null"]

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
    "show nothing": "RUN nothing",
    f"show {'a' * 300}": f"RUN {'a' * 300}",
    "unlearn": "run",
    "unlearn @": "--class, --client, --samples are missing: give at least one",
    "unlearn @ --class nine": "--class nine",
    "unlearn @ --class 10": "--class 10: between 0 and 9",
    "unlearn @ --class -1": "--class -1",
    "unlearn @ --client 3": "--client 3: between 0 and 2",
    "relearn @ --class 9": "--class 9: this is not forgotten",
    "unlearn @ --class 9 --absent 7": "--absent 7: between 0 and 2",
    "unlearn @ --class 9 --absent all": "--absent all",
    "unlearn @ --client 1 --absent 1": "--client 1: it is absent",
    "unlearn @ --client 1 --absent 1 --dry-run": "--client 1: it is absent",
    "unlearn @ --class 9 --preset qick": "--preset qick",
    "unlearn @ --class 9 --quickdrop.unlearn-lr -1": "--quickdrop.unlearn-lr -1",
    "show @ --nope": "--nope",
    "evaluate @ --version 1": "--version 1: between 0 (as trained) and 0",
    "export @ --version -1": "--version -1",
    "export @ --format pickle": "--format pickle",
    "export @ --output in_the_way/model.pt": "--output in_the_way/model.pt",
    "unlearn @ --class 9 --method quikdrop": "--method quikdrop: did you mean quick",
    "unlearn @ --client 1 --method fu-mp": "--method fu-mp",
    "export @ --output ''": "--output",
    "export @ --output artifacts/federation/global.safetensors": "keeps its own files there",
    "evaluate @ --precision 8": "--precision 8",
    "unlearn @ --class 3,3": "--class 3,3: each must be given once",
    "unlearn @ --class 3 --absent 1,1": "--absent 1,1: each must be given once",
    "unlearn @ --class 3 --data-dir x": "--data-dir x: digits is read from no folder",
    "evaluate @ --data-dir x": "--data-dir x: digits is read from no folder.",
    "unlearn @ --class 3 --quickdrop.unlearn-rounds 0": "--quickdrop.unlearn-rounds 0: the stage unlearning would",
    "export @ --output /": "--output /: it cannot be written (this is no name of a file)",
    "unlearn @ --class 3 --s2u.beta 0.1": "--s2u.beta 0.1: --method is quickdrop",
    "unlearn @ --class 3 --quickdrop.relearn-lr 0.1": "--quickdrop.relearn-lr 0.1: unlearn does not use it",
    "unlearn @ --class 3 --wandb-project mine": "--wandb-project mine: --wandb is disabled, and nothing goes to W&B",
    "relearn @ --class 3 --wandb-entity me": "--wandb-entity me: --wandb is disabled, and nothing goes to W&B",
    "relearn @ --class 3 --quickdrop.recover-lr 0.1": "--quickdrop.recover-lr 0.1: relearn does not use it",
}
"""Command lines, where ``@`` is the federation, and what the sentence on each says."""


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_sentence(folder: Path, run: Run, command: str) -> None:
    before = contents(folder)
    Path("in_the_way").touch()
    code, out, err = run(*(NAME if part == "@" else part for part in shlex.split(command)))
    assert (code, out) == (2, "")
    assert BAD[command] in sentence(err)
    assert contents(folder) == before


def test_brackets_in_a_path_are_printed(folder: Path, run: Run) -> None:
    _, out, _ = run("show", str(folder.rename(folder.with_name("run[v2]"))))
    assert "run[v2]" in out


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


def test_an_export_s_name_says_its_format(folder: Path, run: Run) -> None:
    assert run("export", str(folder), "--output", "m.pt")[0] == 0
    assert Path("m.pt").read_bytes()[:2] == b"PK"  # TorchScript's archive


def test_who_was_absent_is_said(folder: Path, run: Run) -> None:
    assert (
        "without clients 1: what they hold took no part"
        in run("unlearn", str(folder), "--class", "3", "--absent", "1")[1]
    )
