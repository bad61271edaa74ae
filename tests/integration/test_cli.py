"""Commands on a tiny federation: tables and trainings, reused, continued, refused."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from quickdrop_bench.cli.machine import _warn_of_slow_bfloat16
from quickdrop_bench.store.rows import LAST
from tests.conftest import PARTITION, TINY, Run, accuracies, json_lines
from tests.damage import GONE, largest_file
from tests.integration.judging import Ended

METHODS_OF_TABLE_2 = ["retrain-or", "federaser", "sga-or", "fu-mp", "random-subset", "quickdrop"]
FILES = {"rows.jsonl", "table.csv", "table.md", "table.tex"}


def read_rows(folder: Path = Path("results/quick/table2")) -> list[dict[str, Any]]:
    return json_lines(folder / "rows.jsonl")


def test_table_from_nothing_and_again(run: Run, table_2: Ended, tmp_path: Path) -> None:
    out, err = table_2.out, table_2.err
    folder = tmp_path / "results/quick/table2"
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == FILES
    heading = "digits, 3 clients, dirichlet-0.1, request class-9"
    for text in ("Retrain-Or", "FedEraser", "SGA-Or", "FU-MP", "Random subset", "QuickDrop", "463.7×", heading):
        assert text in out
    assert "run 1/7 · seed 1 · fl-training · round 1/2 · " in err
    assert re.search(
        r"run 7/7 · seed 1 · quickdrop · recovery · round 2/2 · \d+ s left in all · .* · F-Set 0.\d* · R-Set 0.\d*", err
    )
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
    monkeypatch.setattr("quickdrop_bench.harness.federation_spec.source_digest", lambda *roots: "other code")
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


@pytest.mark.slow
def test_a_table_in_another_precision(run: Run) -> None:
    assert run("table", "2", *TINY, "--precision", "bf16-mixed")[0] == 0
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


def test_resume_goes_on_with_what_was_begun_and_begins_nothing(run: Run) -> None:
    code, out, err = run("train", *TINY, "--resume")
    assert (code, out) == (2, "")
    assert err.startswith("quickdrop-bench: --resume artifacts: no training with these options was begun")
    assert not Path("artifacts").exists()
    first = run("train", *TINY)[1]
    known = re.sub(r"(\d+\.\d s,)", r"trained before, in \1", first)
    assert run("train", *TINY, "--resume")[:2] == (0, known)
    assert run("train", *TINY, "--rounds", "3", "--resume")[0] == 2


def test_a_training_clears_away_what_killed_ones_left(run: Run) -> None:
    folder = Path(run("train", *TINY)[1].split()[0])
    unfinished = [folder / f".training.ckpt.{GONE}.tmp.a", folder / f"updates/0000/.0000.safetensors.{GONE}.tmp.a"]
    for path in unfinished:
        path.mkdir(parents=True)
        (path / ".tmpA1b2C3").touch()
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
    header, *clients, table, svg, png = map(str.split, out.splitlines())
    assert header == ["client", *map(str, range(10)), "all"]
    assert [[int(n) for n in line[1:]] for line in clients] == pd.read_csv(table[0]).iloc[:, 1:].to_numpy().tolist()
    assert all(Path(path[0]).stat().st_size > 100 for path in (table, svg, png))


def test_the_latest_federation_is_the_one_that_was_asked_for_last(run: Run) -> None:
    folders = [run("train", *TINY, *more)[1].split()[0] for more in ([], ["--lr", "0.3"])]
    assert run("show", "latest")[1].startswith(folders[1])
    again = run("train", *TINY)[1]
    assert again.startswith(folders[0])
    assert "trained before" in again
    assert run("table", "2", *TINY, "--lr", "0.4", "--methods", "retrain-or")[0] == 0
    assert len(list(Path("artifacts").glob("[!.]*"))) == 3
    assert run("show", "latest")[1].startswith(folders[0])
    assert run("show", "latest", "--artifacts-dir", "none")[0] == 2
    (Path(folders[0]) / "manifest.json").unlink()  # as if the training had not ended
    assert f"RUN latest: {Path(folders[0]).name} is not trained to its end" in run("show", "latest")[2]
    Path("artifacts/.latest").unlink()  # as if tables had made all of them
    refusal = "RUN latest: train was asked for no federation in --artifacts-dir artifacts"
    assert refusal in run("unlearn", "latest", "--class", "9")[2]


def test_a_terminal_shows_what_was_asked_for(run: Run, table_2: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quickdrop_bench.cli.output.Output.isatty", lambda self: True, raising=False)
    _, out, _ = run("table", "2", *TINY, "--rounds", "1", "--methods", "none")
    assert "rounds 1" in out
    assert not any(line.startswith("QuickDrop") for line in out.splitlines())
    assert "table.md has other settings too." in out
    assert "QuickDrop" in Path("results/quick/table2/table.md").read_text()


def test_a_full_disk_is_one_sentence_wherever_a_table_writes(run: Run, table_2: Ended) -> None:
    (table,) = Path("results").rglob("table.csv")
    folder = table.parent
    refusal = f"quickdrop-bench: --results-dir {folder}: it cannot be written (File too large)."
    with largest_file(1000):  # the table
        code, _, err = run("table", "2", *TINY)
    assert (code, err.splitlines()[-1]) == (2, refusal)
    (folder / "rows.jsonl").unlink()
    with largest_file(60_000):  # the rows
        code, _, err = run("table", "2", *TINY, "--methods", "quickdrop")
    assert (code, err.splitlines()[-1]) == (2, refusal)
    assert run("table", "2", *TINY, "--methods", "quickdrop")[0] == 0


def test_a_full_disk_is_one_sentence_where_pictures_of_a_training_are_drawn(run: Run, federation_here: None) -> None:
    with largest_file(50):
        code, _, err = run("train", *TINY)
    assert (code, err) == (2, "quickdrop-bench: --artifacts-dir artifacts: it cannot be written (File too large).\n")


def test_damaged_federation_is_refused_by_name(run: Run, federation_here: None) -> None:
    folder = next(Path("artifacts").glob("[!.]*"))
    (folder / "global.safetensors").write_bytes(b"\xff" * 64)
    code, _, err = run("table", "2", *TINY)
    assert code == 2
    assert "global.safetensors is missing or damaged" in err
