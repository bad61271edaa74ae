"""What holds of every command that writes: no link is followed, nothing is overwritten, nothing is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from quickdrop_bench.cli.commands import ANSWERS, FUNCTIONS
from quickdrop_bench.cli.main import main
from quickdrop_bench.cli.parser import declared
from tests.conftest import PARTITION, TINY, Run
from tests.damage import GONE, largest_file
from tests.pictures import make_pictures
from tests.served import contents

OPTIONS = [*TINY, "--record-every", "1"]
TRAIN = ["train", *OPTIONS]
TABLE = ["table", "2", *OPTIONS, "--methods", "quickdrop"]
DISTRIBUTION = ["distribution", *PARTITION]
COMMANDS = {
    "train": TRAIN,
    "table": TABLE,
    "figure": ["figure", "2", *OPTIONS],
    "sweep": ["sweep", *OPTIONS, "--methods", "quickdrop", "--scales", "10"],
    "distribution": DISTRIBUTION,
    "unlearn": ["unlearn", "RUN", "--class", "3"],
    "relearn": ["relearn", "RUN", "--class", "9"],
    "export": ["export", "RUN", "--version", "1"],
    "recover-log": ["show", "RUN", "--recover-log"],
    "report": ["report"],
    "dashboard": ["dashboard", "--wandb-entity", "team", "--output", "results/dashboard.json"],
}
"""All that write; ``RUN`` stands for the trained federation."""


def test_these_are_all_commands_that_write() -> None:
    assert {argv[0] for argv in COMMANDS.values()} == {*FUNCTIONS} - {*ANSWERS} | {"show"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which every command has run once, and can run again."""
    place = tmp_path_factory.mktemp("finished")
    before = Path.cwd()
    os.chdir(place)
    try:
        assert main(TRAIN) == 0
        (trained,) = Path("artifacts").glob("[!.]*")
        for name, argv in COMMANDS.items():
            if name == "relearn":
                continue
            assert main([str(trained) if part == "RUN" else part for part in argv]) == 0, name
        for action, again in (("unlearn", "9"), ("relearn", "3")):  # so that the requests above can be served again
            assert main([action, str(trained), "--class", again]) == 0
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = Path(shutil.copytree(finished, tmp_path / "work"))
    monkeypatch.chdir(copy)
    return copy


def written(name: str, place: Path) -> Iterator[Path]:
    """Folders that a command may write to, below those that the user names."""
    for root in ("artifacts", "results"):
        for path in sorted((place / root).rglob("*")):
            others = {"table2", "figure2", "sweep", "distribution"} - {name, f"{name}2"} if name != "report" else set()
            if path.is_dir() and not others & set(path.parts):
                yield path.relative_to(place)


def linked(path: Path, outside: Path) -> None:
    """Put a link in the place of a folder, whose content lies outside from now on."""
    outside.parent.mkdir(exist_ok=True)
    path.rename(outside)
    path.symlink_to(outside)


def argv_of(name: str, trained: Path) -> list[str]:
    return [str(trained) if part == "RUN" else part for part in COMMANDS[name]]


each_command = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ("figure", "sweep") else ()) for name in COMMANDS],
)


