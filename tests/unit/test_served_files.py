"""What happens to the files of a federation that serves requests: damage, full disks, interruptions."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save, save_file

from quickdrop_bench import serving
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.serving import TrainedRun, export
from quickdrop_bench.store.schema import FORMAT
from tests.conftest import TINY, Run
from tests.damage import (
    GONE,
    Drawn,
    Kind,
    cut,
    few_files,
    flip,
    into_folder,
    into_link,
    into_pipe,
    largest_file,
    lose,
    overwrite,
    seal,
)
from tests.served import CLASS_3, CLASS_9, CLIENT_0, NAME, contents, refused, sentence, served, versions


def test_an_interrupted_command_continues_as_it_says(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    writers = iter([save, interrupt])
    with monkeypatch.context() as patched:
        patched.setattr("quickdrop_bench.store.states.as_bytes", lambda *args, **more: next(writers)(*args, **more))
        code, _, err = run("unlearn", NAME, "--class", "9,3")
    assert code == 130
    assert TrainedRun(folder).current == 1
    assert "the same command continues" not in err or run("unlearn", NAME, "--class", "9,3")[0] == 0


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


def another_version(path: Path, d: Drawn) -> None:
    shutil.copy(path.with_name("0001.safetensors"), path)


@pytest.mark.parametrize("damage", [flip, cut, lose, overwrite, into_folder, into_link, into_pipe, another_version])
def test_a_damaged_version_is_refused_in_one_sentence(history: Path, run: Run, damage: Kind) -> None:
    damage(history / "versions/0002.safetensors", Drawn(byte=2))
    assert_newest_is_refused_and_the_older_is_readable(history, run)


def test_a_version_that_is_too_large_is_refused_without_reading_it(history: Path, run: Run) -> None:
    os.truncate(history / "versions/0002.safetensors", 2**40)
    code, _, err = run("export", str(history))
    assert (code, "0002.safetensors is larger than the model" in err) == (2, True)


SPEC_DAMAGE: dict[str, tuple[dict[str, object], str]] = {
    "no seed": ({"seed": ...}, "does not say the seed"),
    "no number": ({"width": "four"}, "describes no federation"),
    "another model": ({"width": 8}, "and the model has"),
    "a shallower model": ({"depth": 1}, "global.safetensors is missing or damaged"),
    "a giant model": ({"width": 4096}, "and the model has"),
    "an impossible model": ({"width": 0}, "describes no federation"),
    "no rounds": ({"rounds": None}, "describes no federation"),
    "a rate in words": ({"lr": "small"}, "describes no federation"),
    "an unknown data set": ({"dataset": "mnits"}, "a data set 'mnits', which is not known here"),
    "a momentum out of range": ({"image_momentum": 5}, "describes no federation"),
}
"""Settings in the place of those of the training; ``...`` is none."""


@pytest.mark.parametrize(("change", "named"), SPEC_DAMAGE.values(), ids=SPEC_DAMAGE)
def test_a_spec_that_is_not_the_models_is_refused(
    folder: Path, run: Run, change: dict[str, object], named: str
) -> None:
    spec = yaml.safe_load((folder / "config.yaml").read_text()) | change
    (folder / "config.yaml").write_text(yaml.safe_dump({name: v for name, v in spec.items() if v is not ...}))
    seal(folder)
    code, out, err = run("evaluate", str(folder))
    assert (code, out) == (2, "")
    assert named in sentence(err)


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


# Full disks and crashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 3000], ids=["model", "log"])
def test_a_full_disk_leaves_the_last_good_state(folder: Path, size: int, run: Run) -> None:
    served(folder, CLASS_9)
    before = contents(folder)
    with largest_file(size):
        code, _, err = run("unlearn", NAME, "--class", "3")
    assert code == 2
    assert f"RUN artifacts/{NAME}: it cannot be written" in sentence(err)
    assert before.items() <= contents(folder).items()
    assert {path.name for path in folder.rglob(".*")} <= {".lock", ".training.lock"}
    after = TrainedRun(folder)
    assert (after.current, after.forgotten()) == (1, (CLASS_9,))
    assert after.unlearn(CLASS_3).version == 2
    assert TrainedRun(folder).evaluate().keys() == after.evaluate().keys()


@pytest.mark.parametrize("form", ["safetensors", "torchscript"])
def test_an_export_to_a_full_disk_is_refused(folder: Path, form: str) -> None:
    run = TrainedRun(folder)
    with largest_file(100), pytest.raises(BadInput, match="--output"):
        export(run, Path("model"), form)
    assert not Path("model").exists()


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


def of_writer(name: str, process: int) -> Path:
    """Where a process fills a file before that has its name."""
    return Path(name).with_name(f".{Path(name).name}.{process}.tmp.a1b2c3d4")


@pytest.mark.parametrize("argv", [["unlearn", "--class", "3"], ["relearn", "--class", "9"], ["show", "--recover-log"]])
def test_what_killed_writers_left_in_a_run_is_swept_by_who_writes_there_next(
    folder: Path, run: Run, argv: list[str]
) -> None:
    """Exports, logs, models and pictures, but no file of a writer that is at work, nor of the user."""
    before = served(folder, CLASS_9).state(0)
    left = ["model-0001.pt", "requests.jsonl", "versions/0002.safetensors", "oracles/a.safetensors"]
    paths, at_work = ([folder / of_writer(name, process) for name in left] for process in (GONE, os.getppid()))
    kept = [*at_work, folder / ".mine.tmp.txt", folder / "my.99.tmp.txt", folder / ".tmpA1b2C3"]
    for path in paths + kept:
        path.mkdir(parents=True)
        (path / ".new").write_bytes(b"half of a model")
    assert run("evaluate", NAME)[0] == 0
    assert all(path.exists() for path in paths + kept)
    assert run(argv[0], NAME, *argv[1:])[0] == 0
    assert not any(path.exists() for path in paths)
    assert all(path.exists() for path in kept)
    assert TrainedRun(folder).state().keys() == before.keys()


@pytest.mark.parametrize("form", ["safetensors", "torchscript"])
def test_an_export_has_no_temporary_file_but_one_that_says_who_writes_it(folder: Path, form: str) -> None:
    run, seen = TrainedRun(folder), set()
    real = Path.write_bytes

    def write_bytes(path: Path, content: bytes) -> int:
        seen.update(other.name for other in folder.iterdir() if ".tmp" in other.name)
        assert path.parent.name in seen
        return real(path, content)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_bytes)
        export(run, folder / "model-0000.x", form)
    (name,) = seen
    assert name.startswith(f".model-0000.x.{os.getpid()}.tmp.")


OPENING = {
    "train": ["train", *TINY, "--record-every", "1"],
    "table": ["table", "2", *TINY, "--methods", "quickdrop"],
    "show": ["show", NAME],
    "unlearn": ["unlearn", NAME, "--class", "9"],
    "unlearn from updates": ["unlearn", NAME, "--class", "9", "--method", "federaser"],
    "export": ["export", NAME, "--format", "torchscript"],
}


@pytest.mark.parametrize("argv", OPENING.values(), ids=OPENING)
def test_too_many_open_files_are_one_sentence_and_no_damage(folder: Path, run: Run, argv: list[str]) -> None:
    before = contents(folder)
    for more in range(6):
        with few_files(more):
            code, _, err = run(*argv)
        if code == 0:
            break
        assert "Too many open files" in err or "too many files are open; allow more" in err
        assert not any(word in err for word in ("Traceback", "damaged", "delete"))
        assert before.items() <= contents(folder).items()
    assert 0 < more < 6
    assert code == 0


def test_each_file_of_a_run_is_documented(history: Path, run: Run) -> None:
    page = (Path(serving.__file__).parent / "README.md").read_text(encoding="utf-8").partition("folder holds")[2]
    for suffix in ("safetensors", "torchscript"):
        assert run("export", str(history), "--version", "1", "--format", suffix)[0] == 0
    named = {re.sub(r"\d{4}", "0", found) for found in re.findall(r"`([^`]+)`", page)}
    for name in contents(history):
        first, _, rest = re.sub(r"\d{4}", "0", name).partition("/")
        both = {f"{first}/{rest}" if rest else first, Path(first).suffix if not rest else f"{first}/"}
        assert name.startswith(".") or both & named, name
    assert f"This is format {FORMAT}." in page
