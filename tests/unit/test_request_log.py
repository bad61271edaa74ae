"""What was forgotten never comes back by itself: the log is a chain, and is rebuilt from the versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.core.files import sha256
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.serving import TrainedRun
from quickdrop_bench.serving.log import chained_to, read_log, recover_log
from tests.conftest import Run
from tests.served import CLASS_3, CLASS_9, CLIENT_0, Measured, served


@pytest.fixture(scope="module")
def thrice(measured: Measured, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation that forgot class 9, client 0 and class 3."""
    place = Path(shutil.copytree(measured.folder, tmp_path_factory.mktemp("thrice") / "run"))
    served(place, CLASS_9, CLIENT_0, CLASS_3)
    return place


@pytest.fixture
def folder(thrice: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(thrice, tmp_path / "run"))


def lines(folder: Path) -> list[str]:
    return (folder / "requests.jsonl").read_text().splitlines(keepends=True)


def with_lines(change: Callable[[list[str]], list[str]]) -> Callable[[Path], object]:
    return lambda folder: (folder / "requests.jsonl").write_text("".join(change(lines(folder))))


def changed(line: str, **values: object) -> str:
    return json.dumps(json.loads(line) | values, ensure_ascii=False) + "\n"


LOSSES: dict[str, Callable[[Path], object]] = {
    "removed": lambda folder: (folder / "requests.jsonl").unlink(),
    "emptied": lambda folder: (folder / "requests.jsonl").write_bytes(b""),
    "last entry gone": with_lines(lambda log: log[:-1]),
    "last two gone": with_lines(lambda log: log[:1]),
    "first entry gone": with_lines(lambda log: log[1:]),
    "one in the middle gone": with_lines(lambda log: [log[0], log[2]]),
    "cut off in an entry": with_lines(lambda log: [*log[:2], log[2][:50]]),
    "in another order": with_lines(lambda log: [log[1], log[0], log[2]]),
    "an accuracy edited": with_lines(lambda log: [changed(log[0], before={"test_accuracy": 1.0}), *log[1:]]),
    "a hash taken out": with_lines(lambda log: [*log[:2], changed(log[2], previous=None)]),
    "one of another chain": with_lines(lambda log: [*log[:2], changed(log[2], previous="0" * 64)]),
    "in another encoding": lambda folder: (folder / "requests.jsonl").write_text(
        "".join(lines(folder)), encoding="utf-16"
    ),
    "a folder": lambda folder: ((folder / "requests.jsonl").unlink(), (folder / "requests.jsonl").mkdir()),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_a_log_that_lost_something_is_refused_by_every_command_until_it_is_rebuilt(
    folder: Path, run: Run, lose: Callable[[Path], object]
) -> None:
    whole = read_log(folder)
    models = {path.name: path.read_bytes() for path in (folder / "versions").iterdir()}
    lose(folder)
    name = str(folder)
    for argv in (["show"], ["evaluate"], ["export"], ["unlearn", "--class", "1"], ["relearn", "--class", "9"]):
        code, out, err = run(argv[0], name, *argv[1:])
        assert (code, out) == (2, ""), argv
        assert "show RUN --recover-log" in err
        assert len(err.splitlines()) == 1
    code, out, err = run("show", name, "--recover-log")
    assert code == 0
    assert "requests.jsonl was rebuilt" in err
    assert "forgotten: class-9, client-0, class-3" in out
    found = TrainedRun(folder)
    facts = [replace(e, cost={}, before=None, after=None, provenance={}, previous="") for e in whole]
    assert [replace(e, cost={}, before=None, after=None, provenance={}, previous="") for e in found.log] == facts
    assert all(found.state(version) for version in range(4))
    assert {path.name: path.read_bytes() for path in (folder / "versions").iterdir()} == models
    assert found.relearn(CLASS_9).version == 4


def test_each_entry_names_the_one_before_and_each_version_its_entry(folder: Path) -> None:
    log = read_log(folder)
    assert [entry.previous for entry in log] == [chained_to(log[:k]) for k in range(3)]
    assert len({entry.previous for entry in log}) == 3
    assert log[0].previous == ""
    for entry in log:
        with safe_open(folder / f"versions/{entry.version:04d}.safetensors", "pt") as file:
            said = json.loads(file.metadata()["entry"])
        assert (said["version"], said["request"]) == (entry.version, entry.request)
        assert said["forgotten"] == list(entry.forgotten)


def test_what_is_left_of_a_log_keeps_its_costs_and_the_damaged_one_is_kept(folder: Path) -> None:
    before, damaged = read_log(folder), (folder / "requests.jsonl").read_bytes()[:-20]
    (folder / "requests.jsonl").write_bytes(damaged)
    assert recover_log(folder)
    after = read_log(folder)
    assert after[:2] == before[:2]
    assert (after[2].cost, after[2].before) == ({}, None)
    assert (folder / "requests.jsonl.damaged-1").read_bytes() == damaged


def test_a_whole_log_is_left_as_it_is(folder: Path, run: Run) -> None:
    before = (folder / "requests.jsonl").read_bytes()
    code, _, err = run("show", str(folder), "--recover-log")
    assert (code, "is whole" in err) == (0, True)
    assert (folder / "requests.jsonl").read_bytes() == before


@pytest.fixture
def unchained(folder: Path) -> Path:
    """The folder as older code left it: entries without hashes, and versions that say nothing of their entry."""
    log = [json.loads(line) for line in lines(folder)]
    for entry in log:
        del entry["previous"]
        path = folder / f"versions/{entry['version']:04d}.safetensors"
        save_file(load_file(path), path)
        entry["sha256"] = sha256(path)
    (folder / "requests.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return folder


def test_a_log_from_before_logs_were_chains_is_read_and_becomes_one(unchained: Path) -> None:
    found = TrainedRun(unchained)
    assert found.forgotten() == (CLASS_9, CLIENT_0, CLASS_3)
    assert all(found.state(version) for version in range(4))
    assert found.relearn(CLASS_9).version == 4
    assert [json.loads(line)["previous"] for line in lines(unchained)] == [chained_to(found.log[:k]) for k in range(4)]
    with_lines(lambda log: [log[0], *log[2:]])(unchained)
    with pytest.raises(BadInput, match="damaged"):
        TrainedRun(unchained)


def test_of_a_log_without_a_chain_nothing_is_guessed(unchained: Path) -> None:
    whole = lines(unchained)
    for left in ([], whole[:2], whole[1:], [changed(whole[0], previous=""), *whole[1:]]):
        with_lines(lambda log: left)(unchained)  # noqa: B023 - called at once
        with pytest.raises(BadInput, match=r"damaged|does not know version"):
            TrainedRun(unchained)
    with_lines(lambda log: whole[:2])(unchained)
    with pytest.raises(BadInput, match="says what request made version 3; put one of them back from a copy"):
        recover_log(unchained)
    assert lines(unchained) == whole[:2]


def test_a_lost_version_and_a_lost_log_are_not_guessed(folder: Path) -> None:
    (folder / "versions/0002.safetensors").unlink()
    (folder / "requests.jsonl").unlink()
    with pytest.raises(BadInput, match="says what request made version 2"):
        recover_log(folder)


def test_rebuilding_does_not_take_a_damaged_version_for_a_good_one(folder: Path) -> None:
    path = folder / "versions/0001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with_lines(lambda log: log[:-1])(folder)
    recover_log(folder)
    with pytest.raises(BadInput, match=r"0001\.safetensors does not match"):
        TrainedRun(folder).state(1)


HIDDEN = "versions/.0003.new.safetensors"
"""The newest version where a command was killed before its last step."""


def without_last_line(folder: Path) -> None:
    with_lines(lambda log: log[:-1])(folder)


@pytest.mark.parametrize("lose", [lambda folder: None, without_last_line], ids=["whole log", "last line gone"])
def test_a_command_that_was_killed_before_its_last_step_has_served(
    folder: Path, run: Run, lose: Callable[[Path], object]
) -> None:
    last = folder / "versions/0003.safetensors"
    last.rename(folder / HIDDEN)
    lose(folder)
    for command in ("show", "evaluate"):
        code, out, _ = run(command, str(folder))
        assert (code, "forgotten: class-9, client-0, class-3" in out) == (0, True)
    found = TrainedRun(folder)
    assert (found.current, found.state(3).keys()) == (3, found.state(0).keys())
    assert found.unlearn(UnlearningRequest("class", (1,))).version == 4
    assert last.exists()
    assert not (folder / HIDDEN).exists()
    assert [json.loads(line)["request"] for line in lines(folder)] == ["class-9", "client-0", "class-3", "class-1"]


def test_a_first_version_that_is_hidden_counts_without_any_log(folder: Path) -> None:
    for name in ("requests.jsonl", "versions/0002.safetensors", "versions/0003.safetensors"):
        (folder / name).unlink()
    (folder / "versions/0001.safetensors").rename(folder / "versions/.0001.new.safetensors")
    assert TrainedRun(folder).forgotten() == (CLASS_9,)


@pytest.mark.parametrize("name", ["requests.jsonl removed", "emptied", "last two gone", "cut off in an entry"])
def test_where_more_is_lost_a_hidden_version_counts_once_the_log_is_rebuilt(folder: Path, name: str) -> None:
    (folder / "versions/0003.safetensors").rename(folder / HIDDEN)
    LOSSES[name.removeprefix("requests.jsonl ")](folder)
    with pytest.raises(BadInput, match="show RUN --recover-log"):
        TrainedRun(folder)
    assert recover_log(folder)
    found = TrainedRun(folder)
    assert found.forgotten() == (CLASS_9, CLIENT_0, CLASS_3)
    assert found.state(3).keys() == found.state(0).keys()


def test_a_hidden_version_that_says_nothing_is_refused_with_a_way_back(folder: Path) -> None:
    (folder / "versions/.0004.new.safetensors").write_bytes(b"damaged")
    with pytest.raises(BadInput, match=r"does not know version 4.*show RUN --recover-log"):
        TrainedRun(folder)
    with pytest.raises(BadInput, match=r"or delete versions/\.0004\.new\.safetensors and ask for it again"):
        recover_log(folder)
    (folder / "versions/.0004.new.safetensors").unlink()
    assert TrainedRun(folder).current == 3


def test_a_request_that_failed_after_its_model_was_written_does_not_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> str:
        raise RuntimeError("Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("quickdrop_bench.serving.versions.sha256", fail)
        with pytest.raises(RuntimeError):
            TrainedRun(folder).unlearn(UnlearningRequest("class", (1,)))
    assert TrainedRun(folder).current == 3
    assert TrainedRun(folder).unlearn(UnlearningRequest("class", (1,))).version == 4


def damage_newest(folder: Path) -> None:
    path = folder / "versions/0003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_newest_version_names_the_way_back(folder: Path, run: Run) -> None:
    damage_newest(folder)
    for argv in (["evaluate"], ["unlearn", "--class", "1"], ["unlearn", "--class", "1", "--dry-run"]):
        code, out, err = run(argv[0], str(folder), *argv[1:])
        assert (code, out) == (2, "")
        assert "--from-version 2" in err


def test_requests_go_back_to_a_version_explicitly_and_the_log_says_so(folder: Path, run: Run) -> None:
    damage_newest(folder)
    code, out, err = run("unlearn", str(folder), "--class", "3,1", "--from-version", "2")
    assert code == 0
    assert err.startswith("back to version 2: not forgotten any more: class-3\n")
    assert "version 2 → 4" in out
    found = TrainedRun(folder)
    assert [(entry.version, entry.parent) for entry in found.log] == [(1, 0), (2, 1), (3, 2), (4, 2), (5, 4)]
    assert [str(request) for request in found.forgotten()] == ["class-9", "client-0", "class-3", "class-1"]
    assert all(found.state(version) for version in (1, 2, 4, 5))


def test_going_back_gives_what_that_version_would_have_given(folder: Path, thrice: Path) -> None:
    entry = TrainedRun(folder).unlearn(CLASS_3, from_version=2)
    again, before = TrainedRun(folder).state(entry.version), TrainedRun(thrice).state(3)
    assert all(again[name].equal(before[name]) for name in before)


@pytest.mark.parametrize("version", [-1, 4])
def test_a_version_that_is_not_there_is_refused(folder: Path, run: Run, version: int) -> None:
    for more in ([], ["--dry-run"]):
        code, out, err = run("unlearn", str(folder), "--class", "1", f"--from-version={version}", *more)
        assert (code, out) == (2, "")
        assert f"--from-version {version}: between 0 (as trained) and 3" in err


def test_what_only_newer_versions_forgot_cannot_be_learnt_again_from_an_older_one(folder: Path, run: Run) -> None:
    code, _, err = run("relearn", str(folder), "--class", "3", "--from-version", "2")
    assert (code, "this is not forgotten" in err) == (2, True)


def test_a_torn_line_s_request_is_not_dropped_where_its_version_is_lost_too(folder: Path, run: Run) -> None:
    log, last = folder / "requests.jsonl", len(read_log(folder))
    log.write_bytes(log.read_bytes()[:-5])
    (folder / f"versions/{last:04d}.safetensors").unlink()
    code, _, err = run("show", str(folder), "--recover-log")
    assert code == 2
    assert f"neither requests.jsonl nor versions/ says what request made version {last}" in err
