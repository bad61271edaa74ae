"""Figures and sweeps on a tiny federation."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from quickdrop_bench.evaluation.metric import METRICS
from quickdrop_bench.harness.exhibits import exhibit
from tests.conftest import TINY, Run, facts, json_lines, read_rows
from tests.integration.forks import start_command
from tests.integration.judging import Ended

PICTURE = {"figure.svg", "figure.png", "figure.csv"}

COMPARED = {name for metric in METRICS for name in METRICS[metric].gives if METRICS[metric].needs_oracle}


def folder(name: str) -> Path:
    return Path("results/quick") / name


def rows_of(name: str, results: str = "results") -> pd.DataFrame:
    return read_rows(Path(results) / "quick" / name / "rows.jsonl")


def test_figure_2_follows_the_rounds(run: Run) -> None:
    code, out, _ = run("figure", "2", *TINY, "--rounds", "7")
    assert code == 0
    assert set(out.split()) == {str(folder("figure2") / name) for name in PICTURE}
    rows = rows_of("figure2")
    single = rows[rows["stage"] == "per-round"]
    seen = {phase: sorted(part["round"].unique()) for phase, part in single.groupby("phase")}
    assert seen == {"fl-training": [3, 4, 5, 6, 7], "unlearning": [1], "recovery": [1, 2]}
    assert (single.groupby(["phase", "round"])["metric"].nunique() == 10).all()
    # A stage's last round is the stage.
    for stage, last in (("recovery", 2), ("unlearning", 1), ("fl-training", 7)):
        of_round = single[(single["phase"] == stage) & (single["round"] == last)].set_index("metric")["value"]
        of_stage = rows[rows["stage"] == stage].set_index("metric")["value"].loc[of_round.index]
        assert of_round.tolist() == of_stage.tolist()
    before = (folder("figure2") / "figure.svg").read_bytes()
    _, _, err = run("figure", "2", *TINY, "--rounds", "7")
    assert "round" not in err
    assert (folder("figure2") / "figure.svg").read_bytes() == before
    # What is said of a run as a whole is told beside its rounds.
    lines = json_lines(folder("figure2") / "rows.jsonl")
    marks = [line for line in lines if (line["method"], line["metric"]) == ("quickdrop", "diverged")]
    marks[-1]["value"] = 1.0
    (folder("figure2") / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("figure", "2", *TINY, "--rounds", "7")[0] in (0, 1)
    assert "QuickDrop (diverged: 1 of 1)" in (folder("figure2") / "figure.svg").read_text()


def test_figure_3_takes_its_runs_from_table_2(run: Run, table_2: Ended) -> None:
    code, _, err = run("figure", "3", *TINY)
    assert code == 0
    assert "round" not in err
    rows = rows_of("figure3")
    attacks = rows[rows["metric"].str.contains("_mia")]
    assert set(attacks["method"]) == {"original", *exhibit("figure3").methods}
    advantages = attacks["metric"].str.contains("advantage")
    assert attacks["value"][~advantages].between(0, 1).all()
    keys = ["method", "stage", "metric"]
    by_name = attacks.set_index(keys)["value"]
    for (method, stage, metric), advantage in attacks[advantages].set_index(keys)["value"].items():
        rate, on_test = (by_name[method, stage, metric.replace("advantage_", k)] for k in ("", "false_positive_"))
        assert advantage == pytest.approx(rate - on_test)
    numbers = pd.read_csv(folder("figure3") / "figure.csv")
    assert numbers.filter(like="reference").notna().all(axis=None)


def test_a_number_is_one_spec_however_it_is_written(run: Run, table_2: Ended) -> None:
    again = ["--scale", "10.0", "--quickdrop.unlearn-stop-loss", "6.0", "--participation", "1"]
    _, _, err = run("table", "2", *TINY, "--methods", "quickdrop", *again)
    assert "round" not in err


@pytest.mark.slow
def test_figure_4_forgets_all_classes_and_survives_an_empty_retain_set(run: Run) -> None:
    code, _, err = run("figure", "4", *TINY)
    assert (code, "Traceback" in err) == (0, False)
    rows = rows_of("figure4")
    requests = list(rows["request"].unique())
    assert [r.count(">") for r in requests] == list(range(10))
    assert requests[-1] == ">".join(f"class-{c}" for c in (5, 8, 0, 3, 2, 4, 7, 9, 1, 6))
    last = rows[(rows["request"] == requests[-1]) & (rows["method"] == "quickdrop") & (rows["stage"] == "recovery")]
    recovery = last.set_index("metric")["value"]
    assert recovery["rounds"] == recovery["data_size"] == 0  # nothing is left to recover on
    assert pd.isna(recovery["r_set_accuracy"])


@pytest.mark.slow
def test_figure_5_counts_gradients_and_goes_on_from_a_smaller_f(run: Run) -> None:
    quick = ["--fine-tune-batch-size", "4", "--fine-tune-steps", "3"]
    code, _, err = run("figure", "5", *TINY, *quick, "--fine-tunes", "0,1,3")
    assert code == 0
    assert [line.split("fine-tuning · ")[1].split(" ·")[0] for line in err.splitlines() if "fine-tuning" in line] == [
        "1/1", "2/3", "3/3",
    ]  # fmt: skip
    rows = rows_of("figure5")
    assert err.count("fl-training · round 1/2") == 1
    counted = rows[rows["metric"] == "original_gradients"].set_index(["fine_tuning", "stage"])["value"]
    assert counted.loc[:, "fl-training"].tolist() == [4, 4, 4]  # K = 2, T = 2
    assert counted.loc[:, "fine-tuning"].tolist() == [0, 3, 9]
    assert set(rows[rows["method"] == "retrain-or"]["fine_tuning"]) == {0}
    assert set(rows[rows["method"] == "quickdrop"]["fine_tuning"]) == {0, 1, 3}
    # In one go, the images are the same. The oracle runs beside F = 3 then, so that more is compared with it.
    run("figure", "5", *TINY, *quick, "--fine-tunes", "3", "--artifacts-dir", "other", "--results-dir", "other")
    both = [rows_of("figure5", where) for where in ("results", "other")]
    end = [facts(r[(r["fine_tuning"] == 3) & (r["method"] == "quickdrop") & ~r["metric"].isin(COMPARED)]) for r in both]
    assert end[0] == end[1]


@pytest.mark.slow
def test_figure_6_measures_references_once(run: Run) -> None:
    code, _, _ = run("figure", "6", *TINY, "--scales", "1,10")
    assert code == 0
    rows = rows_of("figure6")
    scales = {m: set(part["scale"]) for m, part in rows[rows["stage"] == "total"].groupby("method")}
    assert scales == {"retrain-or": {10}, "sga-or": {10}, "random-subset": {1, 10}, "quickdrop": {1, 10}}
    in_steps = rows["method_changes"] == "recover_local_epochs null"
    again = {m: set(part["scale"]) for m, part in rows[in_steps & (rows["stage"] == "total")].groupby("method")}
    assert again == {"sga-or": {10}, "random-subset": {1, 10}, "quickdrop": {1, 10}}
    recovery = rows[(rows["stage"] == "recovery") & (rows["method"] == "quickdrop")]
    keys = {"index": "scale", "columns": "metric", "values": "value"}
    steps = recovery[recovery["method_changes"] != ""].pivot_table(**keys)
    assert steps["sample_gradients"][1] < 5 * steps["sample_gradients"][10]
    size = recovery[recovery["method_changes"] == ""].pivot_table(**keys)
    rows = rows[~in_steps]
    assert size["data_size"][1] > 5 * size["data_size"][10]
    assert size["sample_gradients"][1] > 5 * size["sample_gradients"][10]  # passes, not steps
    # s = 1 is the original data, with or without distillation.
    at_one = rows[(rows["scale"] == 1) & rows["metric"].str.endswith("accuracy") & (rows["stage"] == "unlearning")]
    pair = at_one.pivot_table(index="metric", columns="method", values="value")
    assert pair["quickdrop"].equals(pair["random-subset"].rename("quickdrop"))


@pytest.mark.slow
def test_a_figure_keeps_every_scale_of_other_settings(run: Run) -> None:
    for more in ([], ["--iid"]):
        assert run("figure", "6", *TINY, "--scales", "1,10", "--methods", "quickdrop", *more)[0] == 0
    numbers = pd.read_csv(folder("figure6") / "figure.csv")
    measured = numbers[numbers["runs"] > 0]
    assert set(zip(measured["distribution"], measured["scale"], strict=True)) == {
        ("dirichlet-0.1", 1), ("dirichlet-0.1", 10), ("iid", 1), ("iid", 10),
    }  # fmt: skip


@pytest.mark.slow
def test_a_sweep_plans_first(run: Run) -> None:
    chosen = ["--scales", "1,10", "--alphas", "0.1,1", "--methods", "retrain-or,quickdrop", "--rounds", "1"]
    code, out, err = run("sweep", *TINY, *chosen, "--dry-run")
    assert code == 0
    assert "10 runs to make on 4 federations, 4 of them to train" in out
    assert "round" not in err
    assert not Path("results").exists()
    code, _, err = run("sweep", *TINY, *chosen)
    assert code == 0
    assert "4 of them to train" in err
    rows = rows_of("sweep")
    assert set(zip(rows["scale"], rows["distribution"], strict=True)) == {
        (1, "dirichlet-0.1"), (10, "dirichlet-0.1"), (1, "dirichlet-1"), (10, "dirichlet-1"),
    }  # fmt: skip
    _, out, _ = run("sweep", *TINY, *chosen, "--dry-run")
    assert "0 runs to make on 4 federations, 0 of them to train" in out
    code, out, err = run("sweep", *TINY, *chosen, "--clients", "3,4", "--dry-run")
    assert "10 runs to make on 8 federations, 4 of them to train" in out


@pytest.mark.parametrize("argv", [["table", "4"], ["sweep", "--scales", "1,10"]], ids=" ".join)
def test_a_long_plan_says_how_far_it_is(run: Run, monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setattr("quickdrop_bench.cli.output.PATIENCE", 0.0)
    code, out, err = run(*argv, *TINY, "--methods", "quickdrop", "--dry-run")
    assert code == 0
    assert "4 runs to make on 2 federations, 2 of them to train" in out
    for label in ("points laid out", "federations planned"):
        assert [line for line in err.splitlines() if label in line] == [f"{label}: 1/2", f"{label}: 2/2"]
    assert not Path("results").exists()
    assert not Path("artifacts").exists()


def test_a_failing_cell_is_marked_and_the_others_go_on(run: Run) -> None:
    code, out, err = run("sweep", *TINY, "--scales", "1,10", "--methods", "quickdrop", "--lr", "1e30")
    assert code == 1
    assert "Traceback" not in err
    assert "figure.svg" in out
    rows = rows_of("sweep")
    assert set(rows["metric"]) == {"failed"}
    assert len(rows) == 2


@pytest.mark.slow
def test_a_cell_that_cannot_be_is_marked_and_the_others_go_on(run: Run) -> None:
    code, _, err = run("sweep", *TINY, "--clients", "3,200", "--methods", "quickdrop")
    assert code == 1
    assert "Traceback" not in err
    rows = rows_of("sweep")
    assert set(rows[rows["clients"] == 200]["metric"]) == {"failed"}
    assert "quickdrop" in set(rows[rows["clients"] == 3]["method"])


@pytest.mark.slow
@pytest.mark.parametrize("command", [["sweep", "--scales", "1,10"], ["table", "2", "--seeds", "1,2"]])
def test_jobs_give_the_rows_of_one_process(run: Run, command: list[str]) -> None:
    name = "".join(command[:2]) if command[0] == "table" else command[0]
    start = 2 if command[0] == "table" else 1
    chosen = [*command[:start], *TINY, *command[start:], "--methods", "retrain-or,quickdrop"]
    assert run(*chosen, "--results-dir", "one", "--artifacts-dir", "a")[0] == 0
    code, _, err = run(*chosen, "--results-dir", "two", "--artifacts-dir", "b", "--jobs", "2")
    assert code == 0
    assert "2/2" in err
    assert facts(rows_of(name, "one")) == facts(rows_of(name, "two"))


@pytest.mark.slow
def test_a_cell_whose_process_is_killed_is_marked(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plugin = tmp_path / "sitecustomize.py"
    plugin.write_text("import os, sys\nif 'spawn_main' in ' '.join(sys.orig_argv):\n    os.kill(os.getpid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code, _, err = run("sweep", *TINY, "--scales", "1,10", "--jobs", "2")
    assert code == 1
    assert "its process ended with" in err
    rows = rows_of("sweep")
    assert set(rows["metric"]) == {"failed"}
    assert len(rows) == 2
    monkeypatch.delenv("PYTHONPATH")
    assert run("sweep", *TINY, "--scales", "1,10")[0] == 0
    assert "failed" not in set(rows_of("sweep")["metric"])


@pytest.mark.slow
def test_what_a_killed_process_did_not_measure_is_marked(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("""
import os, sys, threading, time
def die_after_the_original():
    path, text = "results/quick/sweep/rows.jsonl", ""
    while not ('"diverged"' in text and text.endswith("\\n")):  # the row that a run writes last, as a whole
        time.sleep(0.001)
        text = open(path).read() if os.path.exists(path) else ""
    os.kill(os.getpid(), 9)
