"""What the README and the pages that it links show, run as it stands."""

from __future__ import annotations

import re
import runpy
import shlex
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

from quickdrop_bench.cli.main import main
from quickdrop_bench.cli.resolve import parse
from quickdrop_bench.core.registry import Registry
from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.methods import METHODS
from quickdrop_bench.reporting.frame import read_rows
from quickdrop_bench.reporting.render import on_terminal
from tests.conftest import TINY
from tests.integration.judging import Ended

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/DEVIATIONS.md",
    "results/README.md",
    *(f"quickdrop_bench/{part}/README.md" for part in ("evaluation", "methods", "serving", "tracking")),
)
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
README = PAGES["README.md"]
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL)]
SHOWN = [line for _, text in BLOCKS for line in text.splitlines()]
SHOWN += [code for page in PAGES.values() for code in re.findall(r"`([^`\n]+)`", page)]
PROGRAM = re.compile(r"(?:quickdrop-bench|python -m quickdrop_bench) +([^#]*)")
COMMANDS = sorted({re.sub(r"\$\(.*?\)|<.*?>", "NAME", found[1]) for line in SHOWN if (found := PROGRAM.match(line))})


def python_block(word: str) -> str:
    return next(text for language, text in BLOCKS if language == "python" and word in text)


@pytest.mark.parametrize("options", [one for one in COMMANDS if "paper,tuned" not in one and "--noise" not in one])
def test_commands_parse(options: str) -> None:
    assert parse(shlex.split(options))


def test_pandas_example(table_2: Ended, capsys: pytest.CaptureFixture[str]) -> None:
    exec(python_block("read_json"), {})  # noqa: S102 - the page's own code
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

    monkeypatch.setattr("quickdrop_bench.core.registry.entry_points", lambda group: [Plugin()])
    monkeypatch.setattr(registered, "_loaded", False)
    assert main(["table", "2", *TINY, "--methods", "retrain-or,noise", "--noise.sigma", "0.2"]) == 0
    assert "Noise" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["methods"]) == 0
    listed = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line[0] != " "}
    assert (listed["noise"], listed["quickdrop"]) == ("noise", "quickdrop_bench")


def by_method(folder: str, metric: str, stage: str = "total", protocol: str = "preset") -> pd.DataFrame:
    """Of the protocol's rows, by default the preset's: a line a seed, a column a method."""
    rows = pd.read_json(ROOT / folder / "rows.jsonl", lines=True)
    rows = rows[(rows.stage == stage) & (rows.metric == metric) & (rows.protocol == protocol)]
    rows = rows[~rows.changes.str.contains("groups")]
    return rows.pivot_table(index="seed", columns="method", values="value", aggfunc="last")


def test_what_was_found_is_in_the_rows() -> None:
    folder, said = "results/reference/small/table7", " ".join(README.split())
    near, far = ["fedquit", "pga", "quickdrop", "sga-or", "random-subset"], ["mode", "not", "federaser", "fu-mp"]
    forgotten = 100 * by_method(folder, "f_set_accuracy").mean()
    assert (forgotten[[*near, *far]] < 1).all()
    assert forgotten["fedosd"] > 1
    r_set = 100 * by_method(folder, "r_set_accuracy")
    gap = r_set.sub(r_set["retrain-or"], axis=0).mean()
    cost = by_method(folder, "sample_gradients").add(by_method(folder, "sample_forwards") / 3, fill_value=0)
    faster = (1 / cost.div(cost["retrain-or"], axis=0)).median()
    for names, text, digits in (
        (near, "end {:.1f} to {:.1f} points below the oracle's R-Set, with {:.{d}f} to {:.{d}f} times fewer", 0),
        (far, "end {:.1f} to {:.1f} points below it, with {:.{d}f} to {:.{d}f} times fewer", 1),
    ):
        below, times = -gap[names], faster[names]
        assert text.format(below.min(), below.max(), times.min(), times.max(), d=digits) in said
    bought = r_set["quickdrop"] - r_set["random-subset"]
    ends = [bought.mean() + sign * 2.776 * bought.std() / 5**0.5 for sign in (-1, 1)]
    assert f"R-Set is {bought.mean():.2f} points above the control's" in said
    assert f"95% interval {ends[0]:.2f} to {ends[1]:+.2f}): no clear difference" in said
    share = distillation_share("results/reference/small/table2")
    assert f"took {share.min():.0f} to {share.max():.0f}% of training's time" in said


