"""Rows → points and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from rich.console import Console

from quickdrop_bench.harness.exhibits import exhibit, exhibits
from quickdrop_bench.reporting import render as module
from quickdrop_bench.reporting.figures.points import numbers_table
from quickdrop_bench.reporting.figures.style import ACCENT, method_styles
from quickdrop_bench.reporting.tables.writers import markdown, terminal
from tests.drawn import Row, draw, failed, line, row, texts
from tests.golden import common

FIGURES = [name for name in exhibits() if exhibit(name).kind == "figure"]


def rounds(seed: int, phase: str, values: dict[int, Sequence[float]], first: int = 1, **other: object) -> Iterator[Row]:
    """Accuracies of classes, round by round."""
    method = "original" if phase == "fl-training" else "quickdrop"
    for label, course in values.items():
        for at, value in enumerate(course, first):
            metric = f"class_{label}_accuracy"
            yield row(method, seed, "per-round", metric, value, phase=phase, round=at, **other)


def one_request(seed: int, shift: float = 0.0, **other: object) -> Iterator[Row]:
    yield from rounds(seed, "fl-training", {0: [0.7, 0.8 + shift], 2: [0.6, 0.9]}, first=19, **other)
    yield from rounds(seed, "unlearning", {0: [0.5 + shift], 2: [0.0]}, **other)
    yield from rounds(seed, "recovery", {0: [0.6, 0.75 + shift], 2: [0.0, 0.02]}, **other)


def test_figure_2_shows_means_over_all_rounds_and_one_accent() -> None:
    figure, numbers = draw("figure2", [*one_request(1), *one_request(2, shift=0.1)])
    (axes,) = figure.axes
    assert line(axes, "class 0") == [[-1, 0, 1, 2, 3], pytest.approx([70, 85, 55, 60, 80])]
    kept, forgotten = (next(x for x in axes.lines if x.get_label() == f"class {c}") for c in (0, 2))
    assert forgotten.get_linewidth() > 2 * kept.get_linewidth()
    assert forgotten.get_color() == ACCENT != kept.get_color()
    assert len(axes.collections) == 1  # the deviations of all classes would cover each other
    point = numbers[(numbers["class"] == 0) & (numbers["phase"] == "unlearning")].iloc[0]
    assert (point["method"], point["round"], point["seeds"]) == ("quickdrop", 1, 2)
    assert (point["mean"], point["std"]) == pytest.approx((0.55, 0.1 / 2**0.5))
    assert list(numbers["method"][numbers["phase"] == "fl-training"].unique()) == ["original"]
    for part in ("rounds since the request", "training", "unlearning", "recovery", "class 0", "class 2, forgotten"):
        assert part in texts(figure)


def test_figure_2_holds_what_a_seed_that_ended_earlier_reached() -> None:
    longer = rounds(2, "recovery", {0: [0.1, 0.2, 0.4]})
    _, numbers = draw(
        "figure2", [*rounds(1, "recovery", {0: [0.6]}), *longer, *rounds(3, "recovery", {0: [0.2, np.nan]})]
    )
    assert numbers["mean"].tolist() == pytest.approx([0.3, 0.4, 0.5])
    assert numbers["seeds"].tolist() == [3, 2, 2]  # what diverged is not held


def test_one_seed_has_no_band() -> None:
    figure, numbers = draw("figure2", one_request(1))
    bands = [collection.get_paths() for collection in figure.axes[0].collections]
    assert all(not paths or np.isnan(paths[0].vertices).all() or not len(paths[0].vertices) for paths in bands)
    assert numbers["std"].isna().all()


def test_every_setting_has_its_own_panels_and_a_method_that_was_run_once_is_in_all() -> None:
    other = {"dataset": "imagefolder:$x_1$", "protocol": "tuned"}
    figure, _ = draw("figure2", [*one_request(1), *one_request(1, **other)])
    assert [part.get_suptitle() for part in figure.subfigs] == [
        "cifar10, 10 clients, dirichlet-0.1, request class-2",
        "imagefolder:$x_1$, 10 clients, dirichlet-0.1, request class-2, protocol tuned",
    ]
    scales = [row("quickdrop", 1, "total", "f_set_mia", 0.2, scale=s) for s in (1, 10)]
    figure, numbers = draw("figure3", [row("retrain-or", 1, "total", "f_set_mia", 0.3, scale=1), *scales])
    assert [part.get_suptitle()[-6:] for part in figure.subfigs] == [" s = 1", "s = 10"]
    assert numbers["method"].value_counts().to_dict() == {"retrain-or": 24, "quickdrop": 24}
    assert numbers["reference"][numbers["metric"] == "f_set_mia"].tolist() == [0.3] * 4


def attacked(method: str, seed: int, *rates: float) -> Iterator[Row]:
    stage = "fl-training" if method == "original" else "total"
    names = ("f_set", "r_set", "f_set_false_positive", "r_set_false_positive")
    metrics = [f"{name}_mia{suffix}" for suffix in ("", "_loss") for name in names]
    for metric, rate in zip(metrics, rates, strict=True):
        yield row(method, seed, stage, metric, rate)
    for k, (suffix, name) in enumerate([(s, n) for s in ("", "_loss") for n in ("f_set", "r_set")]):
        at = 2 * (k // 2) + k
        yield row(method, seed, stage, f"{name}_advantage_mia{suffix}", rates[at] - rates[at + 2])


def test_figure_3_refers_to_the_oracle() -> None:
    rows = [
        *attacked("original", 1, 0.8, 0.7, 0.5, 0.5, 0.9, 0.8, 0.5, 0.5),
        *attacked("retrain-or", 1, 0.3, 0.6, 0.3, 0.4, 0.01, 0.7, 0.02, 0.3),
        *attacked("retrain-or", 2, 0.2, 0.6, 0.3, 0.4, 0.03, 0.7, 0.02, 0.3),
        *attacked("quickdrop", 1, 0.4, 0.5, 0.3, 0.45, 0.05, 0.6, 0.02, 0.3),
        failed("quickdrop", 2),
        failed("fu-mp", 1),
    ]
    figure, numbers = draw("figure3", rows)
    entropy, loss = figure.axes
    assert line(entropy, "F-Set, training images")[0] == pytest.approx([80, 25, np.nan, 40], nan_ok=True)
    assert line(entropy, "F-Set, test images")[0] == pytest.approx([50, 30, np.nan, 30], nan_ok=True)
    assert line(entropy, "R-Set, test images")[0] == pytest.approx([50, 40, np.nan, 45], nan_ok=True)
    assert line(entropy, "Retrain-Or, F-Set")[0] == pytest.approx([25, 25])
    assert line(loss, "Retrain-Or, R-Set")[0] == pytest.approx([70, 70])
    paper = next(x for x in entropy.lines if x.get_label() == "paper, R-Set")
    assert paper.get_xdata()[[1, 3]] == pytest.approx([77.25, 71.62])
    advantages = [text.get_text() for text in entropy.texts if text.get_text()[0] in "+-"]
    assert advantages == ["+30", "-5", "+10", "+20", "+20", "+5"]
    oracle = numbers[(numbers["method"] == "retrain-or") & (numbers["metric"] == "f_set_mia")].iloc[0]
    assert (oracle["low"], oracle["high"]) == (0.2, 0.3)
    told = {"before the request", "failed: 1 of 2", "failed: 1 of 1", "no value", "not run", "Random subset (control)"}
    assert told <= {*texts(figure).splitlines()}
    quickdrop = numbers[numbers["method"] == "quickdrop"].set_index("metric")
    assert quickdrop["reference"]["f_set_mia"] == pytest.approx(0.25)
    assert quickdrop["published"]["r_set_mia"] == pytest.approx(0.7162)
    assert quickdrop.loc["f_set_mia_loss", ["mean", "seeds", "failed"]].tolist() == [0.05, 1, 1]
    assert numbers["reference"].notna().all()


def sequence(*lengths: int) -> Iterator[Row]:
    """Classes 2, 0 and 1 forgotten, each with one round of unlearning and as many of recovery as told."""
    requests = ("class-2", "class-2>class-0", "class-2>class-0>class-1")
    gone: set[int] = set()
    for request, label, length in zip(requests, (2, 0, 1), lengths, strict=False):
        yield from rounds(1, "fl-training", {c: [0.9] for c in range(3)}, first=20, request=request)
        gone.add(label)
        for phase, value, count in (("unlearning", 0.5, 1), ("recovery", 0.8, length)):
            courses = {c: [0.01 if c in gone else value] * count for c in range(3)}
            yield from rounds(1, phase, courses, request=request)


def heat(axes: Axes) -> list[np.ndarray]:
    """The blocks of accuracies, classes × rounds, in percent."""
    return [np.asarray(mesh.get_array()) for mesh in axes.collections if hasattr(mesh, "get_coordinates")]


def test_figure_4_is_a_block_of_rounds_per_request() -> None:
    figure, numbers = draw("figure4", sequence(2, 2, 0))
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["before", "2", "0", "1"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["2", "0", "1"]
    before, first, second, third = heat(axes)
    assert before.ravel() == pytest.approx([90, 90, 90])
    assert first == pytest.approx(np.array([[1, 1, 1], [50, 80, 80], [50, 80, 80]]))
    assert second == pytest.approx(np.array([[1, 1, 1], [1, 1, 1], [50, 80, 80]]))
    assert third.shape == (3, 1)
    framed = [patch.get_xy() for patch in axes.patches]
    assert framed == [(1, 0), (4, 1), (7, 2)]
    assert "1 is the last class: no data are retained that could take its place" in axes.get_xlabel()
    ends = numbers.pivot_table(index="step", columns="class", values="mean")
    assert ends.to_numpy() == pytest.approx(np.array([[0.9] * 3, [0.8, 0.8, 0.01], [0.01, 0.8, 0.01], [0.01] * 3]))
    assert numbers.groupby("step")["forgotten"].sum().tolist() == [0, 1, 2, 3]


def test_figure_4_shows_gaps_and_failures() -> None:
    rows = [r for r in sequence(2, 2, 2) if r["request"] != "class-2>class-0"]
    figure, numbers = draw("figure4", [*rows, failed("quickdrop", 7, request="class-2>class-0>class-1")])
    assert np.isnan(heat(figure.axes[0])[2].astype(float)).all()
    assert sorted(numbers["step"].unique()) == [0, 1, 3]
    assert "(class-0 not run; class-1 failed: 1 of 2, MemoryError)" in texts(figure).replace("2,\n", "2, ")
    assert {"not run", "×"} <= {text.get_text() for text in figure.axes[0].texts}


def run(method: str, seed: int, r_set: float, seconds: float = 4.0, **other: object) -> Iterator[Row]:
    for stage, share in (("unlearning", 0.25), ("recovery", 0.75), ("total", 1.0)):
        yield row(method, seed, stage, "r_set_accuracy", r_set, **other)
        yield row(method, seed, stage, "f_set_accuracy", 0.01, **other)
        yield row(method, seed, stage, "seconds", share * seconds, **other)


def test_figure_5_shows_gain_and_cost() -> None:
    rows = [*run("retrain-or", 1, 0.75), *run("retrain-or", 2, 0.77)]
    for steps, accuracy in ((0, 0.70), (50, 0.72), (200, 0.74)):
        for seed in (1, 2):
            rows += run("quickdrop", seed, accuracy + 0.01 * seed, fine_tuning=steps)
            rows.append(row("original", seed, "fl-training", "original_gradients", 1000.0, fine_tuning=steps))
            rows.append(row("original", seed, "fine-tuning", "original_gradients", 5.0 * steps, fine_tuning=steps))
    figure, numbers = draw("figure5", rows)
    left, right = figure.axes
    assert line(left, "QuickDrop") == [[0, 1, 2], pytest.approx([71.5, 73.5, 75.5])]
    assert line(left, "Retrain-Or")[1] == pytest.approx([76, 76])  # a level
    assert line(left, "paper (cifar10)") == [[0, 2], pytest.approx([70.48, 74.55])]
    assert [bar.get_height() for bar in right.patches] == [1000, 1000, 1000, 0, 250, 1000]
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0", "50", "200"]
    assert [bar.get_y() for bar in right.patches[3:]] == [1000, 1000, 1000]
    assert "(mini-batches, mean per client)" in right.get_ylabel()
    at_200 = numbers[(numbers["fine_tuning"] == 200) & (numbers["method"] == "quickdrop")].iloc[0]
    assert at_200[["mean", "std", "published"]].tolist() == pytest.approx([0.755, 0.01 / 2**0.5, 0.7455])


def test_published_points_have_places_of_their_own_and_of_other_data_none() -> None:
    figure, numbers = draw("figure5", [*run("quickdrop", 1, 0.98), *run("quickdrop", 1, 0.99, fine_tuning=2)])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "2", "200"]
    assert line(figure.axes[0], "paper (cifar10)") == [[0, 2], pytest.approx([70.48, 74.55])]
    alone = numbers[numbers["fine_tuning"] == 200].iloc[0]
    assert (alone["seeds"], alone["runs"], alone["published"]) == (0, 0, pytest.approx(0.7455))
    figure, numbers = draw("figure5", run("quickdrop", 1, 0.98, dataset="mnist"))
    assert numbers["published"].isna().all()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0"]
    assert "paper" not in texts(figure)


def scales() -> Iterator[Row]:
    yield from run("retrain-or", 1, 0.75, 100)
    yield from run("sga-or", 1, 0.74, 50)
    for scale in (1, 10, 1000):
        for seed in (1, 2):
            yield from run("quickdrop", seed, 0.7 - scale / 1e4 + 0.02 * seed, 40 * seed / scale, scale=scale)


def test_figure_6_shows_accuracy_and_seconds_over_the_scale() -> None:
    figure, numbers = draw("figure6", [*scales(), failed("quickdrop", 3, scale=100)])
    left, right = figure.axes
    assert line(left, "QuickDrop (failed: 1 of 7)") == [[0, 1, 3], pytest.approx([72.99, 72.9, 63])]
    assert line(left, "SGA-Or")[1] == pytest.approx([74, 74])
    assert line(left, "paper (cifar10)") == [[0, 2, 3], pytest.approx([72.67, 70.48, 54.69])]
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1", "10", "100", "1000"]
    assert left.get_ylim()[0] < 54.69
    assert right.get_yscale() == "log"
    recovery, unlearning = (own for own in right.lines if len(own.get_xdata()) == 3)
    assert (recovery.get_linestyle(), unlearning.get_linestyle()) == ("-", "--")
    ours = next(own for own in left.lines if str(own.get_label()).startswith("QuickDrop"))
    look = method_styles(["quickdrop"])["quickdrop"]
    assert {(o.get_color(), o.get_marker()) for o in (ours, recovery, unlearning)} == {(look.color, look.marker)}
    assert unlearning.get_ydata() == pytest.approx([15, 1.5, 0.015])
    assert recovery.get_ydata() == pytest.approx([45, 4.5, 0.045])
    assert right.get_ylabel() == "compute summed over clients (s)"
    assert any(own.get_marker() == "x" and own.get_xdata()[0] == 2 for own in left.lines)
    assert {"QuickDrop (failed: 1 of 7)", "Random subset (control; not run)"} <= set(texts(figure).splitlines())
    assert set(numbers["stage"]) == {"total", "unlearning", "recovery"}


def test_figure_6_has_a_row_for_the_same_steps_at_every_scale_where_they_were_measured() -> None:
    steps = {"method_setting": "h2", "method_changes": "recover_local_epochs null", "spec_hash": "i"}
    more = {**steps, "method_changes": "recover_lr 0.1, recover_local_epochs null", "method_setting": "h3"}
    measured = [
        *scales(),
        *(own for scale in (1, 10) for own in run("quickdrop", 1, 0.6, 400, scale=scale, **steps)),
        *run("quickdrop", 1, 0.5, scale=10, **more),
        *run("quickdrop", 1, 0.4, scale=10, protocol="letter-steps", spec_hash="j"),
    ]
    figure, numbers = draw("figure6", measured)
    in_passes, in_steps, letter = figure.axes[::2]
    assert line(letter, "QuickDrop")[1] == [pytest.approx(40)]
    assert line(in_passes, "QuickDrop")[1] == pytest.approx([72.99, 72.9, 63])
    assert line(in_steps, "QuickDrop") == [[0, 1], [pytest.approx(60)] * 2]
    assert line(in_steps, "QuickDrop (recover_lr 0.1)")[1] == [pytest.approx(50)]
    assert line(in_steps, "Retrain-Or")[1] == line(in_passes, "Retrain-Or")[1] == pytest.approx([75, 75])
    assert [in_passes.get_ylim(), figure.axes[1].get_ylim()] == [in_steps.get_ylim(), figure.axes[3].get_ylim()]
    titles = [part.get_suptitle().partition(", with recovery in ")[2] for part in figure.subfigs]
    assert titles == ["passes over a client's set", "the same steps at every scale", ""]
    own = numbers[numbers["protocol"] == "preset"]
    assert own.groupby("changes")["published"].count().to_dict() == {
        "recovery in passes over a client's set": 8,
        "recovery in the same steps at every scale": 0,
    }


def test_figure_6_of_a_single_scale_or_an_unknown_one() -> None:
    figure, _ = draw("figure6", run("quickdrop", 1, 0.7))
    assert line(figure.axes[0], "QuickDrop") == [[1], [pytest.approx(70)]]  # 1, 100 and 1000 have places
    unknown = [{k: v for k, v in r.items() if k not in ("scale", "fine_tuning")} for r in run("quickdrop", 1, 0.7)]
    figure, numbers = draw("figure6", unknown)
    assert line(figure.axes[0], "QuickDrop")[1] == pytest.approx([70, 70])  # a level
    assert line(figure.axes[0], "paper (cifar10)")[0] == [0, 1, 2]
    assert len(numbers[numbers["seeds"] > 0]) == 3
    trained = {**unknown[0], "method": "original", "stage": "fl-training", "metric": "original_gradients", "value": 7.0}
    figure, _ = draw("figure5", [*unknown, trained])
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["—"]


CHOICES: dict[str, tuple[Row, list[str], int]] = {
    "scale": ({"scale": [1, 10], "clients": [5, 10]}, ["1", "10"], 2),
    "fine_tuning": ({"fine_tuning": [0, 20]}, ["0", "20"], 1),
    "distribution": ({"distribution": ["iid", "dirichlet-10", "dirichlet-0.5"]}, ["0.5", "10", "iid"], 1),
    "clients": ({"clients": [20, 5], "dataset": ["svhn", "digits"]}, ["5", "20"], 2),
    "dataset": ({"dataset": ["svhn", "digits"]}, ["digits", "svhn"], 1),
    "nothing": ({}, ["100"], 1),
}


@pytest.mark.parametrize(("varied", "ticks", "panels"), CHOICES.values(), ids=CHOICES.keys())
def test_a_sweep_finds_its_axis(varied: dict[str, list[Any]], ticks: list[str], panels: int) -> None:
    grid = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]
    figure, numbers = draw("sweep", [r for cell in grid for r in run("quickdrop", 1, 0.7, **cell)])
    assert len(figure.axes) == 3 * panels
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ticks
    assert len(line(figure.axes[0], "QuickDrop")[0]) == len(ticks)
    assert figure.axes[2].get_ylabel() == "compute summed over clients (s)"
    assert len(numbers) == 3 * len(ticks) * panels
    assert not numbers.duplicated().any()


@pytest.mark.parametrize("name", FIGURES)
def test_without_runs_the_panels_say_so(name: str) -> None:
    figure, numbers = draw(name, [])
    assert "not run" in texts(figure)
    assert numbers.empty
    assert {"dataset", "method", "metric", "mean", "std", "seeds", "published"} <= set(numbers)


@pytest.mark.parametrize("name", FIGURES)
def test_failures_are_told(name: str) -> None:
    figure, _ = draw(name, [failed("quickdrop", 1), failed("quickdrop", 2)])
    assert "failed" in texts(figure)
    assert "2 of 2" in texts(figure)
    figure, _ = draw(name, [row("original", seed, "fl-training", "failed", 1.0) for seed in (1, 2)])
    assert "training failed: 2 of 2" in texts(figure)
    figure, _ = draw(name, [*run("quickdrop", 1, 0.1), row("quickdrop", 1, "total", "diverged", 1.0)])
    assert "diverged: 1 of 1" in texts(figure)


@pytest.mark.parametrize(("name", "label"), [("figure2", "test accuracy (%)"), ("figure6", "scale s")])
def test_the_same_rows_give_the_same_files(tmp_path: Path, name: str, label: str) -> None:
    rows, own = common.frame([*one_request(1, dataset="a $b_c$ & d"), *scales()]), exhibit(name)
    first, second = (module.write_exhibit(tmp_path / copy, own, rows) for copy in ("a", "b"))
    assert [path.name for path in first] == ["figure.svg", "figure.png", "figure.csv"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    svg = ElementTree.parse(first[0])  # noqa: S314 - we wrote it
    found = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {label, own.heading, "a $b_c$ & d, 10 clients, dirichlet-0.1, request class-2"} <= set(found)
    assert len(pd.read_csv(first[2])) == len(module.draw(own, rows)[1])


def test_numbers_as_a_table() -> None:
    _, numbers = draw("figure6", scales())
    text = markdown(numbers_table(numbers))
    assert text.startswith("## dataset: cifar10, clients: 10, distribution: dirichlet-0.1, request: class-2")
    assert any("72.99 ± 1.41%" in each and each.rstrip(" |").endswith("72.67%") for each in text.splitlines())
    assert "22.50 ± 10.61" not in text
    assert "45.00 ± 21.21" in text


def test_figure_7_has_a_panel_per_request_and_hollow_marks_for_what_does_not_forget() -> None:
    runs = {"retrain-or": (0.0, 0.9, 999), "quickdrop": (0.005, 0.85, 9), "none": (0.8, 0.95, 0), "pga": (0.0, 0.8, 99)}
    rows = [
        r
        for request in ("class-2", "client-0")
        for method, (f_set, r_set, gradients) in runs.items()
        for name, value in {**common.accuracy(f_set, r_set), **common.cost(1, gradients)}.items()
        for r in [row(method, 1, "total", name, value, request=request)]
    ]
    figure, numbers = draw("figure7", [*rows, failed("fu-mp", 1, request="client-0")])
    one, other = figure.subfigs
    assert "class-2, one seed, so no intervals" in str(one.get_suptitle())
    assert " ".join(str(other.get_suptitle()).split()).endswith("FU-MP (failed: 1 of 1, MemoryError)")
    assert len(numbers) == 3 * (2 * len(runs) + 1)
    (panel, _) = figure.axes
    marks = sorted((bars.lines[0] for bars in panel.containers), key=lambda mark: -mark.get_ydata()[0])
    filled = [mark.get_markerfacecolor() != "white" for mark in marks]  # in the order of the names, from above
    assert dict(zip([text.get_text() for text in panel.texts], filled, strict=True)) == {
        "Retrain-Or": True,
        "QuickDrop ?": True,  # one seed decides nothing
        "Original model (control) ?": False,
        "PGA ?": True,
    }
    front = [lines.get_segments()[0][:, 1] for lines in panel.collections if lines.get_zorder() == 1]
    assert [tuple(heights) for heights in front] == [pytest.approx((-5, -5)), pytest.approx((-5, 0))]
    assert next(tick.get_text() for tick in panel.get_xticklabels()) == "0"
    boxes = [text.get_window_extent() for text in panel.texts]
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])


def test_a_terminal_of_80_columns_shows_the_values_of_several_settings() -> None:
    _, numbers = draw("figure6", scales())
    both = pd.concat([numbers, numbers.assign(changes="rounds 2", setting="0" * 16)])
    console = Console(width=80, file=StringIO())
    console.print(terminal(numbers_table(both), "", 80))
    shown = console.file.getvalue()
    assert shown.count("72.99 ± 1.41%") == 2
    assert "0" * 16 not in shown
    console.print(terminal(numbers_table(numbers), "", 80))
    assert "\nscale " in console.file.getvalue()
