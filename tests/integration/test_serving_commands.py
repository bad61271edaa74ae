"""Serving commands as a user runs them: without the data, killed on the way, as documented, for other programs."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time
import tomllib
from itertools import count
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from quickdrop_bench.cli.main import main
from quickdrop_bench.data.requests import UnlearningRequest
from quickdrop_bench.serving import TrainedRun, find_run
from tests.by_hand import equal
from tests.conftest import TINY, Run
from tests.integration.forks import start_script
from tests.integration.killing import Command, WriteSteps
from tests.pictures import make_pictures

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

CLASS_1 = UnlearningRequest.parse("class-1")
CLASSES = ("cat", "dog", "emu")
TRACING = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and a federation that was trained on them."""
    place = tmp_path_factory.mktemp("trained")
    pictures = make_pictures(place / "pictures", CLASSES, 12, 4)
    options = ["--dataset", "imagefolder", "--data-dir", str(pictures), "--artifacts-dir", str(place / "artifacts")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(place / "cache"))
        assert main(["train", *TINY, "--iid", *options]) == 0
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """The same for one test alone, with nothing in the cache."""
    for name in ("pictures", "artifacts"):
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def folder(place: Path) -> Path:
    return next((place / "artifacts").glob("[!.]*"))


def remove_data(place: Path) -> None:
    shutil.rmtree(place / "pictures")
    shutil.rmtree(place / "cache", ignore_errors=True)


def forked(code: str, *argv: object, folder: Path, **environment: object) -> tuple[int, str, str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in environment.items()}}
    return start_script(code, argv, folder, variables).end()


# Without the data --------------------------------------------------------------------------------------------

GUARD = """
import os, sys
from quickdrop_bench.cli.main import main

def watch(event, args):
    if event == "open" and isinstance(args[0], (str, os.PathLike)):
        if os.path.abspath(args[0]).startswith(tuple(os.environ["FORBIDDEN"].split(os.pathsep))):
            os.write(2, b"forbidden: " + os.fsencode(args[0]))
            os._exit(97)

sys.addaudithook(watch)
sys.exit(main(sys.argv[1:]))
"""


def guarded(place: Path, *argv: str | Path) -> tuple[int, str, str]:
    """A command that is ended as soon as it opens a picture or what was decoded of them."""
    forbidden = os.pathsep.join(str(place / name) for name in ("pictures", "cache/quickdrop-bench"))
    return forked(GUARD, *argv, folder=place, FORBIDDEN=forbidden)


@pytest.mark.usefixtures("warm_server")
def test_quickdrop_opens_none_of_the_data(place: Path, folder: Path, run: Run) -> None:
    remove_data(place)
    code, out, err = guarded(place, "unlearn", folder, "--class", "1", "--data-dir", "pictures")
    assert code == 0, err
    assert "version 0 → 1 · forgotten: class-dog" in out
    assert "not evaluated: imagefolder:pictures is not in pictures" in out
    assert "not evaluated" in run("show", str(folder))[1]


@pytest.mark.usefixtures("warm_server")
def test_the_guard_notices(place: Path, folder: Path) -> None:
    code, _, err = guarded(place, "evaluate", folder, "--data-dir", place / "pictures")
    assert code == 97
    assert err == f"forbidden: {place / 'pictures/train/cat/0.png'}"


def test_what_needs_the_data_is_refused_without_them(place: Path, folder: Path, run: Run) -> None:
    remove_data(place)
    for argv, named in (
        (["unlearn", "--class", "1", "--method", "sga-or"], "sga-or needs original data"),
        (["unlearn", "--class", "1", "--method", "retrain-or", "--dry-run"], "retrain-or needs original data"),
        (["evaluate"], "so nothing can be evaluated"),
    ):
        code, out, err = run(argv[0], str(folder), *argv[1:], "--data-dir", "pictures")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("quickdrop-bench: --data-dir pictures: ")
        assert named in err
    assert not (folder / "requests.jsonl").exists()


def test_pictures_that_moved_are_the_same_data(place: Path, folder: Path, run: Run) -> None:
    before = run("evaluate", str(folder), "--data-dir", "pictures", "--json")
    (place / "pictures").rename(place / "elsewhere")
    assert run("evaluate", str(folder), "--data-dir", "elsewhere", "--json") == before
    assert before[0] == 0


def test_other_pictures_are_not_taken_for_the_data(place: Path, folder: Path, run: Run) -> None:
    shutil.rmtree(place / "pictures")
    make_pictures(place / "pictures", CLASSES, 12, 4, seed=1)
    code, _, err = run("evaluate", str(folder), "--data-dir", "pictures")
    assert code == 2
    assert "--data-dir pictures: this is not the imagefolder:pictures of the training" in err


def test_damaged_data_are_not_called_absent(place: Path, folder: Path, run: Run) -> None:
    (place / "pictures/train/cat/0.png").write_bytes(b"no picture")
    code, _, err = run("evaluate", str(folder), "--data-dir", "pictures")
    assert code == 2
    assert "0.png" in err


# Killed on the way -------------------------------------------------------------------------------------------


def request(folder: Path, place: Path, number: int = 1) -> Command:
    """To forget a class on a copy of a federation, in a process of its own."""
    if not place.exists():
        shutil.copytree(folder, place / "run")
    return Command(place, ["unlearn", "run", "--class", str(number)])


def served_by(folder: Path, place: Path) -> bytes:
    """The model that an unbroken request makes."""
    command = request(folder, place)
    assert command.ended(command.start()) == 0, command.log.read_text()
    return (place / "run/versions/0001.safetensors").read_bytes()


