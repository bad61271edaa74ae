"""What may be averaged, and how: settings apart, medians of paired ratios, paired differences, shared cores."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator

import pandas as pd
import pytest
import torch

from quickdrop_bench.core.cost import Clock, Cost
from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.harness.experiment import changes
from quickdrop_bench.harness.presets import paper_values
from quickdrop_bench.methods import METHODS
from quickdrop_bench.reporting.figures.points import panels
from quickdrop_bench.reporting.frame import Cell, derive, latest, named
from quickdrop_bench.reporting.published import read_published
from quickdrop_bench.reporting.render import measured_sections, render
from quickdrop_bench.reporting.tables.measured import Section
from quickdrop_bench.reporting.tables.shape import Table
from tests.golden import common

Row = common.Row
USUAL = {"setting": "aaa", "changes": "", "method_setting": "h1", "method_changes": ""}
SHORT = {**USUAL, "setting": "bbb", "changes": "rounds 2"}


def runs(r_set: dict[str, list[float]], first: int = 1, **columns: object) -> Iterator[Row]:
    """By method its R-Set accuracy on every seed; the forgotten class is always gone."""
    for method, values in r_set.items():
        for seed, value in enumerate(values, first):
            own = common.setting(2, **{**USUAL, **columns}, federation_hash=f"{columns.get('setting')}-{seed}")
            total = common.accuracy(0.0, value) | common.cost(1.0, 10)
            yield from common.run(own, method, seed, {"total": total}, spec_hash=f"{method}-{seed}-{columns}")


def tables_of(*rows: Row) -> list[Section]:
    return measured_sections(exhibit("table2"), common.frame(rows))


def texts(table: Table | None) -> dict[str, dict[str, str]]:
    """By line and header the cells of a table."""
    assert table is not None
    return {name: dict(zip(table.titles[1:], cells, strict=True)) for name, *cells in table.body()}


def test_settings_are_blocks_of_their_own() -> None:
    usual = runs({"retrain-or": [0.9, 0.8, 0.7], "quickdrop": [0.9, 0.8, 0.7]})
    short = runs({"retrain-or": [0.1], "quickdrop": [0.2]}, **SHORT)
    first, second = tables_of(*usual, *short)
    assert first.heading == "digits, 10 clients, dirichlet-0.1, request class-9"
    assert "‡" not in str(first.table())
    assert second.heading == f"{first.heading}, with rounds 2"
    gap = "Total: R-Set − oracle"
    assert texts(first.table())["QuickDrop"][gap] == "+0.00 ± 0.00"
    assert texts(second.table())["QuickDrop"][gap] == "+10.00"
    assert "over 3 seeds (1, 2, 3)" in first.table().footnote
    assert "over 1 seed (1)" in second.table().footnote


def test_a_setting_changed_again_has_lines_of_what_was_run_alone() -> None:
    """The first block shows what was not run; those that differ in a setting name it below."""
    usual = runs({"retrain-or": [0.9], "sga-or": [0.8]})
    first, second, other = tables_of(
        *usual, *runs({"retrain-or": [0.1], "quickdrop": [0.2]}, **SHORT), *runs({"quickdrop": [0.2]}, clients=5)
    )
    assert {"QuickDrop (not run)", "FedEraser (not run)", "S2U"} < texts(first.table()).keys()
    assert [line.title for line in second.table().lines] == ["Retrain-Or", "QuickDrop"]
    assert "Not run: FedEraser, SGA-Or, FU-MP, Random subset (control)." in second.table().footnote
    assert "Not run: " not in first.table().footnote
    assert "SGA-Or (not run)" in texts(other.table())


def test_settings_that_bear_one_name_show_their_hash() -> None:
    one, two = tables_of(*runs({"quickdrop": [0.9]}), *runs({"quickdrop": [0.1]}, first=2, setting="ccc"))
    assert (one.heading[-14:], two.heading[-14:]) == (", with setting aaa"[-14:], ", with setting ccc"[-14:])


def test_hyper_parameters_are_lines_of_their_own() -> None:
    usual = runs({"retrain-or": [0.9, 0.9], "quickdrop": [0.8, 0.8]})
    changed = {"method_setting": "h2", "method_changes": "recover_lr 0.02"}
    (section,) = tables_of(*usual, *runs({"quickdrop": [0.1]}, **changed))
    lines = texts(section.table())
    assert lines["QuickDrop"]["Total: R-Set − oracle"] == "-10.00 ± 0.00"
    assert lines["QuickDrop (recover_lr 0.02; 1 of 2 seeds)"]["Total: R-Set − oracle"] == "-80.00"


def test_hyper_parameters_that_bear_one_name_show_their_hash() -> None:
    rows = common.frame([*runs({"quickdrop": [0.9]}), *runs({"quickdrop": [0.1]}, first=2, method_setting="h2")])
    names = {"quickdrop (setting h1)", "quickdrop (setting h2)"}
    assert set(named(rows)["method"]) == names
    assert set(named(named(rows))["method"]) == names


def test_changes_in_words() -> None:
    usual = {"rounds": 30, "lr": 0.1, "iid": False, "image_size": None}
    assert changes(usual, usual) == ""
    assert changes({**usual, "rounds": 2, "lr": 1e-5, "iid": True}, usual) == "rounds 2, lr 1e-05, iid true"


def timed(seed: int, oracle: float, method: float, **more: float) -> Iterator[Row]:
    own = common.setting(2, **USUAL)
    yield from common.run(own, "retrain-or", seed, {"total": common.cost(oracle, 4000) | more})
    yield from common.run(own, "quickdrop", seed, {"total": common.cost(method, 100)})


def test_one_disturbed_timing_does_not_move_the_speedup() -> None:
    """The ratios are 60, 36 and 40: their mean is 45.3, the ratio of the means 45.5, and the median 40."""
    rows = [*timed(1, 600, 10), *timed(2, 360, 10), *timed(3, 400, 10)]
    (section,) = tables_of(*rows)
    line = texts(section.table())["QuickDrop"]
    assert line["Total: Speedup (seconds)"] == "40.0× (36.0–60.0)"
    assert line["Total: Speedup (sample-gradients)"] == "40.0× (40.0–40.0)"
    headers = list(line)
    assert headers.index("Total: Speedup (sample-gradients)") < headers.index("Total: Speedup (seconds)")
    assert "median (range) over seeds of the oracle's cost ÷ the method's" in section.table().footnote


def test_ratios_are_those_of_one_seed() -> None:
    """Seconds fall on both sides from seed to seed: each ratio is 10, while the medians' ratio is 10 by chance only."""
    rows = [*timed(1, 100, 10), *timed(2, 50, 1), *timed(3, 10, 5)]
    (section,) = tables_of(*rows)
    assert texts(section.table())["QuickDrop"]["Total: Speedup (seconds)"] == "10.0× (2.0–50.0)"