@each_command
@pytest.mark.parametrize("done", [True, False], ids=["finished", "unfinished"])
def test_no_command_changes_what_a_link_in_its_folders_leads_to(
    name: str, done: bool, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = list(written(name, finished))
    assert len(relative) >= 6
    for k, folder in enumerate(relative):
        copy = Path(shutil.copytree(finished, tmp_path / str(k)))
        (trained,) = (copy / "artifacts").glob("[!.]*")
        if not done:
            (trained / "manifest.json").unlink()  # it is trained again
        linked(copy / folder, outside := tmp_path / f"outside-{k}")
        monkeypatch.chdir(copy)
        before = contents(outside)
        if copy / folder == trained and "RUN" in COMMANDS[name]:
            continue  # the user named it
        if name == "recover-log":
            (trained / "requests.jsonl").unlink()
        assert main(argv_of(name, Path("artifacts") / trained.name)) in (0, 2), folder
        assert contents(outside) == before, folder
        shutil.rmtree(copy)


def unfinished(path: Path, process: int) -> Path:
    """Where a process fills a file; it has begun."""
    folder = path.with_name(f".{path.name}.{process}.tmp.a1b2c3d4")
    folder.mkdir()
    (folder / f".new{path.suffix}").write_bytes(b"half")
    return folder


@each_command
def test_each_command_removes_what_was_left_of_the_files_that_it_writes(name: str, place: Path) -> None:
    (trained,) = Path("artifacts").glob("[!.]*")
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    left = {path: unfinished(path, GONE) for path in before}
    at_work = [unfinished(path, os.getppid()) for path in before]
    if name == "recover-log":
        before[place / trained / "requests.jsonl"] = 0
        (trained / "requests.jsonl").unlink()
    assert main(argv_of(name, trained)) == 0
    written = [path for path, when in before.items() if path.exists() and path.stat().st_mtime_ns != when]
    assert written
    assert not [path for path in written if left[path].exists()]
    assert all(folder.exists() for folder in at_work)


@each_command
def test_each_command_says_in_a_sentence_that_the_disk_is_full(name: str, place: Path, run: Run) -> None:
    (trained,) = Path("artifacts").glob("[!.]*")
    if name == "recover-log":
        (trained / "requests.jsonl").unlink()
    before = contents(place)
    with largest_file(10):
        code, out, err = run(*argv_of(name, trained))
    assert (code, out) == (2, "")
    assert "it cannot be written (File too large)" in err.splitlines()[-1]
    assert contents(place) == before


def test_no_output_takes_the_place_of_what_this_program_keeps(place: Path, run: Run) -> None:
    """Of every command that has ``--output``."""
    (trained,) = Path("artifacts").glob("[!.]*")
    beside_rows = {path.parent for path in Path("results").rglob("rows.jsonl")}
    files = [path for path in (*trained.rglob("*"), *Path("results").rglob("*")) if path.is_file()]
    kept = [p for p in files if p.parent in beside_rows or (trained in p.parents and not p.name.startswith("model-"))]
    before = contents(place)
    writing = [name for name in FUNCTIONS if "output" in declared(name)]
    assert {*writing} == {"export", "report", "dashboard"}
    for name in writing:
        for path in kept:
            code, out, err = run(*argv_of(name, trained), "--output", str(path))
            assert (code, out) == (2, "")
            assert "this program keeps its own files there" in err
    assert contents(place) == before


@pytest.mark.parametrize("link", ["versions", "versions/0001.safetensors", ".lock", "requests.jsonl"])
def test_a_request_refuses_a_link_in_one_sentence(place: Path, run: Run, link: str) -> None:
    (trained,) = Path("artifacts").glob("[!.]*")
    path, outside = trained / link, place / "outside"
    linked(path, outside)
    before = contents(place / "outside") if outside.is_dir() else outside.read_bytes()
    code, out, err = run("unlearn", str(trained), "--class", "1")
    assert (code, out) == (2, "")
    assert err == (
        f"quickdrop-bench: RUN {trained}: {link} in it is a symbolic link, and nothing is written through one; "
        "remove it.\n"
    )
    assert (contents(outside) if outside.is_dir() else outside.read_bytes()) == before


@pytest.mark.parametrize("argv", [TRAIN, TABLE, DISTRIBUTION], ids=["train", "table", "distribution"])
def test_folders_that_the_user_names_may_be_links(argv: list[str], tmp_path: Path, run: Run) -> None:
    for name in ("results", "artifacts"):
        (tmp_path / f"disk/{name}").mkdir(parents=True)
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    assert run(*argv)[0] == 0
    assert contents(tmp_path / "disk")


def test_decoded_pictures_are_not_cached_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(tmp_path / "pictures")
    (tmp_path / "outside").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/quickdrop-bench").symlink_to(tmp_path / "outside")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ["--dataset", "imagefolder", "--data-dir", "pictures", "--min-client-size", "1"]
    with pytest.warns(UserWarning, match="symbolic link"):
        assert main([*DISTRIBUTION, *options]) == 0
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize(
    ("argv", "file"),
    [
        (COMMANDS["export"], "artifacts/RUN/model-0001.safetensors"),
        (["export", "RUN", "--output", "mine.safetensors"], "mine.safetensors"),
        (COMMANDS["report"], "results/report.html"),
        (["report", "--output", "page.html"], "page.html"),
        (COMMANDS["dashboard"], "results/dashboard.json"),
        (COMMANDS["recover-log"], "artifacts/RUN/requests.jsonl"),
        (TABLE, "results/quick/table2/table.md"),
        (COMMANDS["figure"], "results/quick/figure2/figure.svg"),
        (TRAIN, "artifacts/RUN/distribution.csv"),
    ],
)
def test_a_link_in_the_place_of_a_file_is_not_written_through(place: Path, argv: list[str], file: str) -> None:
    (trained,) = Path("artifacts").glob("[!.]*")
    path, outside = Path(file.replace("RUN", trained.name)), Path("outside")
    outside.write_text("another's")
    path.unlink(missing_ok=True)
    path.symlink_to(outside.resolve())
    code = main([str(trained) if part == "RUN" else part for part in argv])
    assert code == 2 or (code == 0 and not path.is_symlink())
    assert outside.read_text() == "another's"
