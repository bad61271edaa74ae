"""What the README shows, run as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from quickdrop_bench.cli import main
from quickdrop_bench.harness.catalogue import artefact
from quickdrop_bench.methods import METHODS
from quickdrop_bench.parsing import parse
from quickdrop_bench.registry import Registry
from tests.conftest import TINY
from tests.integration.judging import Ended

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def python_block(word: str) -> str:
    return next(text for language, text in BLOCKS if language == "python" and word in text)


COMMANDS = [line for _, text in BLOCKS for line in text.splitlines() if line.startswith("python -m quickdrop_bench")]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    assert parse(shlex.split(line)[3:])


def test_pandas_example(table_2: Ended, capsys: pytest.CaptureFixture[str]) -> None:
    exec(python_block("read_json"), {})  # noqa: S102 - the README's own code
    printed = capsys.readouterr().out
    assert "quickdrop" in printed
    assert len(pd.read_json("results/quick/table2/rows.jsonl", lines=True)) > 100


def test_a_method_of_your_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = Path("noise.py")
    plugin.write_text(python_block("class Noise"))
    registered: Registry = METHODS
    monkeypatch.setattr(registered, "_items", dict(registered._items))
    monkeypatch.syspath_prepend(".")

    class Plugin:
        def load(self) -> None:
            __import__("noise")

    monkeypatch.setattr("quickdrop_bench.methods.base.entry_points", lambda group: [Plugin()])
    assert main(["table", "2", *TINY, "--methods", "retrain-or,noise", "--noise.sigma", "0.2"]) == 0
    assert "noise" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["methods"]) == 0
    listed = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line[0] != " "}
    assert (listed["noise"], listed["quickdrop"]) == ("noise", "quickdrop_bench")


def test_results_are_those_of_the_rows() -> None:
    """``python benchmarks/readme.py`` writes them."""
    assert artefact("readme").block() in README


def test_make_targets_exist() -> None:
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z0-9-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
