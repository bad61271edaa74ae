"""All tables, protocols, sequences of requests and failures, on a tiny federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from quickdrop_bench.methods import METHODS
from tests.conftest import TINY, Run, read_rows
from tests.integration.judging import Ended


def rows_of(name: str) -> pd.DataFrame:
    return read_rows(Path("results/quick") / name / "rows.jsonl")


def value(rows: pd.DataFrame, **where: object) -> float:
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, where
    return float(rows["value"].iloc[0])


@pytest.mark.slow
def test_table_4_forgets_a_client_on_both_distributions(run: Run) -> None:
    code, out, _ = run("table", "4", *TINY, "--client", "1")
    assert code == 0
    rows = rows_of("table4")
    assert set(rows["distribution"]) == {"dirichlet-0.1", "iid"}
    assert set(rows["request"]) == {"client-1"}
    assert set(rows["method"]) == {"original", "retrain-or", "federaser", "s2u", "sga-or", "random-subset", "quickdrop"}
    assert "others_training_accuracy" in set(rows["metric"])
    assert "19.72%" in out  # the paper's S2U
    code, _, err = run("table", "4", *TINY, "--client", "1", "--iid")
    assert code == 0
    assert "round" not in err


@pytest.mark.slow
def test_table_1_takes_class_requests_over_from_table_2(run: Run, table_2: Ended) -> None:
    before = rows_of("table2")
    _, out, err = run("table", "1", *TINY)
    assert "fl-training · round" not in err  # the same federations
    assert "retrain-or · round" in err  # for the client request
    assert "fu-mp" not in err
    rows = rows_of("table1")
    taken = rows[rows["request"] == "class-9"]
    assert taken["value"].tolist() == before["value"].tolist()
    assert set(taken["artefact"]) == {"table1"}
    assert set(rows[rows["request"] == "client-0"]["method"]) >= {"s2u", "quickdrop"}
    assert out.count("## ") == 1
    lines = pd.read_csv("results/quick/table1/table.csv").set_index("method")
    assert not lines.loc["s2u", "class"]
    assert not lines.loc["fu-mp", "relearn"]
    assert lines.loc["s2u", "speedup_client_median"] > 0


@pytest.mark.slow
def test_table_3_samples_clients(run: Run) -> None:
    code, _, _ = run("table", "3", *TINY, "--participation", "0.34")
    assert code == 0
    rows = rows_of("table3")
    model_bytes = value(rows, method="federaser", stage="total", metric="storage_server_bytes") / 2  # θ_0 and one U
    uploads = value(rows, method="retrain-or", stage="total", metric="upload_bytes")
    assert uploads == 2 * model_bytes  # one of three clients in each of two rounds


@pytest.mark.slow
def test_table_5_learns_again_where_that_is_possible(run: Run) -> None:
    code, out, _ = run("table", "5", *TINY)
    assert code == 0
    rows = rows_of("table5")
    relearnt = set(rows[rows["stage"] == "relearning"]["method"])
    assert relearnt == {"retrain-or", "federaser", "sga-or", "random-subset", "quickdrop"}
    assert "FU-MP" in out
    # What relearning costs is not part of serving the request.
    own = rows[rows["method"] == "sga-or"]
    parts = [value(own, stage=stage, metric="rounds") for stage in ("unlearning", "recovery", "total")]
    assert parts[2] == parts[0] + parts[1]


@pytest.mark.slow
def test_table_6_trains_only(run: Run) -> None:
    code, _, err = run("table", "6", *TINY)
    assert code == 0
    assert "unlearning" not in err
    rows = rows_of("table6")
    assert set(rows["method"]) == {"original", "quickdrop"}
    assert rows["setting"].nunique() == 2  # Table 3's federation samples clients
    rows = rows[rows["setting"] == rows["setting"].iloc[0]]
    parts = {
        metric: value(rows, method="quickdrop", metric=metric, clients=3)
        for metric in ("total_seconds", "distillation_seconds", "overhead_percent")
    }
    assert 0 < parts["distillation_seconds"] < parts["total_seconds"]
    share = 100 * parts["distillation_seconds"] / parts["total_seconds"]
    assert parts["overhead_percent"] == pytest.approx(share)


@pytest.mark.slow
def test_a_sequence_of_requests(run: Run) -> None:
    code, out, _ = run("table", "2", *TINY, "--class", "9,3", "--methods", "retrain-or,sga-or")
    assert code == 0
    rows = rows_of("table2")
    assert list(rows["request"].unique()) == ["class-9", "class-9>class-3"]
    second = rows[(rows["request"] == "class-9>class-3") & (rows["method"] == "retrain-or")]
    # Both classes are gone from the second retraining's data: some 1442 · 8/10 samples are left.
    assert 1100 < value(second, stage="total", metric="data_size") < 1200
    assert "request class-9>class-3" in out
    _, _, err = run("table", "2", *TINY, "--class", "9,3", "--methods", "retrain-or,sga-or")
    assert "round" not in err


@pytest.mark.slow
def test_protocols_stand_side_by_side(run: Run) -> None:
    chosen = ["--methods", "retrain-or,quickdrop"]
    code, out, _ = run("table", "2", *TINY, *chosen, "--protocol", "letter-steps,tuned")
    assert code == 0
    rows = rows_of("table2")
    assert set(rows["protocol"]) == {"letter-steps", "tuned"}
    search = rows[(rows["stage"] == "search") & (rows["method"] == "quickdrop")]
    assert {"seconds", "sample_gradients", "tried", "unlearn_local_steps", "recover_lr"} <= set(search["metric"])
    assert "protocol tuned" in out
    assert "stated apart" in out
    trials = pd.read_csv("results/quick/table2/search.csv")
    assert set(trials["method"]) == {"quickdrop"}
    assert list(trials["stage"]).index("untouched") == 0
    assert len(trials) == value(search, metric="tried") + 1
    code, _, err = run("table", "2", *TINY, *chosen, "--protocol", "tuned")
    assert "round" not in err


@pytest.mark.slow
def test_a_collapsed_model_is_marked(run: Run) -> None:
    """Ascent at a high rate without bound destroys the model; a trained one is far from chance."""
    better = ["--rounds", "6", "--local-steps", "10", "--width", "8"]
    wreck = ["--sga-or.unlearn-lr", "5", "--sga-or.unlearn-stop-loss", "null", "--sga-or.recover-rounds", "0"]
    code, out, _ = run("table", "2", *TINY, *better, *wreck, "--methods", "retrain-or,sga-or")
    assert code == 0
    rows = rows_of("table2")
    found = rows[rows["metric"] == "collapsed"].set_index(["method", "stage"])["value"].to_dict()
    assert found == {
        ("original", "fl-training"): 0, ("retrain-or", "unlearning"): 0, ("retrain-or", "total"): 0,
        ("sga-or", "unlearning"): 1, ("sga-or", "recovery"): 1, ("sga-or", "total"): 1,
    }  # fmt: skip
    assert out.count("†") == 4 + 1  # F-Set and R-Set after two stages, and the footnote
    assert "$\\dagger$" in Path("results/quick/table2/table.tex").read_text()


def blocks(text: str) -> dict[str, str]:
    """By heading the tables of a Markdown text, without those of differences."""
    parts = (block.split("\n", 1) for block in text.split("\n## ")[1:])
    return {heading: body for heading, body in parts if not heading.endswith("paired over seeds")}


def lines_of(block: str) -> dict[str, list[str]]:
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines() if line.startswith("| "))
    return {line[0]: line[1:] for line in cells}


@pytest.mark.slow
def test_runs_of_other_settings_are_never_averaged(run: Run) -> None:
    """A second command with other options on one of the seeds leaves every average of the first one as it was."""
    command = ("table", "2", *TINY, "--methods", "retrain-or,quickdrop")
    _, first, _ = run(*command, "--seeds", "2")
    ((usual, before),) = blocks(first).items()
    assert usual == "digits, 3 clients, dirichlet-0.1, request class-9, with width 4, rounds 2, local_steps 2"
    _, second, _ = run(*command, "--seeds", "1,", "--rounds", "1", "--local-steps", "1")
    other = "digits, 3 clients, dirichlet-0.1, request class-9, with width 4, rounds 1, local_steps 1"
    assert {*blocks(second)} == {usual, other}
    assert lines_of(blocks(second)[usual]) == lines_of(before)
    assert "over 2 seeds (1, 2)" in blocks(second)[usual]
    assert "over 1 seed (1)" in blocks(second)[other]
    assert Path("results/quick/table2/table.md").read_text().rstrip() == second.rstrip()
    run("report")
    page = Path("results/report.html").read_text()
    assert all(f"Table 2 · quick/table2 — {heading}" in page for heading in (usual, other))
    rows = rows_of("table2")
    final = rows[(rows["stage"] == "total") & (rows["metric"] == "r_set_accuracy")]
    assert final.groupby(["changes", "setting", "method"])["seed"].apply(list).tolist() == [[1], [1], [1, 2], [1, 2]]


def test_a_run_taken_over_says_what_differs_in_its_new_place(run: Run, table_2: Ended) -> None:
    _, _, err = run("figure", "3", *TINY, "--methods", "retrain-or")
    assert "round" not in err
    assert set(rows_of("figure3")["changes"]) == {"width 4, rounds 2, local_steps 2"}
    assert set(rows_of("figure3")["artefact"]) == {"figure3"}


def test_patience_is_a_setting_of_its_own(run: Run, table_2: Ended) -> None:
    _, _, err = run("table", "2", *TINY, "--methods", "retrain-or", "--patience", "1")
    assert "retrain-or · round 1/2" in err
    assert "fl-training · round" not in err


class Broken:
    """Stands in for a method's recovery."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __call__(self, *args: Any) -> None:
        raise self.error("out of luck")