def distillation_share(folder: str, protocol: str = "preset") -> pd.Series[float]:
    """Of the seconds of training, in percent, by seed."""
    names = ("seconds", "distillation_seconds")
    seconds, distilling = (by_method(folder, name, "fl-training", protocol) for name in names)
    return 100 * (distilling / seconds)["original"]


def test_what_to_take_is_in_the_rows() -> None:
    said = " ".join((README + PAGES["results/README.md"]).split())
    digits, mnist = ("results/reference/quick/", "results/reference/small/")

    def off(folder: str, metric: str) -> pd.Series[float]:
        values = by_method(folder, metric)
        return (100 * values.sub(values["retrain-or"], axis=0)).mean()

    def fewer(folder: str) -> pd.Series[float]:
        cost = by_method(folder, "sample_gradients").add(by_method(folder, "sample_forwards") / 3, fill_value=0)
        return (1 / cost.div(cost["retrain-or"], axis=0)).median()

    classes = [(off(f"{where}table7", "r_set_accuracy"), fewer(f"{where}table7")) for where in (mnist, digits)]
    assert all(round(-gap["pga"], 1) <= 1 for gap, _ in classes)
    assert all(round(-gap["random-subset"], 1) <= 1.1 for gap, _ in classes)
    for method in ("pga", "random-subset"):
        assert "with {:.0f} and {:.0f} times fewer".format(*(times[method] for _, times in classes)) in said
    poisoned = [(off(f"{where}table10", "r_set_accuracy"), fewer(f"{where}table10")) for where in (mnist, digits)]
    for method, found, text, d in (
        ("pga", classes, "gradient ascent | {:.1f} and {:.1f} | {:.{d}f} and {:.{d}f} times fewer", 0),
        ("random-subset", classes, "`random-subset` | {:.1f} and {:.1f} | {:.{d}f} and {:.{d}f} times fewer", 0),
        ("quickdrop", classes, "no clear gain) | {:.1f} and {:.1f} | {:.{d}f} and {:.{d}f} times", 0),
        ("federaser", poisoned, "`federaser` | {:.1f} and {:.1f} | {:.{d}f} and {:.{d}f} times fewer", 1),
    ):
        numbers = [gap[method] for gap, _ in found] + [times[method] for _, times in found]
        assert text.format(*numbers, d=d) in README
    kept = [by_method(f"{where}table7", "storage_client_bytes")["random-subset"].mean() for where in (mnist, digits)]
    shares = 100 * kept[0] / (4 * 28**2) / 60_000, 100 * kept[1] / (4 * 8**2) / 1_442  # float32 images for training
    assert "{:.0f}% of all images on MNIST, {:.0f}% on digits".format(*shares) in said
    clients = [off(f"{where}table8", "f_set_accuracy") for where in (mnist, digits)]
    assert "is {:.0f} points (MNIST) and {:.0f} (digits)".format(*(gap["none"] for gap in clients)) in said
    assert [round(abs(gap["mode"])) for gap in clients] == [2, 2]
    assert clients[0]["none"] - clients[0]["mode"] == pytest.approx(0.9, abs=0.1)
    attack = 100 * by_method(f"{mnist}table10", "attack_success").mean()
    text = (
        "{none:.0f}% of attacks succeed before the request on MNIST, {retrain-or:.1f}% after retraining, "
        "{federaser:.1f}% after FedEraser, 1% after ConDa and FedQUIT ({conda_digits:.0f}% and {fedquit_digits:.0f}% "
        "on digits, FedEraser {federaser_digits:.0f}%), {mode:.0f}% after MoDe, {sga-or:.0f}% after SGA-Or, "
        "{quickdrop:.0f}% after QuickDrop ({least:.0f} to {most:.0f}% by seed), {s2u:.0f}% after S2U"
    )
    short = (
        "in {none:.0f}% of attacks before the request, in {retrain-or:.1f}% after retraining, in {federaser:.1f}% after"
    )
    assert f"{short} FedEraser and in {{quickdrop:.0f}}% after QuickDrop".format(**attack) in said
    seeds = 100 * by_method(f"{mnist}table10", "attack_success")["quickdrop"]
    others = (100 * by_method(f"{digits}table10", "attack_success")).mean().add_suffix("_digits")
    assert text.format(**attack, **others, least=seeds.min(), most=seeds.max()) in said
    assert [round(attack[method]) for method in ("conda", "fedquit")] == [1, 1]
    below = [-off(f"{mnist}{table}", "r_set_accuracy")["federaser"] for table in ("table10", "table8")]
    text = "R-Set is {:.1f} points below the oracle there where a client planted a backdoor, {:.1f} with 20 clients"
    assert text.format(*below) in said
    assert f"where F-Set falls {-clients[0]['federaser']:.0f} too low" in said
    stand_out = (100 * by_method(f"{mnist}table9", "f_set_advantage_mia_loss")).mean()
    assert "advantage {sga-or:.1f} points, {none:.1f} before".format(**stand_out) in said
    left = [off(f"{where}table9", "f_set_accuracy")["none"] for where in (digits, mnist)]
    assert "is {:.0f} points more accurate on them than the oracle on digits, {:.1f} on MNIST".format(*left) in said
    rows = pd.read_json(ROOT / f"{mnist}table9/rows.jsonl", lines=True)
    touched = rows[(rows.metric == "touched_share") & (rows.method == "quickdrop")].groupby("changes").value.mean()
    assert "touches about {:.0f} training images".format(round(touched[""], -2)) in said
    assert f"{touched['groups 16']:.0f} when trained" in said
    auc = pd.read_csv(ROOT / f"{digits}shadows/table.csv").set_index("method").auc
    text = "{none:.3f} before, {retrain-or:.3f} after retraining, {sga-or:.3f} after SGA-Or"
    assert f"{text.format(**auc)} with {fewer(f'{digits}table9')['sga-or']:.0f} times fewer" in said
    assert f"{auc['quickdrop']:.3f} after QuickDrop" in said


