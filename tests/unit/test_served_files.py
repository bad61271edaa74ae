"""Serving from the command line, and what happens to a federation's files: damage, full disks, other commands."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quickdrop_bench.cli.main import main
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.serving import TrainedRun, export, find_run
from tests.conftest import Run
from tests.damage import largest_file, seal
from tests.served import CLASS_3, CLASS_9, CLIENT_0, NAME, contents, refused, sentence, served, versions

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
    "no run": (["show", "nothing"], "RUN nothing"),
    "a name too long": (["show", "a" * 300], f"RUN {'a' * 300}"),
    "no run given": (["unlearn"], "run"),
    "no request": (["unlearn", NAME], "--class, --client, --samples are missing: give at least one"),
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
    "unknown method": (
        ["unlearn", NAME, "--class", "9", "--method", "quikdrop"],
        "--method quikdrop: did you mean quick",
    ),
    "method of another level": (["unlearn", NAME, "--client", "1", "--method", "fu-mp"], "--method fu-mp"),
    "empty output": (["export", NAME, "--output", ""], "--output"),
    "own file": (["export", NAME, "--output", f"artifacts/{NAME}/global.safetensors"], "keeps its own files there"),
    "unknown precision": (["evaluate", NAME, "--precision", "8"], "--precision 8"),
}


@pytest.mark.parametrize(("argv", "named"), BAD.values(), ids=BAD)
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
    "no JSON": lambda log: b"damaged\n" + log,
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
    "provenance is a text": edited(provenance="here"),
    "time is a number": edited(provenance={"created_at": 5}),
    "unknown method": edited(method="[/x]"),
    "settings are a number": edited(hyper_parameters=5),
    "unknown class": edited(request="class-77"),
    "forgotten does not follow": edited(forgotten=["class-1"]),
    "nothing forgotten": edited(forgotten=[]),
    "a text that commands the terminal": edited(sha256="\x1b[2J"),
}


@pytest.mark.parametrize("damage", LOG_DAMAGE.values(), ids=LOG_DAMAGE)
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


def giant(path: Path) -> None:
    os.truncate(path, 2**40)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(("damage", "named"), [(pipe, "is missing or damaged"), (giant, "is larger than the model")])
def test_a_version_that_is_no_file_or_too_large_is_refused_without_reading_it(
    history: Path, run: Run, damage: Callable[[Path], object], named: str
) -> None:
    damage(history / "versions/0002.safetensors")
    code, _, err = run("export", str(history))
    assert (code, f"0002.safetensors {named}" in err) == (2, True)


SPEC_DAMAGE = {
    "no seed": ("seed: 1", "other: 1", "does not say the seed"),
    "no number": ("width: 4", "width: four", "describes no federation"),
    "another model": ("width: 4", "width: 8", "and the model has"),
    "a giant model": ("width: 4", "width: 4096", "and the model has"),
    "an impossible model": ("width: 4", "width: 0", "describes no federation"),
}


@pytest.mark.parametrize(("old", "new", "sentence"), SPEC_DAMAGE.values(), ids=SPEC_DAMAGE.keys())
def test_a_spec_that_is_not_the_models_is_refused(folder: Path, run: Run, old: str, new: str, sentence: str) -> None:
    config = folder / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    seal(folder)
    code, _, err = run("export", str(folder))
    assert (code, "Traceback" in err, sentence in err) == (2, False, True)


Tensors = dict[str, torch.Tensor]

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


@pytest.mark.parametrize("size", [100, 3000], ids=["model", "log"])
def test_a_disk_that_is_really_full_leaves_the_last_good_state(folder: Path, size: int) -> None:
    run = served(folder, CLASS_9)
    before = contents(folder)
    with largest_file(size), pytest.raises(BadInput, match="cannot be written"):
        run.unlearn(CLASS_3)
    assert (run.current, run.forgotten()) == (1, (CLASS_9,))
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
    for name in (".0002.99.tmp.safetensors", ".tmpA1b2C3"):
        (folder / "versions" / name).write_bytes(b"half of a model")
    assert TrainedRun(folder).current == 1
    run.unlearn(CLASS_3)
    assert {path.name for path in (folder / "versions").iterdir()} == {"0001.safetensors", "0002.safetensors"}
    assert TrainedRun(folder).state(2).keys() == run.state(0).keys()


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
