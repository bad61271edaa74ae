"""What pictures share: looks, names beside marks, the trade-off, sheets of images."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from quickdrop_bench.reporting.figures.style import label_ends, label_points, method_styles, signed
from quickdrop_bench.reporting.figures.synthetic import write_sheet
from quickdrop_bench.reporting.figures.tradeoff import tradeoff
from quickdrop_bench.reporting.frame import derive, settings_in
from tests.golden import common


def test_looks_differ_without_colour() -> None:
    methods = ["retrain-or", "federaser", "s2u", "sga-or", "fu-mp", "random-subset", "quickdrop", "a", "b"]
    methods += ["quickdrop (ascent reflection)"]
    looks = method_styles(methods)
    assert len({(look.marker, look.line) for look in looks.values()}) == len(methods)
    assert len({look.color for look in method_styles(methods[:7]).values()}) == 7
    assert looks["quickdrop"].color == looks["quickdrop (ascent reflection)"].color


def test_names_do_not_overlap() -> None:
    axes = Figure(figsize=(7, 2.7)).subplots()
    axes.set(ylim=(0, 100))
    label_ends(axes, [(99 + 0.1 * k, f"class {k}", "black") for k in range(10)])
    axes.figure.canvas.draw()
    places = [text.xyann[1] for text in axes.texts]
    assert min(np.diff(places)) * axes.bbox.height >= Text.get_window_extent(axes.texts[0]).height
    assert min(places) >= 0
    assert max(places) <= 1
    axes = Figure(figsize=(7, 3)).subplots()
    axes.plot([0, 10], [0, 10], "none")
    points = [(5, 5, "one", "black"), (5.1, 5.1, "another", "black"), (9.9, 9.9, "at the edge", "black")]
    points += [(5 + 0.1 * k, 5, f"number {k}", "black") for k in range(4)]
    label_points(axes, points)
    axes.figure.canvas.draw()
    found = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert any(text.arrow_patch for text in axes.texts)  # leads to the name that found no place beside its mark
    assert not any(a.overlaps(b) for k, a in enumerate(found) for b in found[:k])
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in found)


@pytest.mark.parametrize(("value", "text"), [(-0.4, "0"), (0.4, "0"), (0.6, "+1"), (-12.0, "-12")])
def test_nothing_is_minus_zero(value: float, text: str) -> None:
    assert signed(value) == text


def test_the_trade_off_has_the_gap_over_the_cost() -> None:
    rows = [
        r
        for method, r_set, cost in (("retrain-or", 0.9, 999), ("quickdrop", 0.85, 9), ("pga", math.inf, 9))
        for seed in (1, 2)
        for r in common.run(
            common.setting(2),
            method,
            seed,
            {"total": common.accuracy(0, r_set + 0.01 * seed) | common.cost(1, cost, sample_forwards=3)},
        )
    ]
    (setting,) = settings_in(derive(common.frame(rows)))
    figure = tradeoff(setting, ["retrain-or", "quickdrop", "pga"])  # of pga there is no finite point
    assert figure is not None
    marks = [(float(x), float(y)) for own in figure.axes[0].containers for x, y in [own.lines[0].get_xydata()[0]]]
    assert marks == [(1000, 0), (10, pytest.approx(-5))]
    assert [text.get_text() for text in figure.axes[0].texts] == ["Retrain-Or", "QuickDrop"]
    assert tradeoff(setting, ["retrain-or"]) is None


@pytest.mark.parametrize("shape", [(12, 4, 5, 3), (3, 4, 5), (1, 4, 5, 1), (0, 4, 5, 3)])
def test_sheet_of_synthetic_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    draws = np.random.default_rng(1)
    real, synthetic = draws.random(shape), draws.normal(size=shape)
    labels = [f"class {i}" for i in range(len(real))]
    paths = write_sheet(tmp_path, real, synthetic, labels, "Synthetic images")
    assert [path.name for path in paths] == ["synthetic.svg", "synthetic.png"]
    text = paths[0].read_text()
    assert "Synthetic images" in text
    assert all(f">{label}<" in text for label in labels)
    assert ("no synthetic images" in text) == (shape[0] == 0)
    assert text.count("<image") == -(-shape[0] // 10)
    assert write_sheet(tmp_path / "again", real, synthetic, labels, "Synthetic images")[0].read_text() == text


def test_pictures_leave_no_global_state(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib\n"
        "from pathlib import Path; from quickdrop_bench.harness.exhibits import exhibit\n"
        "from quickdrop_bench.reporting.frame import frame_of\n"
        "from quickdrop_bench.reporting.render import style, write_exhibit\n"
        "before = matplotlib.rcParams.copy()\n"
        "write_exhibit(Path(sys.argv[1]), exhibit('sweep'), frame_of([]))\n"
        "with style(): pass\n"
        "assert all(before[k] == v for k, v in matplotlib.rcParams.items() if k != 'backend')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