def test_what_was_found_at_the_papers_scale_is_in_the_rows() -> None:
    rows, said = pd.read_json(ROOT / "results/reference/paper/table2/rows.jsonl", lines=True), " ".join(README.split())
    rows = rows[(rows.stage == "total") & (rows.metric == "r_set_accuracy") & (rows.protocol == "preset")]
    found = [100 * rows[rows.method == method].value.iloc[0] for method in ("quickdrop", "random-subset", "retrain-or")]
    text = "recovered to {:.1f}% with distilled images, to {:.1f}% with real ones (the oracle, trained for 30 rounds "
    assert f"{text}only: {{:.1f}}%)".format(*found) in said
    (share,) = distillation_share("results/reference/paper/table2-h100", "letter-steps")
    assert f"one seed) distillation took {share:.0f}%" in said


def test_the_picture_is_of_the_rows() -> None:
    readme = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "readme.py")))
    rows = pd.read_json(ROOT / "results/reference/small/table7/rows.jsonl", lines=True)
    total = rows[rows.stage == "total"].pivot_table(index="seed", columns=["method", "metric"], values="value")
    gap = 100 * (total["quickdrop"].r_set_accuracy - total["retrain-or"].r_set_accuracy)
    half = 2.776 * gap.std() / 5**0.5  # Student's t with four degrees of freedom
    expected = (total["quickdrop"].sample_gradients.mean(), gap.mean(), gap.mean() - half, gap.mean() + half)
    points = readme.points(readme.measured())
    assert points["quickdrop"] == pytest.approx(expected, abs=1e-3)
    pruned = total["fu-mp"]
    assert points["fu-mp"][0] == pytest.approx((pruned.sample_gradients + pruned.sample_forwards / 3).mean())
    assert len(points) == 11  # ten methods beside retraining


def test_the_sample_is_what_a_terminal_shows() -> None:
    folder = ROOT / "results/reference/quick/table2-preset"
    rows, _ = read_rows(folder / "rows.jsonl")
    console = Console(width=80, file=StringIO())
    console.print(*on_terminal(exhibit("table2"), rows, folder, 80))
    shown = [line.rstrip() for line in console.file.getvalue().splitlines()]
    sample = next(text for language, text in BLOCKS if language == "text").splitlines()
    assert len(sample) == 10
    assert shown[: len(sample)] == sample


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {found[1] for line in SHOWN if (found := re.match(r"make ([a-z0-9-]+)", line))}
    assert {"install", "table2", "check"} <= named
    for target in named:
        pattern = re.sub(r"^(table|figure)\d+$", r"\1%", target)
        assert re.search(rf"^{pattern}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", PAGES[name]):
        if target.startswith("https://"):
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, anchor


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150
