"""From what is typed, files and presets to options; help, and what answers at once."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace

from quickdrop_bench.cli.commands import FUNCTIONS
from quickdrop_bench.cli.grid import cells
from quickdrop_bench.cli.lists import split
from quickdrop_bench.cli.main import main
from quickdrop_bench.cli.parser import COMMANDS, declared
from quickdrop_bench.cli.resolve import Parser, federation_spec, methods_of, options_of, parse
from quickdrop_bench.harness.exhibits import exhibits
from quickdrop_bench.harness.presets import preset_files, presets
from quickdrop_bench.methods import METHODS
from tests.conftest import TINY, Run

QUICK = [
    ["--help"],
    ["--version"],
    ["table", "--help"],
    ["sweep", "--help-methods"],
    ["methods"],
    ["metrics"],
    ["models"],
    ["datasets"],
    ["presets"],
]
MISTAKES = [
    ["tabel"],
    ["table", "19"],
    ["table", "2", "--alpha", "0"],
    ["sweep", "--scales", "x"],
    ["train", "--lr", "-1"],
]


@pytest.mark.parametrize("argv", [*QUICK, *MISTAKES], ids=" ".join)
def test_what_computes_nothing_waits_for_no_large_library(argv: list[str], tmp_path: Path) -> None:
    code = f"""
import sys
from quickdrop_bench.__main__ import main
sys.argv[1:] = {argv}
try:
    code = main()
except SystemExit as end:
    code = end.code
large = {{"torch", "lightning", "pandas", "matplotlib", "torchmetrics", "numpy", "wandb"}} & sys.modules.keys()
sys.exit(f"{{large}} imported" if large else code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout == "") == ((2, True) if argv in MISTAKES else (0, False)), done.stderr
    assert "Traceback" not in done.stderr


