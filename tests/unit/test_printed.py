"""What rows and logs hold is shown so that it commands no terminal, wherever a command shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from quickdrop_bench.cli.commands import FUNCTIONS, SERVES, measured, report
from quickdrop_bench.cli.parser import declared
from quickdrop_bench.core.files import LOG
from quickdrop_bench.reporting.frame import OPTIONAL, TEXTS
from quickdrop_bench.serving.log import chained_to, read_log, write_log
from quickdrop_bench.store.rows import KEY, NUMBERS, WHOLE
from tests.conftest import TINY, Run
from tests.damage import seal

TABLE = ["table", "2", *TINY, "--methods", "quickdrop"]
COMMANDING = "\ud800\x1b]0;title\x07\r\x08\x7f\x9b2J\u202e\u2066\u200f\u2028"
"""Half of a character pair, which JSON can write and UTF-8 cannot; control characters; bidirectional marks."""


NO_TEXTS = {"versions", "git_dirty", "wall_seconds"}
"""Columns of rows beside the numbers that hold no text of their own."""

SERVING = {
    "show": [],
    "evaluate": [],
    "unlearn": ["--class", "3", "--dry-run"],
    "relearn": ["--class", "9", "--dry-run"],
    "export": [],
}
"""All commands that read a federation; none of them changes it."""


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def spoil_rows() -> None:
    """Put an odd end behind every text that a row can have, and one row more that is marked as failed."""
    for path in Path("results").rglob("rows.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines.append({**lines[-1], "value": 1.0, "error": "MemoryError", "phase": "recovery"})
        has_text = {name for line in lines for name, value in line.items() if isinstance(value, str)}
        assert {*KEY, *TEXTS, *OPTIONAL} <= has_text | {*WHOLE, *NUMBERS} | NO_TEXTS
        for line in (*lines[:: max(len(lines) // 20, 1)], lines[-1]):
            line["versions"][COMMANDING] = line[COMMANDING] = COMMANDING
            line |= {name: f"{line.get(name, '')}{COMMANDING}" for name in has_text - {"spec_hash"}}
        lines[-1]["metric"] = "failed"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.filterwarnings("ignore:constrained_layout")  # many long names leave no room in the figure
def test_every_text_of_a_row(run: Run) -> None:
    sweep = ["sweep", *TINY, "--scales", "10", "--methods", "quickdrop"]
    commands = (TABLE, ["figure", "2", *TINY], sweep, [*TABLE, "--details"], ["report"])
    assert {argv[0] for argv in commands} == {name for name, made in FUNCTIONS.items() if made in (measured, report)}
    assert [run(*argv)[0] for argv in commands[:3]] == [0, 0, 0]
    for argv in commands:
        spoil_rows()
        code, *said = run(*argv)
        assert code in (0, 1), said  # a run is marked as failed
        files = [path for kind in ("md", "tex", "csv", "html") for path in Path("results").rglob(f"*.{kind}")]
        for text in (*said, *(path.read_text() for path in files)):
            assert harmless(text), argv
    page, table = (Path("results", name).read_text() for name in ("report.html", "quick/table2/table.md"))
    assert "MemoryError\\ud800" in page
    assert "\\u202e" in table


def spoilt(values: Any) -> Any:
    """The same with an odd end of every text in it."""
    if isinstance(values, dict):
        return {f"{name}{COMMANDING}": spoilt(value) for name, value in values.items()} | values
    return f"{values}{COMMANDING}" if isinstance(values, str) else values


def answers(run: Run) -> Iterator[str]:
    """What the commands that read a federation say of it."""
    assert {*SERVING} == {*SERVES}
    for command, asked in SERVING.items():
        for more in ([], ["--json"]) if "json" in declared(command) else ([],):
            code, out, err = run(command, "latest", *asked, *more)
            assert code in (0, 2), command
            yield out + err


def logs(folder: Path) -> Iterator[str]:
    """Logs with an odd text at each place of an entry, one after the other; some would be refused."""
    (entry,) = read_log(folder)
    for name in json.loads(entry.line):
        value = getattr(entry, name)
        odd = spoilt(value) if isinstance(value, dict | str) else value
        values = json.loads(entry.line) | {name: odd}
        yield json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass").decode("utf-8", "replace") + "\n"


def test_every_text_of_a_log(run: Run) -> None:
    assert run("train", *TINY)[0] == 0
    assert run("unlearn", "latest", "--class", "9")[0] == 0
    (folder,) = Path("artifacts").glob("[!.]*")
    accepted = 0
    for log in logs(folder):
        (folder / LOG).write_text(log)
        for said in answers(run):
            assert harmless(said)
            accepted += not said.startswith("quickdrop-bench:")
    assert accepted > 12


def test_a_log_that_fits_its_chain_is_served_on(run: Run) -> None:
    assert run("train", *TINY)[0] == 0
    assert run("unlearn", "latest", "--class", "9")[0] == 0
    (folder,) = Path("artifacts").glob("[!.]*")
    (entry,) = read_log(folder)
    odd = COMMANDING.replace("\ud800", "")
    write_log(folder, [replace(entry, provenance=entry.provenance | {"device": odd}, previous=chained_to([]))])
    code, out, err = run("unlearn", "latest", "--class", "3", "--json")
    assert code == 0, err
    assert harmless(out)
    code, out, _ = run("show", "latest", "--json")
    assert harmless(out)
    assert json.loads(out)["requests"][0]["provenance"]["device"] == odd


def texts_of(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the texts are in nested values."""
    inner = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inner:
        yield from [(*path, key)] if isinstance(value, str) else texts_of(value, (*path, key))


def test_every_text_of_a_federation(run: Run) -> None:
    assert run("train", *TINY)[0] == 0
    (folder,) = Path("artifacts").glob("[!.]*")
    readers: dict[str, tuple[Any, Any]] = {
        "manifest.json": (json.loads, json.dumps),
        "config.yaml": (yaml.safe_load, yaml.safe_dump),
    }
    places = 0
    for name, (load, dump) in readers.items():
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        for *inner, last in texts_of(load((folder / name).read_text())):
            if "files" in inner or (inner and last not in (0, "name")):
                continue  # checksums; of the classes' names, the first
            values = load((folder / name).read_text())
            place = values
            for key in inner:
                place = place[key]
            place[last] += COMMANDING if name == "manifest.json" else COMMANDING.replace("\ud800", "")
            (folder / name).write_text(dump(values))
            seal(folder)
            assert all(map(harmless, answers(run))), last
            places += 1
            for file, content in before.items():
                (folder / file).write_bytes(content)
    assert places > 6


@pytest.mark.parametrize("command", ["show", "evaluate", "export", "unlearn"])
def test_a_folder_s_name(command: str, run: Run) -> None:
    assert run("train", *TINY)[0] == 0
    folder = next(Path("artifacts").glob("[!.]*")).rename(Path("artifacts") / "x\x1b]0;title\x07\u202e")
    code, out, err = run(command, str(folder), *(["--class", "3"] if command == "unlearn" else []))
    assert (code, out) == (2, "")
    assert harmless(err)
    assert "its name must be printable text" in err