def test_seconds_of_shared_cores_are_marked() -> None:
    rows = [*timed(1, 600, 10, shared_cores=1.0), *timed(2, 360, 10, shared_cores=0.0)]
    (section,) = tables_of(*rows)
    lines = texts(section.table())
    assert lines["Retrain-Or"]["Total: Time (s)"].endswith(" ‡")
    assert lines["QuickDrop"]["Total: Speedup (seconds)"].endswith("× (36.0–60.0) ‡")
    assert not lines["QuickDrop"]["Total: Time (s)"].endswith("‡")
    assert not lines["QuickDrop"]["Total: Speedup (sample-gradients)"].endswith("‡")
    assert "‡: other work had the cores for more than 15% of the time on seed 1; such seconds say too" in (
        section.table().footnote
    )
    table = render(exhibit("table2"), common.frame(rows))
    assert r"$\ddagger$" in table["table.tex"]


def test_interval_of_student() -> None:
    """Of 1, 2, 3 and 6: mean 3, deviation √(14/3), and t = 3.182 for three degrees of freedom."""
    low, high = Cell.of(pd.Series([1.0, 2.0, 3.0, 6.0])).interval()
    half = 3.182446 * (14 / 3) ** 0.5 / 2
    assert (low, high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert Cell.of(pd.Series([1.0, 1.0])).interval() == (1.0, 1.0)
    assert all(map(math.isnan, Cell.of(pd.Series([1.0])).interval()))


def test_how_many_images_a_request_touches_is_said_of_methods_with_small_sets_alone() -> None:
    own = common.setting(9, request="sample-100")
    total = common.accuracy(0.9, 0.9) | common.cost(1, 10) | {"touched_share": 500.0}
    methods = [method for method in METHODS if "sample" in METHODS[method].levels]
    rows = [row for method in [*methods, "quickdrop (x)"] for row in common.run(own, method, 1, {"total": total})]
    shown = pd.read_csv(io.StringIO(render(exhibit("table9"), common.frame(rows))["table.csv"]))
    known = shown[shown["total_touched_share_median"].notna()]
    assert len(shown) > len(methods)
    assert {*known["method"]} == {"quickdrop", "quickdrop (x)", "random-subset"}


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by far more than methods do; QuickDrop is 1 and 3 points above the oracle, 2 below the control."""
    values = {"retrain-or": [0.50, 0.90], "random-subset": [0.53, 0.95], "quickdrop": [0.51, 0.93], "sga-or": [0.40]}
    (section,) = tables_of(*runs(values))
    table = section.differences()
    assert table is not None
    assert table.heading.endswith("request class-9, differences paired over seeds")
    lines = texts(table)
    control = "− Random subset (control)"
    assert list(lines["QuickDrop"]) == [
        "− Retrain-Or: F-Set",
        "− Retrain-Or: R-Set",
        f"{control}: F-Set",
        f"{control}: R-Set",
    ]
    # Half the interval of two values is 12.706 times half their distance.
    assert lines["QuickDrop"]["− Retrain-Or: R-Set"] == "+2.00 [-10.71, +14.71]"
    assert lines["QuickDrop"][f"{control}: R-Set"] == "-2.00 [-2.00, -2.00]"
    assert [*lines["Random subset (control)"].values()][1:] == ["+4.00 [-8.71, +16.71]", "—", "—"]
    assert lines["SGA-Or (1 of 2 seeds)"]["− Retrain-Or: R-Set"] == "-10.00"
    assert list(lines) == ["SGA-Or (1 of 2 seeds)", "Random subset (control)", "QuickDrop"]


def test_differences_stand_in_the_csv_file() -> None:
    rows = common.frame(runs({"retrain-or": [0.50, 0.90], "quickdrop": [0.51, 0.93]}))
    texts = render(exhibit("table2"), rows)
    line = pd.read_csv(io.StringIO(texts["table.csv"])).set_index("method").loc["quickdrop"]
    assert line["total_r_set_gap_mean"] == pytest.approx(0.02)
    assert line["total_r_set_gap_low"] == pytest.approx(0.02 - 0.12706, abs=1e-5)
    assert line["total_r_set_gap_high"] == pytest.approx(0.02 + 0.12706, abs=1e-5)
    assert line["total_r_set_gap_seeds"] == 2
    assert pd.isna(line["total_r_set_gap_control_mean"])


def test_a_clock_knows_work_from_waiting() -> None:
    clock = Clock(torch.device("cpu"))
    with clock.running():
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
    work = clock.cost
    assert work.cpu_seconds >= 0.1
    assert work.seconds - work.waiting_seconds == pytest.approx(0.1, abs=0.02)
    with clock.running():
        time.sleep(0.3)
    disturbed = clock.cost
    assert disturbed.waiting_seconds >= work.waiting_seconds + 0.25
    assert disturbed.shared_cores


def test_shared_cores_are_told_by_the_waiting_of_all_clients() -> None:
    assert not Cost(seconds=10, cpu_seconds=10, waiting_seconds=0).shared_cores  # one thread of two works
    quiet = Cost(seconds=10, cpu_seconds=9, waiting_seconds=1)
    assert not quiet.shared_cores
    both = quiet + Cost(seconds=10, cpu_seconds=7, waiting_seconds=3)
    assert both.shared_cores
    assert both.metrics()["cpu_seconds"] == 16
    assert both.metrics()["shared_cores"] == 1.0
    assert "waiting_seconds" not in both.metrics()
    assert {"cpu_seconds", "shared_cores"}.isdisjoint(Cost(seconds=1).metrics())  # as measured on a GPU


def test_figures_keep_settings_apart() -> None:
    rows = common.frame([*runs({"quickdrop": [0.9, 0.8]}), *runs({"quickdrop": [0.1]}, **SHORT)])
    first, second = panels(rows, read_published(paper_values(), "figure3"))
    assert second.label == f"{first.label}, with rounds 2"
    assert [len(slot.seeds("quickdrop")) for slot in (first, second)] == [2, 1]


def test_a_method_is_compared_with_the_control_in_the_same_setting() -> None:
    """Where both were run by two forms of ascent, each form has its own control; another method has the usual one."""
    changed = {"method_changes": "ascent reflection", "method_setting": "b"}
    usual = {"method_changes": "", "method_setting": "a"}
    rows = []
    for method, r_sets in (("random-subset", (0.10, 0.68)), ("quickdrop", (0.14, 0.46))):
        for own, r_set in zip((usual, changed), r_sets, strict=True):
            stages = {"total": common.accuracy(0.0, r_set) | common.cost(1.0, 10)}
            rows += common.run(common.setting(2), method, 1, stages, **{**own, "spec_hash": f"{method}-{r_set}"})
    rows += common.run(common.setting(2), "fu-mp", 1, {"total": common.accuracy(0.0, 0.3) | common.cost(1.0, 10)})
    found = derive(latest(common.frame(rows)))
    gaps = found[found["metric"] == "r_set_gap_control"].set_index("method")["value"]
    assert gaps["quickdrop"] == pytest.approx(0.04)
    assert gaps["quickdrop (ascent reflection)"] == pytest.approx(-0.22)
    assert gaps["fu-mp"] == pytest.approx(0.2)