def test_every_command_has_a_function() -> None:
    assert list(COMMANDS) == list(FUNCTIONS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_or_two(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 120
    assert max(map(len, lines)) <= 80


def test_a_sweep_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []

    def count(self: Parser, *args: Any, **options: Any) -> Any:
        parsed.append(args)
        return ArgumentParser.parse_args(self, *args, **options)

    monkeypatch.setattr(Parser, "parse_args", count)
    line = parse(["sweep", "--preset", "quick", "--scales", "1,2,5,10", "--alphas", "0.1,0.5,1,10"])
    experiments = [experiment for experiment, _ in cells("sweep", line)]
    points = [(e.federation.scale, e.federation.alpha) for e in experiments]
    assert points == list(product((1, 2, 5, 10), (0.1, 0.5, 1, 10)))
    assert len(parsed) == 1


LISTS = {
    "methods": "quickdrop",
    "metrics": "membership",
    "models": "resnet18",
    "datasets": "svhn",
    "presets": "quick",
}


@pytest.mark.parametrize(("command", "word"), LISTS.items())
@pytest.mark.parametrize("details", [[], ["--details"]])
def test_lists_fit_a_terminal(run: Run, command: str, word: str, details: list[str]) -> None:
    code, out, _ = run(command, *details)
    assert code == 0
    assert word in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    if [command, *details] == ["methods"]:
        assert len(out.splitlines()) == 1 + len(METHODS)
    assert ("update-history" in out) == ([command, *details] == ["methods", "--details"])


@pytest.mark.parametrize("preset", presets())
def test_presets_are_options_with_values_of_their_kinds(preset: str) -> None:
    """Every file and section of it, with all data sets that have a file of their own."""
    folder = preset_files(preset, None)[0].parent
    sections = {name.replace("-", "_") for name in METHODS} | {*exhibits()}
    for path in folder.glob(f"{preset}*.yaml"):
        assert {name for name, value in yaml.safe_load(path.read_text()).items() if isinstance(value, dict)} <= sections
    special = [path.stem.split(".", 1)[1] for path in folder.glob(f"{preset}.*.yaml")]
    for dataset, name in product([None, *special], exhibits()):
        command, number = re.fullmatch(r"([a-z]+)(\d*)", name).groups()  # type: ignore[union-attr]
        named = [] if dataset is None else ["--dataset", dataset]
        args = options_of([command, *filter(None, [number]), "--preset", preset, *named], name)
        known = declared(command)
        for key, value in vars(args.as_flat()).items():
            kinds = get_args(known[key].type) or (known[key].type,)
            assert isinstance(value, (*kinds, *((int,) if float in kinds else ()))) or key in ("number", "preset"), key
        methods_of(args)
        for one in split("--dataset", args.dataset):
            federation_spec(options_of([command, *filter(None, [number]), "--preset", preset, "--dataset", one], name))


def test_paper_preset_is_the_papers_setting() -> None:
    def of(number: str) -> Namespace:
        return options_of(["table", number, "--preset", "paper"], f"table{number}")

    args = of("2")
    expected = {
        "dataset": "cifar10", "clients": 10, "alpha": 0.1, "width": 128, "depth": 3, "rounds": 200,
        "local_steps": 50, "batch_size": 256, "lr": 0.01, "scale": 100, "image_steps": 1, "image_lr": 0.1, "seeds": "5",
    }  # fmt: skip
    assert {name: args[name] for name in expected} == expected
    assert (args.sga_or.unlearn_lr, args.sga_or.recover_lr) == (0.02, 0.01)
    assert (args.quickdrop.unlearn_lr, args.quickdrop.recover_lr) == (0.002, 0.003)  # distilled images want less
    assert (args.quickdrop.unlearn_rounds, args.quickdrop.recover_rounds, args.retrain_or.rounds) == (1, 2, 30)
    bounds = (args.quickdrop.unlearn_local_steps, args.quickdrop.unlearn_stop_loss)
    assert bounds == (10, 6)  # T would destroy the model
    assert (args.quickdrop.recover_local_steps, args.quickdrop.relearn_local_steps) == (None, 5)
    assert args.rounds // args.record_every == 10  # rounds that FedEraser replays, Table 2
    assert (args.federaser.recover_rounds, args.fu_mp.recover_rounds, args.sga_or.unlearn_rounds) == (3, 4, 2)
    assert (of("3").dataset, of("3").clients, of("3").participation) == ("svhn", 100, 0.1)
    assert of("3").quickdrop.recover_participation is None  # as in training
    assert [of(number).clients for number in "45"] == [20, 20]
    assert of("5").dataset == "cifar10,mnist"


def test_the_command_line_stands_above_files_and_files_above_the_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("rounds: 7\nlr: 0.25\nquickdrop:\n  augment: false\n")
    (tmp_path / "more.yaml").write_text("rounds: 8\n")
    files = ["--config", "mine.yaml", "--config", "more.yaml"]
    args = options_of(["table", "2", "--lr", "0.5", "--preset", "quick", *files], "table2")
    assert (args.rounds, args.lr, args.quickdrop.augment, args.depth) == (8, 0.5, False, 2)


@pytest.mark.parametrize("command", [["table", "4"], ["sweep"], ["train"], ["distribution"]])
def test_what_print_config_prints_is_a_configuration(run: Run, command: list[str]) -> None:
    code, out, _ = run(*command, "--preset", "small", "--lr", "0.5", "--print_config")
    assert code == 0
    Path("all.yaml").write_text(out)
    own, section = parse([*command, "--preset", "small", "--lr", "0.5"]), "".join(command)
    again = parse([*command, "--config", "all.yaml"])
    assert again.preset == "small"
    found, expected = (vars(one.options(section).as_flat()) for one in (again, own))
    assert {**found, "seeds": str(found["seeds"])} == expected


def test_default_preset_is_announced(run: Run) -> None:
    _, _, err = run("table", "2", *TINY[2:], "--clients", "-1")
    assert err.startswith("preset quick (others: --preset small or --preset paper)\n")
