"""A fixed set of bad input: one sentence that names the culprit, exit code 2, nothing lost; never a traceback.

``make test-long`` generates more, see :mod:`tests.integration.test_generated_input`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import TINY
from tests.damage import (
    ARTIFACT_KINDS,
    JUNK,
    PICTURE_KINDS,
    RESULT_KINDS,
    Drawn,
    artifact_damage,
    picture_damage,
    result_damage,
    seal,
)
from tests.integration.judging import (
    CULPRITS,
    NO_NUMBER,
    PICTURES,
    ROWS,
    SERVED,
    TEXTS,
    base,
    bounded_memory,
    call,
    cases,
    check,
    culprit,
    federation,
    judge,
    kept,
    numeric,
    options,
)

pytestmark = pytest.mark.slow


# 1. The command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", NO_NUMBER)
@pytest.mark.parametrize("command", ["train", "unlearn"])
def test_what_is_no_number_or_out_of_range_is_refused_by_option(idle: Path, command: str, value: str) -> None:
    """Together the values go once through all options that take a number."""
    for option in numeric(command)[NO_NUMBER.index(value) :: len(NO_NUMBER)]:
        check([*base(command), f"{option}={value}"], culprit(option))


@pytest.mark.parametrize("value", JUNK)
def test_any_values_end_in_a_sentence_or_are_valid(idle: Path, value: str) -> None:
    names = [name for name, kind in sorted(options("distribution").items()) if kind != "None"]
    option = names[JUNK.index(value) % len(names)]
    named = [*culprit(option), " ".join(value.split()) or option, "unrecognized", "expected"]
    check([*base("distribution"), option, value], named, codes=(0, 2))


# 2. Configuration files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [*map(str.encode, TEXTS), b"\xff\xfe", b"rounds: 2\0"])
def test_any_configuration_file_is_refused_or_valid(idle: Path, content: bytes) -> None:
    Path("any.yaml").write_bytes(content)
    try:
        check([*base("distribution"), "--config", "any.yaml"], ["--", "command line not understood"], codes=(0, 2))
    finally:
        Path("any.yaml").unlink()


@pytest.mark.parametrize("path", ["pics", "", "/dev/null", "mine.yaml/x", "a" * 300])
def test_what_is_no_configuration_file_is_refused(idle: Path, path: str) -> None:
    check([*base("distribution"), "--config", path], ["--config"])


# 3. Artifacts ------------------------------------------------------------------------------------------------

STRUCK = [(*kind, number) for number, kind in enumerate(ARTIFACT_KINDS)]
"""Each kind of damage strikes another file, and is read by another command."""


@pytest.mark.parametrize(("kind", "of", "number"), [pytest.param(*s, id=f"{s[2]} {s[0].__name__}") for s in STRUCK])
def test_damaged_artifacts_are_refused_by_file_or_still_valid(at_home: Path, kind: Any, of: str, number: int) -> None:
    damage = artifact_damage(kind, of, Drawn(number=number, byte=number + 1))
    with kept(federation()) as folder, kept(Path("results")):
        argv = base(SERVED[number % len(SERVED)])
        damage(folder)
        judge(call(argv), [*argv, damage.__name__], CULPRITS, codes=(0, 2))


UPDATES: dict[str, Callable[[Path], object]] = {
    "of another shape": lambda path: change(path, lambda value: value[:1]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


def change(path: Path, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(path)
    save_file({n: how(v).contiguous() if v.dim() else v for n, v in tensors.items()}, path)


@pytest.fixture(scope="module")
def recorded(home: Path) -> Path:
    """A folder with a federation that kept its updates, and one that was fine-tuned from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        tuned = ["--fine-tune", "1", "--fine-tune-steps", "1", "--fine-tune-epochs", "0"]
        assert call(["train", *TINY, "--record-every", "1", "--artifacts-dir", "recorded", *tuned]).code == 0
    return home / "recorded"


@pytest.mark.parametrize("damage", cases(UPDATES))
@pytest.mark.parametrize("tuned", [False, True])
def test_damaged_updates_are_refused_by_file(at_home: Path, recorded: Path, *, damage: Any, tuned: bool) -> None:
    folders = {(path / "updates").is_dir(): path for path in recorded.glob("[!.]*")}
    base, asked = folders[True], folders[not tuned]
    argv = ["unlearn", str(asked), "--class", "3", "--method", "federaser"]
    with kept(base), kept(asked) if tuned else contextlib.nullcontext():
        damage(min((base / "updates" / "0000").glob("*.safetensors")))
        seal(base)
        judge(call(argv), argv, ["updates/0000/0000.safetensors", "updates is missing or damaged"], codes=(2,))


def zeros_for(names: Sequence[str], shape: Sequence[int]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(*shape) for name in names}


CHECKPOINTS: dict[str, Callable[[Path, Mapping[str, torch.Tensor]], object]] = {
    "nothing": lambda path, state: path.write_bytes(b""),
    "no checkpoint": lambda path, state: path.write_bytes(b"\xff" * 50),
    "a pickle that runs something": lambda path, state: path.write_bytes(pickle.dumps(os.getcwd)),
    "a list": lambda path, state: torch.save([1], path),
    "a tensor": lambda path, state: torch.save(torch.zeros(3), path),
    "no synthetic sets": lambda path, state: torch.save({"synthetic": None}, path),
    "no parameters": lambda path, state: torch.save(
        {"synthetic": {}, "state": {}, "cost": {"rounds": 1}, "history": [{}]}, path
    ),
    "parameters of another shape": lambda path, state: torch.save(
        {"synthetic": {}, "state": zeros_for(list(state), [1]), "cost": {"rounds": 1}, "history": [{}]}, path
    ),
    "rounds in words": lambda path, state: torch.save(
        {"synthetic": {}, "state": dict(state), "cost": {"rounds": "x"}, "history": []}, path
    ),
    "history in words": lambda path, state: torch.save(
        {"synthetic": {}, "state": dict(state), "cost": {"rounds": 1}, "history": "x"}, path
    ),
    "more rounds than there are": lambda path, state: torch.save(
        {"synthetic": {}, "state": dict(state), "cost": {"rounds": 99}, "history": []}, path
    ),
}


