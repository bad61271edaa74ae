"""A process that is told lines of JSON: it may be missing, die or hang, and nobody waits for long."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from quickdrop_bench.__main__ import _is_likely_mirrored, main
from quickdrop_bench.listener import Listener, abandon_early, encode, listener, start_early

Start = Callable[..., Listener]

ECHO = """
import sys
for line in sys.stdin:
    print(line, end="", flush=True)
"""
DEAF = """
import time
time.sleep(100)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a listener that runs a program."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    started = []

    def call(source: str, begin: Callable[[str], Any] = Listener) -> Any:
        (folder / "told.py").write_text(source)
        started.append(begin("told"))
        return started[-1]

    yield call
    for one in started:
        if one:
            one.abandon()


def patience(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickdrop_bench.listener.PATIENCE", seconds)


def until_refused(one: Listener) -> str:
    """What somebody who goes on telling is told."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            one.tell({})
        except ConnectionError as error:
            return str(error)
        time.sleep(0.01)
    raise AssertionError("it is told on and on")


def test_all_is_answered_in_order_before_it_is_closed(start: Start) -> None:
    one = start(ECHO)
    events = [{"n": n, "text": "ü\n\ud800"} for n in range(1000)]
    for event in events:
        one.tell(event)
    one.close()
    assert list(one.answers()) == events
    assert list(one.answers()) == []
    assert one._process.returncode == 0


def test_numbers_are_plain_and_other_things_are_texts() -> None:
    event = {"n": np.int64(3), "x": np.float32(0.5), "t": torch.tensor(2), "path": Path("a"), "no": float("nan")}
    told = json.loads(encode(event))
    assert (told["n"], told["x"], told["t"], told["path"]) == (3, 0.5, 2, "a")
    assert told["no"] != told["no"]
    assert encode(event).count(b"\n") == 1


def test_process_that_cannot_start_is_an_error_when_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    one = Listener("told")
    for act in (lambda: one.tell({}), one.close):
        with pytest.raises(ConnectionError, match=r"could not be started: .*/nowhere/python"):
            act()
    one.abandon()
    assert (list(one.answers()), one.errors) == ([], "")


def test_without_a_temporary_folder_it_is_an_error_when_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(mode: str) -> NoReturn:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("tempfile.TemporaryFile", nowhere)
    one = Listener("told")
    with pytest.raises(ConnectionError, match="could not be started: no usable"):
        one.tell({})


def test_dead_process_is_an_error_that_says_its_last_words(start: Start) -> None:
    one = start("import os, sys\nprint('first\\nlast', file=sys.stderr, flush=True)\nos._exit(3)")
    assert until_refused(one) == "its process ended with 3: last"
    with pytest.raises(ConnectionError, match="ended with 3: last"):
        one.close()
    assert one.errors == "first\nlast\n"


def test_process_that_closes_its_input_breaks_nothing(start: Start) -> None:
    one = start("import os, time\nos.close(0)\nprint('{}', flush=True)\ntime.sleep(0.5)")
    while not list(one.answers()):
        time.sleep(0.01)
    for _ in range(100):
        one.tell({"text": "x" * 10_000})
    one.close()


def test_process_that_reads_nothing_delays_nobody(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    patience(0.3, monkeypatch)
    one, began = start(DEAF), time.monotonic()
    for _ in range(200):
        one.tell({"text": "x" * 10_000})  # far more than a pipe holds
    assert time.monotonic() - began < 1
    with pytest.raises(TimeoutError, match=r"answered nothing for 0\.3 seconds"):
        one.close()
    assert time.monotonic() - began < 5
    assert one._process.returncode == -9


def test_process_that_answers_is_waited_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    patience(2, monkeypatch)
    one = start("import sys, time\nfor line in sys.stdin:\n    time.sleep(0.5)\n    print(line, end='', flush=True)")
    for n in range(6):
        one.tell({"n": n})
    one.close()
    assert [answer["n"] for answer in one.answers()] == list(range(6))


def test_process_that_answers_no_more_but_stays_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    patience(0.3, monkeypatch)
    one = start("import os, time\nos.close(1)\ntime.sleep(100)")
    with pytest.raises(TimeoutError):
        one.close()


def test_half_an_answer_is_none(start: Start) -> None:
    one = start("print('{}')\nprint('{\"half', end='')")
    one.close()
    assert list(one.answers()) == [{}]


def test_interrupt_of_a_terminal_does_not_reach_it(start: Start) -> None:
    one = start(ECHO)
    assert os.getpgid(one._process.pid) != os.getpgrp()


def test_nothing_is_imported_from_the_current_folder(start: Start) -> None:
    Path("json.py").write_text("raise RuntimeError('not this one')")
    assert {"", os.getcwd()}.isdisjoint(sys.path)
    one = start(f"import json\n{ECHO}")
    one.tell({"n": 1})
    one.close()
    assert list(one.answers()) == [{"n": 1}]


def test_early_process_is_the_one_that_listens(start: Start) -> None:
    start(ECHO, start_early)
    one, another = listener("told"), listener("told")
    assert one is not another
    one.close()
    another.close()


def test_early_process_that_nobody_needs_is_ended(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("quickdrop_bench.listener.Listener", lambda name: made.append(Listener(name)) or made[-1])
    start(DEAF, start_early)
    abandon_early()
    abandon_early()
    assert [one._process.returncode for one in made] == [-9]


GUESSES = {
    "table": ("table 2", "", True),
    "train": ("train --wandb online", "offline", True),
    "disabled by option": ("sweep --wandb disabled", "", False),
    "disabled by option, in one word": ("sweep --wandb=disabled", "", False),
    "disabled by the environment": ("figure 2", "disabled", False),
    "help": ("table --help", "", False),
    "not mirrored": ("unlearn", "", False),
    "nothing": ("", "", False),
}


def test_process_starts_before_the_command_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    monkeypatch.setattr("quickdrop_bench.__main__.start_early", started.append)
    monkeypatch.setattr(sys, "argv", ["quickdrop-bench", "table", "7"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main() == 2
    assert started == ["quickdrop_bench.mirror"]
    assert "table 7" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "mode", "likely"), GUESSES.values(), ids=GUESSES.keys())
def test_guess_from_the_command_line(line: str, mode: str, likely: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert _is_likely_mirrored(line.split()) == likely
