"""``~`` in a path is the user's home, wherever the path stands."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from quickdrop_bench.cli.parser import COMMANDS, declared
from quickdrop_bench.cli.resolve import options_of
from tests.conftest import Run

POSITIONAL = {
    "table": ["2"],
    "figure": ["2"],
    **{name: ["x"] for name in ("unlearn", "relearn", "evaluate", "show", "export")},
}
OPTIONS = ("--artifacts-dir", "--results-dir", "--data-dir", "--output")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_of_every_command(command: str, home: Path) -> None:
    argv = [command, *POSITIONAL.get(command, [])] + (["--preset", "quick"] if COMMANDS[command].has_preset else [])
    paths = [option for option in declared(command).values() if Path in (option.type, *get_args(option.type))]
    for option in paths:
        assert option.name in OPTIONS
        for typed, found in (([f"{option.name}=~/x"], home / "x"), ([option.name, "a/~"], Path("a/~"))):
            assert options_of([*argv, *typed])[option.key] == found


def test_paths_in_a_file_and_the_files_own(home: Path) -> None:
    (home / "options.yaml").write_text("artifacts_dir: ~/x\nresults_dir: '~'\n")
    for given in (str(home / "options.yaml"), "~/options.yaml"):
        found = options_of(["table", "2", "--preset", "quick", f"--config={given}"])
        assert (found.artifacts_dir, found.results_dir) == (home / "x", home)


def test_another_users_home_that_is_not_there_is_refused(run: Run) -> None:
    code, out, err = run("train", "--preset", "quick", "--artifacts-dir=~nobody-of-this-name/x")
    assert (code, out) == (2, "")
    assert err == "quickdrop-bench: --artifacts-dir ~nobody-of-this-name/x: there is no such user's home.\n"
