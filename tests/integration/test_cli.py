"""The command line on a tiny federation."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import yaml

from quickdrop_bench.cli.commands import SUMMARIES
from quickdrop_bench.cli.lists import split
from quickdrop_bench.cli.main import COMMANDS, FIGURES, TABLES, main
from quickdrop_bench.cli.options import _warn_of_slow_bfloat16, federation_spec, methods_of
from quickdrop_bench.cli.resolve import COMMANDS as OPTIONS
from quickdrop_bench.cli.resolve import parse
from quickdrop_bench.harness.presets import presets
from quickdrop_bench.methods import METHODS
from quickdrop_bench.store.rows import LAST
from tests.conftest import PARTITION, TINY, Run
from tests.integration.judging import Ended

METHODS_OF_TABLE_2 = ["retrain-or", "federaser", "sga-or", "fu-mp", "random-subset", "quickdrop"]
FILES = {"rows.jsonl", "table.csv", "table.md", "table.tex"}


def read_rows(folder: Path = Path("results/quick/table2")) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def accuracies(rows: list[dict[str, object]]) -> list[tuple[object, ...]]:
    keys = ("seed", "method", "stage", "metric", "value")
    return [tuple(r[k] for k in keys) for r in rows if "accuracy" in str(r["metric"])]


def test_table_from_nothing_and_again(run: Run, table_2: Ended, tmp_path: Path) -> None:
    out, err = table_2.out, table_2.err
    folder = tmp_path / "results/quick/table2"
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == FILES
    heading = "digits, 3 clients, dirichlet-0.1, request class-9"
    for text in ("Retrain-Or", "FedEraser", "SGA-Or", "FU-MP", "Random subset", "QuickDrop", "463.7×", heading):
        assert text in out
    assert "round 1/2" in err
    rows = read_rows()
    ran = [r["method"] for r in rows if r["metric"] == "seconds" and r["stage"] in ("total", "fl-training")]
    assert ran == ["original", *METHODS_OF_TABLE_2]
    provenance = {"preset", "spec_hash", "git_commit", "git_dirty", "package_version", "versions", "device"}
    assert {(r["stage"], r["metric"]) for r in (rows[-1], [r for r in rows if r["method"] == "original"][-1])} == set(
        LAST
    )
    for row in rows:
        assert provenance | {"precision", "created_at", "wall_seconds", "value"} <= set(row)
    values = {(r["method"], r["stage"], r["metric"]): r["value"] for r in rows}
    assert values["quickdrop", "total", "storage_client_bytes"] > 0
    assert values["federaser", "total", "storage_server_bytes"] > 0
    assert 0 <= values["retrain-or", "total", "r_set_accuracy"] <= 1
    before = (folder / "rows.jsonl").read_bytes()
    code, again, err = run("table", "2", *TINY)
    assert (code, again) == (0, out)
    assert "round" not in err
    assert (folder / "rows.jsonl").read_bytes() == before


def test_same_command_twice_gives_equal_accuracies(run: Run, table_2: Ended) -> None:
    run("table", "2", *TINY, "--results-dir", "again", "--artifacts-dir", "again")
    first, second = (read_rows(Path(name) / "quick/table2") for name in ("results", "again"))
    assert accuracies(first) == accuracies(second)
    assert len(accuracies(first)) > 50


def test_methods_can_be_run_one_by_one_on_one_federation(run: Run, federation_here: None) -> None:
    run("table", "2", *TINY, "--methods", "quickdrop")
    rows = read_rows()
    assert {r["method"] for r in rows} == {"original", "quickdrop"}
    assert "SGA-Or (not run)" in Path("results/quick/table2/table.md").read_text()
    _, out, err = run("table", "2", *TINY, "--methods", "retrain-or,quickdrop")
    assert "fl-training · round" not in err  # the federation was reused
    assert "quickdrop · unlearning" not in err
    assert {r["method"] for r in read_rows()} == {"original", "retrain-or", "quickdrop"}
    assert read_rows()[: len(rows)] == rows
    assert "1.0×" in out


def test_other_specs_are_not_mixed_in(run: Run, table_2: Ended) -> None:
    count = len(read_rows())
    code, _, err = run("table", "2", *TINY, "--quickdrop.unlearn-lr", "0.5")
    assert code == 0
    assert "quickdrop · unlearning" in err
    assert "retrain-or" not in err
    assert len(read_rows()) < 2 * count
    lines = pd.read_csv("results/quick/table2/table.csv")
    lines = lines[lines["status"] != "unsupported"]
    assert lines["method"].tolist() == [*METHODS_OF_TABLE_2, "quickdrop (unlearn_lr 0.5)"]
    assert lines["seeds"].tolist() == [1] * 7


def test_changed_code_is_not_reused(run: Run, table_2: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickdrop_bench.harness.spec.source_digest", lambda *roots: "other code")
    _, _, err = run("table", "2", *TINY, "--methods", "quickdrop")
    assert "fl-training · round" in err


def test_force_measures_again(run: Run, table_2: Ended) -> None:
    before = read_rows()
    _, _, err = run("table", "2", *TINY, "--force", "--methods", "sga-or")
    assert "sga-or · unlearning" in err
    assert "quickdrop" not in err
    assert len(read_rows()) == len(before)
    times = [
        {(r["stage"], r["metric"]): r["value"] for r in rows if r["method"] == "sga-or" and r["metric"] == "seconds"}
        for rows in (before, read_rows())
    ]
    assert times[0].keys() == times[1].keys()
    assert times[0] != times[1]  # no two measurements of seconds are equal


def test_force_with_bad_input_destroys_nothing(run: Run, table_2: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("results/quick/table2/rows.jsonl")
    before = path.read_bytes()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, _ = run("table", "2", *TINY, "--force", "--accelerator", "cuda")
    assert code == 2
    assert path.read_bytes() == before


def test_two_data_sets_share_a_table(run: Run, table_2: Ended) -> None:
    run("table", "2", *TINY, "--iid", "--methods", "quickdrop")
    text = Path("results/quick/table2/table.md").read_text()
    assert "digits, 3 clients, dirichlet-0.1" in text
    assert "digits, 3 clients, iid" in text


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--precision", "bf16-mixed"], ["--participation", "0.5"]])
def test_settings(run: Run, options: list[str]) -> None:
    code, out, _ = run("table", "2", *TINY, *options)
    assert code == 0
    assert "QuickDrop" in out
    if "bf16-mixed" in options:
        assert {r["precision"] for r in read_rows()} == {"bf16-mixed"}


@pytest.mark.parametrize(("instructions", "times"), [("AVX2", 1), ("AVX512", 0)])
def test_imitated_bfloat16_is_said_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, instructions: str, times: int
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: instructions)
    _warn_of_slow_bfloat16.cache_clear()
    argv = ["train", *TINY[:-1], "1,2", "--rounds", "1", "--accelerator", "cpu", "--precision", "bf16-mixed"]
    assert run(*argv)[0] == 0
    assert run(*argv)[0] == 0
    assert sum("without AVX-512" in line for line in caplog.messages) == times


def test_diverged_runs_are_marked_and_the_others_go_on(run: Run, federation_here: None) -> None:
    wreck = ["--sga-or.unlearn-lr", "1e30", "--sga-or.unlearn-stop-loss", "null"]
    code, out, _ = run("table", "2", *TINY, *wreck, "--methods", "sga-or,quickdrop")
    assert code == 1
    assert "SGA-Or (unlearn_lr 1e+30, unlearn_stop_loss null; diverged: 1 of 1)" in out
    assert {r["method"] for r in read_rows()} == {"original", "sga-or", "quickdrop"}


def test_training_that_diverges_says_so(run: Run) -> None:
    code, _, err = run("train", *TINY, "--lr", "1e30")
    assert code == 1
    assert "lower --lr" in err
    assert "Traceback" not in err


def test_interrupted_training_continues_to_the_same_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    more = [*TINY[:2], "--rounds", "4", *TINY[4:]]
    run("train", *more, "--artifacts-dir", "through")
    monkeypatch.setattr("quickdrop_bench.harness.training.SAVING_SHARE", math.inf)

    from quickdrop_bench.cli.progress import ProgressDisplay

    shown = ProgressDisplay.on_round_end

    def interrupt(self: ProgressDisplay, federation: object, info: object) -> None:
        shown(self, federation, info)  # type: ignore[arg-type]
        if info.round == 1:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressDisplay, "on_round_end", interrupt)
    code, _, err = run("train", *more, "--artifacts-dir", "broken")
    assert code == 130
    assert "continues" in err
    monkeypatch.setattr(ProgressDisplay, "on_round_end", shown)
    code, _, err = run("train", *more, "--artifacts-dir", "broken")
    assert code == 0
    assert "round 3/4" in err
    assert "round 2/4" not in err
    folders = [next(Path(name).iterdir()) for name in ("through", "broken")]
    for name in ("global.safetensors", *(f"clients/000{i}.safetensors" for i in range(3))):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert not (folders[1] / "training.ckpt").exists()


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_waits_for_no_large_library(option: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "quickdrop_bench", option]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "quickdrop" in done.stdout
    assert not re.search(r"\| +(torch|lightning|pandas|matplotlib|wandb)$", done.stderr, re.MULTILINE)


def test_every_command_has_a_summary_options_and_a_function() -> None:
    assert list(SUMMARIES) == list(OPTIONS) == list(COMMANDS)


def test_resume_goes_on_with_what_was_begun_and_begins_nothing(run: Run) -> None:
    code, out, err = run("train", *TINY, "--resume")
    assert (code, out) == (2, "")
    assert err.startswith("quickdrop-bench: --resume artifacts: no training with these options was begun")
    assert not Path("artifacts").exists()
    first = run("train", *TINY)[1]
    assert run("train", *TINY, "--resume")[:2] == (0, first)
    assert run("train", *TINY, "--rounds", "3", "--resume")[0] == 2


def test_a_training_clears_away_what_killed_ones_left(run: Run) -> None:
    folder = Path(run("train", *TINY)[1].split()[0])
    unfinished = [folder / ".training.99.tmp.ckpt", folder / "updates/0000/.0000.99.tmp.safetensors"]
    for path in unfinished:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "manifest.json").unlink()
    assert run("train", *TINY)[0] == 0
    assert not any(path.exists() for path in unfinished)
    (folder / "training.ckpt").touch()  # killed between the manifest and the checkpoint's removal
    assert run("train", *TINY)[0] == 0
    assert not (folder / "training.ckpt").exists()


@pytest.mark.parametrize(
    ("option", "named"), [("--lr", "lr 0.3 instead of 0.1"), ("--width", "width 8 instead of 4")], ids=["lr", "width"]
)
def test_another_federation_under_the_same_name_is_refused(run: Run, option: str, named: str) -> None:
    usual, other = ([*TINY, "--lr", "0.1", *more] for more in ([], [option, named.split()[1]]))
    own, foreign = (Path(run("train", *argv)[1].split()[0]) for argv in (usual, other))
    shutil.rmtree(own)
    foreign.rename(own)
    code, out, err = run("train", *usual)
    assert (code, out) == (2, "")
    assert named in err
    assert str(own) in err


def test_train_writes_the_partition_and_everything_the_manifest_lists(run: Run) -> None:
    code, out, _ = run("train", *TINY)
    assert code == 0
    folder = Path(out.split()[0])
    assert {"config.yaml", "global.safetensors", "history.csv", "manifest.json"} <= {p.name for p in folder.iterdir()}
    counts = pd.read_csv(folder / "distribution.csv")
    assert counts["total"].sum() == 1442
    assert (folder / "distribution.svg").read_text().startswith("<?xml")
    assert (folder / "synthetic.png").stat().st_size > 1000
    assert len(pd.read_csv(folder / "history.csv")) == 2


def test_distribution(run: Run) -> None:
    code, out, _ = run("distribution", *PARTITION)
    assert code == 0
    assert [Path(line).suffix for line in out.split()] == [".csv", ".svg", ".png"]
    assert all(Path(line).stat().st_size > 100 for line in out.split())


@pytest.mark.parametrize(("command", "word"), [("methods", "quickdrop"), ("datasets", "svhn"), ("presets", "quick")])
def test_lists(run: Run, command: str, word: str) -> None:
    code, out, _ = run(command)
    assert code == 0
    assert word in out


@pytest.mark.slow
@pytest.mark.parametrize("preset", presets())
def test_presets_parse(preset: str) -> None:
    from quickdrop_bench.harness.presets import preset_files

    folder = preset_files(preset, None)[0].parent
    special = [p.stem.split(".", 1)[1] for p in folder.glob(f"{preset}.*.yaml")]
    for dataset, number in product([None, *special], TABLES):
        options = [] if dataset is None else ["--dataset", dataset]
        args = parse(["table", str(number), "--preset", preset, *options])["table"]
        assert args.preset == preset
        assert dataset in (None, args.dataset)
        methods_of(args)
        for one in split("--dataset", args.dataset):
            federation_spec(parse(["table", str(number), "--preset", preset, "--dataset", one])["table"])


@pytest.mark.parametrize("preset", presets())
def test_presets_have_no_unknown_sections(preset: str) -> None:
    from quickdrop_bench.harness.presets import preset_files

    sections = {name.replace("-", "_") for name in METHODS} | {f"table{n}" for n in TABLES}
    sections |= {f"figure{n}" for n in FIGURES} | {"sweep"}
    for path in preset_files(preset, None)[0].parent.glob("*.yaml"):
        for name, value in yaml.safe_load(path.read_text()).items():
            assert not isinstance(value, dict) or name in sections, (path, name)


def test_paper_preset_is_the_papers_setting() -> None:
    args = parse(["table", "2", "--preset", "paper"])["table"]
    expected = {
        "dataset": "cifar10", "clients": 10, "alpha": 0.1, "width": 128, "depth": 3, "rounds": 200,
        "local_steps": 50, "batch_size": 256, "lr": 0.01, "scale": 100, "image_steps": 1, "image_lr": 0.1, "seeds": 5,
    }  # fmt: skip
    assert {name: args[name] for name in expected} == expected
    assert (args.quickdrop.unlearn_lr, args.quickdrop.recover_lr) == (0.02, 0.01)
    assert (args.quickdrop.unlearn_rounds, args.quickdrop.recover_rounds, args.retrain_or.rounds) == (1, 2, 30)
    assert (args.quickdrop.unlearn_local_steps, args.quickdrop.unlearn_stop_loss) == (
        10,
        6,
    )  # T would destroy the model
    assert (args.quickdrop.recover_local_steps, args.quickdrop.relearn_local_steps) == (None, 5)
    assert args.rounds // args.record_every == 10  # rounds that FedEraser replays, Table 2
    assert (args.federaser.recover_rounds, args.fu_mp.recover_rounds, args.sga_or.unlearn_rounds) == (3, 4, 2)
    third = parse(["table", "3", "--preset", "paper"])["table"]
    assert (third.dataset, third.clients, third.participation) == ("svhn", 100, 0.1)
    assert third.quickdrop.recover_participation is None  # as in training
    assert [parse(["table", n, "--preset", "paper"])["table"].clients for n in "45"] == [20, 20]
    assert parse(["table", "5", "--preset", "paper"])["table"].dataset == "cifar10,mnist"


@pytest.mark.parametrize("given", [["2", "--config", "four.yaml"], ["0x4"]], ids=["in a file", "in another base"])
def test_a_table_has_its_own_settings_however_its_number_is_given(given: list[str], tmp_path: Path) -> None:
    (tmp_path / "four.yaml").write_text("number: 4\n")
    clients = [parse(["table", *argv, "--preset", "paper"])["table"].clients for argv in (["2"], ["4"], given)]
    assert clients == [10, 20, 20]


def test_config_file_and_print_config(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("rounds: 7\nquickdrop:\n  augment: false\n")
    args = parse(["table", "2", "--preset", "quick", "--config", "mine.yaml", "--lr", "0.5"])["table"]
    assert (args.rounds, args.lr, args.quickdrop.augment, args.depth) == (7, 0.5, False, 2)
    with pytest.raises(SystemExit) as stopped:
        main(["table", "2", "--preset", "quick", "--print_config"])
    assert stopped.value.code == 0
    assert "batch_size: 32" in capsys.readouterr().out


def test_default_preset_is_announced(run: Run) -> None:
    _, _, err = run("table", "2", *TINY[2:], "--clients", "-1")
    assert err.startswith("preset quick (others: --preset small or --preset paper)\n")


BAD = {
    "unknown table": (["table", "9"], "table 9"),
    "table in words": (["table", "two"], "--number two"),
    "unknown command": (["tabel"], "command tabel"),
    "unknown option": (["table", "2", "--nope", "1"], "--nope"),
    "unknown preset": (["table", "2", "--preset", "qick"], "--preset qick"),
    "unknown data set": (["table", "2", "--dataset", "mnits"], "--dataset mnits: did you mean mnist?"),
    "unknown method": (["table", "2", "--methods", "sga"], "--methods sga: did you mean sga-or?"),
    "alpha zero": (["table", "2", "--alpha", "0"], "--alpha 0.0"),
    "alpha negative": (["table", "2", "--alpha", "-1"], "--alpha -1.0"),
    "alpha nan": (["table", "2", "--alpha", "nan"], "--alpha nan"),
    "alpha text": (["table", "2", "--alpha", "small"], "--alpha small"),
    "scale below one": (["table", "2", "--scale", "0.5"], "--scale 0.5"),
    "too many clients": (["table", "2", "--clients", "5000"], "--clients 5000"),
    "no clients": (["table", "2", "--clients", "0"], "--clients 0"),
    "class out of range": (["table", "2", "--class", "10"], "--class 10: between 0 and 9"),
    "negative class": (["table", "2", "--class", "-1"], "--class -1"),
    "no cuda": (["table", "2", "--accelerator", "cuda"], "--accelerator cuda"),
    "unknown accelerator": (["table", "2", "--accelerator", "abacus"], "--accelerator abacus"),
    "unknown precision": (["table", "2", "--precision", "8"], "--precision 8"),
    "half precision on a CPU": (["table", "2", "--precision", "16-mixed"], "--precision 16-mixed"),
    "many devices": (["table", "2", "--devices", "9999"], "--devices 9999"),
    "seeds": (["table", "2", "--seeds", "one"], "--seeds one"),
    "no seeds": (["table", "2", "--seeds", "0"], "--seeds 0"),
    "seed twice": (["table", "2", "--seeds", "1,1"], "--seeds 1,1"),
    "norm": (["table", "2", "--norm", "batch"], "--norm batch"),
    "depth": (["table", "2", "--depth", "9"], "--depth 9"),
    "method option": (["table", "2", "--quickdrop.unlearn-lr", "-1"], "--quickdrop.unlearn-lr -1.0"),
    "folder missing": (["table", "2", "--dataset", "imagefolder", "--data-dir", "none"], "--data-dir none"),
    "preset in a config": (["distribution", "--config", "preset.yaml"], "--config with the key preset"),
    "abbreviated option": (["table", "2", "--roun", "3"], "--roun"),
    "config with an unknown key": (["table", "2", "--config", "unknown.yaml"], "nonsense"),
    "config that is no YAML": (["table", "2", "--config", "broken.yaml"], "--config"),
    "config missing": (["table", "2", "--config", "none.yaml"], "none.yaml: it cannot be read"),
    "config without options": (["table", "2", "--config", "words.yaml"], "words.yaml: it holds no options"),
    "config with nothing but a key": (["table", "2", "--config", "key.yaml"], "--config is not usable: alpha:"),
}


@pytest.mark.parametrize(("argv", "named"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence(run: Run, argv: list[str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Path("unknown.yaml").write_text("nonsense: 1\n")
    Path("broken.yaml").write_text("a: [1, {\n")
    Path("preset.yaml").write_text("preset: small\n")
    Path("words.yaml").write_text("two rounds\n")
    Path("key.yaml").write_text("alpha:\n")
    if argv[0] == "table" and "--preset" not in argv and "--dataset" not in argv:
        argv = [*argv, *(p for p in TINY if p not in ("--clients", "3", "--seeds", "1"))]
        argv += [] if "--clients" in argv else ["--clients", "3"]
        argv += [] if "--seeds" in argv else ["--seeds", "1"]
    code, out, err = run(*argv)
    sentences = [line for line in err.splitlines() if not line.startswith("preset ")]
    assert code == 2
    assert out == ""
    assert len(sentences) == 1, err
    assert sentences[0].startswith("quickdrop-bench: ")
    assert sentences[0].endswith(".")
    assert named in sentences[0]
    assert not list(Path("artifacts").glob("*"))


def test_bad_input_destroys_nothing(run: Run, table_2: Ended) -> None:
    before = {p: p.read_bytes() for p in Path("results").rglob("*") if p.is_file()}
    assert run("table", "2", *TINY, "--alpha", "0")[0] == 2
    assert run("table", "2", *TINY, "--class", "77")[0] == 2
    assert {p: p.read_bytes() for p in Path("results").rglob("*") if p.is_file()} == before


def test_unwritable_folders(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = run("table", "2", *TINY, "--results-dir", "file")
    assert (code, "--results-dir" in err) == (2, True)
    code, _, err = run("table", "2", *TINY, "--artifacts-dir", "file")
    assert (code, "--artifacts-dir" in err) == (2, True)
    code, _, err = run("distribution", *PARTITION, "--results-dir", "file")
    assert (code, "--results-dir" in err) == (2, True)


def test_damaged_federation_is_refused_by_name(run: Run, federation_here: None) -> None:
    folder = next(Path("artifacts").iterdir())
    (folder / "global.safetensors").write_bytes(b"\xff" * 64)
    code, _, err = run("table", "2", *TINY)
    assert code == 2
    assert "global.safetensors is missing or damaged" in err


@pytest.mark.slow
def test_console_entry_without_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quickdrop_bench", "table", "2", *TINY, "--alpha", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