@pytest.mark.parametrize("error", [RuntimeError, pytest.param(MemoryError, marks=pytest.mark.slow)])
def test_a_failing_method_leaves_the_others_and_a_mark(
    run: Run, federation_here: None, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    command = ("table", "2", *TINY, "--methods", "retrain-or,sga-or,quickdrop")
    with monkeypatch.context() as patch:
        patch.setattr(METHODS["sga-or"], "recover", Broken(error))
        code, out, err = run(*command)
    assert code == 1
    assert "Traceback" not in err
    assert f"SGA-Or (failed: 1 of 1, {error.__name__})" in out
    rows = rows_of("table2")
    assert set(rows["method"]) >= {"retrain-or", "sga-or", "quickdrop"}
    assert value(rows, method="sga-or", stage="total", metric="failed") == 1
    code, out, err = run(*command)  # tried again, and only it
    assert code == 0
    assert "(failed" not in out
    assert "sga-or · unlearning" in err
    assert "quickdrop" not in err
    assert "failed" not in set(rows_of("table2")["metric"])


def test_a_diverged_training_is_marked_and_the_table_rendered(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    code, out, err = run("table", "2", *TINY, "--lr", "1e30")
    assert code == 1
    assert "Traceback" not in err
    assert "lower --lr" in caplog.text
    rows = rows_of("table2")
    assert set(rows["metric"]) == {"failed"}
    assert out.startswith("# Table 2")


@pytest.mark.slow
def test_the_control_needs_neither_distillation_nor_records(run: Run) -> None:
    chosen = ["--methods", "retrain-or,random-subset", "--record-every", "0", "--distill", "false"]
    code, out, _ = run("table", "2", *TINY, *chosen)
    assert code == 0
    assert "QuickDrop (not run)" in out
    assert value(rows_of("table2"), method="random-subset", stage="total", metric="diverged") == 0


def test_a_client_without_data_is_refused_before_a_method_runs(run: Run) -> None:
    options = ["--alpha", "0.02", "--min-client-size", "0", "--clients", "20", "--client", "3"]
    code, out, err = run("table", "4", *TINY, *options)
    *rounds, sentence = err.splitlines()
    assert (code, out) == (2, "")
    assert "--client 3: on seed 1 that client holds no data" in sentence
    assert all("fl-training · round" in line for line in rounds)
