"""Tables and figures as data."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from quickdrop_bench.cli.grid import cells
from quickdrop_bench.cli.resolve import parse
from quickdrop_bench.core.errors import BadInput
from quickdrop_bench.harness import exhibits as module
from quickdrop_bench.harness.exhibits import exhibit, exhibits
from quickdrop_bench.harness.presets import benchmarks_dir
from quickdrop_bench.methods import METHODS


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the definitions, to be added to."""
    shutil.copytree(benchmarks_dir(), tmp_path / "benchmarks")
    monkeypatch.setattr(module, "benchmarks_dir", lambda: tmp_path / "benchmarks")
    for cached in (module._files, exhibit):
        cached.cache_clear()
    yield tmp_path / "benchmarks" / "tables"
    for cached in (module._files, exhibit):
        cached.cache_clear()


@pytest.mark.parametrize("name", exhibits())
def test_every_definition_can_be_used(name: str) -> None:
    found = exhibit(name)
    assert set(found.methods) <= set(METHODS)
    assert found.kind != "figure" or callable(import_module(f"quickdrop_bench.reporting.figures.{found.draw}").draw)
    assert bool(found.columns) == (found.kind == "table")
    assert len({column.key for column in found.columns}) == len(found.columns)
    assert {variant.shape for variant in found.variants} <= set(exhibits())


def test_a_table_is_one_file(tables: Path) -> None:
    column = "{header: R-Set, stage: total, metric: r_set_accuracy, kind: percent}"
    (tables / "9.yaml").write_text(f"title: mine\nmethods: [quickdrop]\ncolumns: [{column}]\n", encoding="utf-8")
    assert exhibits()[7:9] == ["table8", "table9"]
    assert exhibit("table9").heading == "Table 9: mine"


def test_figure_6_recovers_in_passes_and_in_the_presets_steps() -> None:
    line = parse(["figure", "6", "--preset", "quick", "--scales", "1,100", "--quickdrop.recover-lr", "0.1"])
    found = [
        (experiment.federation.scale, method, experiment.method_setting(method)["method_changes"])
        for experiment, methods in cells("figure6", line)
        for method in methods
    ]
    steps, ours = "recover_local_epochs null", "recover_lr 0.1"
    first = [(1, "retrain-or", ""), (1, "sga-or", ""), (1, "random-subset", ""), (1, "quickdrop", ours)]
    second = [(1, "sga-or", steps), (1, "random-subset", steps), (1, "quickdrop", f"{steps}, {ours}")]
    more = [(100, "random-subset", ""), (100, "quickdrop", ours)]
    more_steps = [(100, "random-subset", steps), (100, "quickdrop", f"{steps}, {ours}")]
    assert found == [*first, *more, *second, *more_steps]  # retraining recovers nothing


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: mine\nmethods: [quickdrop]\nrows: 1\n", "unknown key rows"),
        ("title: mine\n", "methods"),
        ("title: mine\nmethods: []\nlevel: pixel\n", "level 'pixel' is none of class, client, sample"),
        ("title: mine\nmethods: []\ncolumns: [{header: x, stage: total, metric: x, kind: feet}]\n", "kind 'feet'"),
        ("- 1\n", "it describes no table"),
    ],
)
def test_a_wrong_file_is_named(tables: Path, text: str, said: str) -> None:
    (tables / "9.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"tables/9\.yaml") as caught:
        exhibit("table9")
    assert said in str(caught.value)