def assert_still_forgotten_without_log(copy: Path, run: Run, current: int) -> None:
    """It is refused, or what it said is still known."""
    lost = Path(shutil.copytree(copy, copy.with_name("lost")))
    (lost / "requests.jsonl").unlink(missing_ok=True)
    code, out, err = run("show", str(lost))
    assert "--recover-log" in err if code else f"current version {current} " in out


def assert_in_the_last_good_state(copy: Path, run: Run, model: bytes) -> None:
    assert run("show", str(copy))[0] == 0
    found = TrainedRun(copy)
    assert [str(request) for request in found.forgotten()] == ["class-1"] * found.current
    assert_still_forgotten_without_log(copy, run, found.current)
    assert found.state().keys() == found.state(0).keys()
    if not found.current:
        assert run("unlearn", str(copy), "--class", "1")[0] == 0
    assert TrainedRun(copy).current == 1
    assert TrainedRun(copy).versions.file(1).read_bytes() == model


@pytest.mark.usefixtures("warm_server")
def test_a_command_killed_at_any_step_leaves_the_last_good_state(folder: Path, tmp_path: Path, run: Run) -> None:
    model = served_by(folder, tmp_path / "whole")
    for step in count(1):
        command = request(folder, tmp_path / f"killed-{step}")
        code = command.ended(command.start(WriteSteps(tmp_path / "steps", step)))
        if code == 0:
            break
        assert code == -signal.SIGKILL, command.log.read_text()
        assert_in_the_last_good_state(command.place / "run", run, model)
    assert step > 6
    assert TrainedRun(folder).current == 0


@pytest.mark.long
@pytest.mark.usefixtures("warm_server")
def test_a_command_killed_at_random_leaves_the_last_good_state(folder: Path, tmp_path: Path, run: Run) -> None:
    began = time.monotonic()
    model = served_by(folder, tmp_path / "whole")
    whole, moments = time.monotonic() - began, random.Random(7)
    for k in range(10):
        command = request(folder, tmp_path / f"killed-{k}")
        command.killed(moments.uniform(0, 1.1 * whole))
        assert_in_the_last_good_state(command.place / "run", run, model)


@pytest.mark.usefixtures("warm_server")
def test_commands_at_once_do_not_mix(folder: Path, tmp_path: Path) -> None:
    # Of three classes two are asked for: a third request would leave none to recover on.
    place, logs = tmp_path / "shared", [tmp_path / f"{number}.log" for number in range(2)]
    started = [request(folder, place, number).start(log=log) for number, log in enumerate(logs)]
    codes = [Command.ended(process) for process in started]
    assert set(codes) <= {0, 2}
    assert 0 in codes
    said = "".join(log.read_text() for log in logs)
    assert said.count("another command is working on it") == codes.count(2)
    found = TrainedRun(place / "run")
    assert found.current == codes.count(0)
    assert {str(request) for request in found.forgotten()} == {f"class-{c}" for c in range(2) if codes[c] == 0}
    assert [entry.parent for entry in found.log] == list(range(found.current))
    assert all(found.state(version) for version in range(found.current + 1))


# The page ----------------------------------------------------------------------------------------------------

PAGE = (ROOT / "quickdrop_bench/serving/README.md").read_text(encoding="utf-8")
SHELL, PYTHON = (re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[0] for language in ("", "python"))


@TRACING
def test_the_pages_commands_run_as_they_stand(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    said = [run(*shlex.split(line)[1:]) for line in SHELL.splitlines()]
    assert [code for code, _, _ in said] == [0] * len(said), said
    shown = "".join(out for _, out, _ in said)
    assert "current version 3 · forgotten: client-3" in shown
    assert "version 1 · forgotten: class-9" in shown
    assert Path("model.pt").is_file()
    exec(PYTHON, {})  # noqa: S102 - the page's own code
    assert "class" in capsys.readouterr().out
    assert Path("model.safetensors").is_file()
    assert [str(request) for request in TrainedRun(find_run("latest")).forgotten()] == ["client-3", "class-3"]


def test_extras_that_the_pages_name_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pages = [*ROOT.glob("*.md"), *ROOT.glob("quickdrop_bench/*/README.md"), ROOT / "benchmarks/README.md"]
    named = {name for page in pages for name in re.findall(r"'\.\[(\w+)\]'", page.read_text(encoding="utf-8"))}
    assert named == {"dashboard", "onnx"}
    assert named <= project["optional-dependencies"].keys()


# For other programs ------------------------------------------------------------------------------------------


@pytest.fixture
def served(place: Path, folder: Path) -> TrainedRun:
    run = TrainedRun(folder, data_dir=place / "pictures")
    run.unlearn(CLASS_1)
    return run


def test_onnx_without_its_packages_is_refused(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, out, err = run("export", str(folder), "--format", "onnx", "--output", "model.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--format onnx: it needs more packages" in err
    assert not list(Path().glob("*model*"))


def test_the_export_command_writes_beside_the_run_and_says_where(served: TrainedRun, run: Run) -> None:
    for version, forgotten in enumerate(([], ["class-1"])):
        code, out, _ = run("export", str(served.folder), "--version", str(version), "--json")
        found = json.loads(out)
        assert (code, found["version"]) == (0, version)
        assert Path(found["path"]) == served.folder / f"model-{version:04d}.safetensors"
        with safe_open(found["path"], "pt") as file:
            about = {name: json.loads(value) for name, value in file.metadata().items()}
        assert (about["classes"], about["forgotten"]) == (list(CLASSES), forgotten)
        assert equal(load_file(found["path"]), served.state(version))
    code, out, _ = run("export", str(served.folder), "--format", "torchscript")
    assert (code, Path(out.strip()).name) == (0, "model-0001.pt")
    assert run("show", str(served.folder))[0] == 0