@pytest.mark.parametrize("write", cases(CHECKPOINTS))
def test_a_checkpoint_that_is_none_is_left_alone(at_home: Path, write: Any, caplog: pytest.LogCaptureFixture) -> None:
    with kept(federation()) as folder:
        state = load_file(folder / "global.safetensors")
        shutil.rmtree(folder)
        folder.mkdir()
        write(folder / "training.ckpt", state)
        ended = call(base("train"))
        again = load_file(folder / "global.safetensors") if ended.code == 0 else {}
    assert ended.code == 0, ended.err
    assert "training.ckpt cannot be used" in caplog.text
    assert all(torch.equal(again[name], value) for name, value in state.items())


# 4. Image folders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PICTURE_KINDS)
@pytest.mark.parametrize(("number", "size"), [(0, []), (33, ["--image-size", "8"])])
def test_damaged_image_folders_are_refused_or_still_valid(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, number: int, size: list[str]
) -> None:
    monkeypatch.setattr("quickdrop_bench.cli.training.write_distribution", lambda *args: [])
    with kept(Path("pics")) as folder, kept(Path("results")):
        picture_damage(kind, Drawn(number=number, byte=number + 1))(folder)
        ended = call(["distribution", *PICTURES, *size])
    judge(ended, [kind.__name__], ["--data-dir", "--image-size", "--clients", "--alpha"], codes=(0, 2))


# 5. Results folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", dict.fromkeys(RESULT_KINDS))
def test_any_rows_are_read_or_refused(idle: Path, kind: Any) -> None:
    with kept(Path("results")) as folder:
        result_damage(kind, Drawn())(folder / ROWS)
        check(base("table"), ["--results-dir"], codes=(0, 2))


KINDS = {
    "data set that is no text": ("dataset", False),
    "seed in words": ("seed", "one"),
    "request missing": ("request", None),
    "spec hash that is a number": ("spec_hash", 7),
    "value in words": ("value", "high"),
}


@pytest.mark.parametrize(("column", "value"), cases(KINDS))
def test_rows_of_another_kind_are_left_out(idle: Path, column: str, value: object) -> None:
    with kept(Path("results")) as folder:
        original = (rows := folder / ROWS).read_text().splitlines()
        lines = [json.dumps({**json.loads(line), column: value}) for line in original]
        for command, changed in (("report", lines), ("table", [*original[:-1], lines[-1]])):
            rows.write_text("\n".join(changed) + "\n")
            check(base(command), ["--results-dir"], codes=(0, 2))


# 6. Single cases ---------------------------------------------------------------------------------------------

LONG = "a" * 3000
SINGLE: dict[str, tuple[str, list[str], str]] = {
    "a pipe to be replaced": ("export", ["--output", "pipe"], "--output pipe"),
    "a pipe to be replaced by a report": ("report", ["--output", "pipe"], "--output pipe"),
    "a pipe to be replaced by a dashboard": ("dashboard", ["--output", "pipe", "--wandb-entity", "x"], "--output pipe"),
    "a pipe of options": ("distribution", ["--config", "pipe"], "--config pipe: it cannot be read (it is no regular"),
    "endless options": ("train", ["--config", "/dev/zero"], "--config /dev/zero: it cannot be read (it is no regular"),
    "a pipe of samples": ("unlearn", ["--samples", "pipe"], "--samples pipe: a number, or a file that lists"),
    "endless samples": ("unlearn", ["--samples", "/dev/zero"], "--samples /dev/zero: a number, or a file that lists"),
    "samples in a folder": ("unlearn", ["--samples", "pics"], "--samples pics: a number, or a file that lists"),
    "no α when all is measured again": ("table", ["--force", "--alpha", "0"], "--alpha 0"),
    "no class when all is measured again": ("table", ["--force", "--class", "77"], "--class 77"),
    "no device when all is measured again": ("table", ["--force", "--accelerator", "cuda"], "--accelerator cuda"),
    "a dashboard of nobody": ("dashboard", ["--wandb-entity", ""], "--wandb-entity"),
    "long data set": ("distribution", ["--dataset", LONG], "--dataset"),
    "long results folder of a report": ("report", ["--results-dir", LONG], "--results-dir"),
    "long artifacts folder": ("show", ["--artifacts-dir", LONG], "--artifacts-dir"),
    "value of two lines": ("distribution", ["--dataset", "a\nb"], "--dataset"),
    "name of the output": ("export", ["--output", ""], "--output"),
    "output in a folder that is a file": ("report", ["--output", "mine.yaml/x.html"], "--output"),
}


@pytest.mark.parametrize(("command", "argv", "named"), cases(SINGLE))
def test_single_cases_are_refused(
    at_home: Path, monkeypatch: pytest.MonkeyPatch, command: str, argv: list[str], named: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    os.mkfifo("pipe")
    try:
        with bounded_memory(2**28):
            check([*base(command), *argv], [named])
        assert Path("pipe").is_fifo()
    finally:
        Path("pipe").unlink()