if "spawn_main" in " ".join(sys.orig_argv):
    threading.Thread(target=die_after_the_original, daemon=True).start()
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    methods = ["--methods", "retrain-or,quickdrop"]
    assert run("sweep", *TINY, "--jobs", "2", *methods)[0] == 1
    rows = rows_of("sweep")
    assert "failed" not in set(rows[rows["method"] == "original"]["metric"])
    assert set(rows[rows["stage"] == "total"]["method"]) == {"retrain-or", "quickdrop"}
    assert set(rows[rows["method"] == "quickdrop"].groupby("stage").get_group("total")["metric"]) == {"failed"}


@pytest.mark.long
@pytest.mark.usefixtures("warm_server")
def test_a_sweep_in_processes_killed_at_any_moment_ends_with_the_same_rows(run: Run, tmp_path: Path) -> None:
    chosen = [*TINY, "--scales", "1,10", "--seeds", "1,2", "--rounds", "12"]
    assert run("sweep", *chosen, "--results-dir", "whole", "--artifacts-dir", "a")[0] == 0
    draw = random.Random(2)
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: another order of sums gives other last digits

    def size(pattern: str) -> int:
        return sum(path.stat().st_size for path in tmp_path.glob(pattern))

    for grows in ("artifacts/*", "results/quick/sweep/rows.jsonl"):
        before = size(grows)
        command = start_command(["sweep", *chosen, "--jobs", "2"], tmp_path, one_thread)
        while size(grows) <= before:
            assert command.process.is_alive(), command.err.read_text()
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        command.process.kill()
        command.process.join()
        assert command.process.exitcode == -signal.SIGKILL
    assert run("sweep", *chosen)[0] == 0
    assert facts(rows_of("sweep")) == facts(rows_of("sweep", "whole"))


@pytest.mark.slow
def test_interrupted_fine_tuning_continues_to_the_same_images(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["--fine-tune", "3", "--fine-tune-batch-size", "4", "--fine-tune-steps", "3", "--record-every", "0"]
    monkeypatch.setattr("quickdrop_bench.harness.training.SAVING_SHARE", math.inf)

    def interrupt(display: object, done: int, of: int, distance: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("quickdrop_bench.cli.progress.ProgressDisplay.on_initialisation_end", interrupt)
        assert run("train", *TINY, *chosen)[0] == 130
    code, _, err = run("train", *TINY, *chosen)
    assert code == 0
    assert "round" not in err
    assert "fine-tuning · 1/3" not in err
    assert "fine-tuning · 3/3" in err
    assert run("train", *TINY, *chosen, "--artifacts-dir", "unbroken")[0] == 0
    both = [sorted(Path(root).glob("*/clients/*.safetensors")) for root in ("artifacts", "unbroken")]
    assert [p.read_bytes() for p in both[0]] == [p.read_bytes() for p in both[1]]
    assert len(both[0]) == 6  # three clients, before and after
