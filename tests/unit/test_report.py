"""One page over a results folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from quickdrop_bench.harness.exhibits import exhibits
from quickdrop_bench.harness.presets import presets
from quickdrop_bench.reporting.html.contents import find
from quickdrop_bench.reporting.html.page import render_report
from quickdrop_bench.reporting.names import dataset_name
from tests.golden import common

EVIL = '<script>alert(1)</script>"onerror="alert(2)'
JPEG = "imagefolder:cifar10-jpeg"
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="40"><rect width="60" height="40" fill="#0072B2"/></svg>'
)
DAY = date(2026, 3, 4)
METHODS = ("original", "retrain-or", "sga-or", "quickdrop")


def measured(identity: common.Row, seeds: Iterable[int], methods: Iterable[str] = METHODS) -> Iterator[common.Row]:
    for seed in seeds:
        for k, method in enumerate(methods):
            own = {**identity, "spec_hash": f"{method}-{seed}-{identity['dataset']}-{identity['distribution']}"}
            if method == "original":
                yield from common.run(own, method, seed, {"fl-training": {"seconds": 10.0}}, **machine(own))
                continue
            after = {**common.accuracy(0.01, 0.7148 + 0.01 * (seed - 1)), "diverged": float(k == 2 and seed == 2)}
            share = 1 if method == "quickdrop" else 40
            total = {**after, **common.cost(31.22 * share, 100 * share), "failed": 0.0}
            yield from common.run(own, method, seed, {"recovery": after, "total": total}, **machine(own))


def machine(identity: common.Row) -> common.Row:
    versions = {"python": "3.11.7", "torch": "2.15.0"}
    known = {"git_commit": "0123456789abcdef", "git_dirty": True, "created_at": "2026-03-01T10:20:30+00:00"}
    return {"versions": versions, "wall_seconds": 30.0, "federation_hash": "f", **known, **identity}


def write_rows(folder: Path, rows: Iterable[common.Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_results(folder: Path) -> Path:
    """Two presets with tables and figures, of which one was not drawn; names that would like to be HTML."""
    jpeg, evil = common.setting(2, dataset=JPEG, preset="quick"), common.setting(2, dataset=EVIL, preset="quick")
    rows = [*measured(jpeg, (1, 2)), *measured(evil, (1,), (*METHODS, EVIL))]
    rows += common.failed({**jpeg, **machine(jpeg)}, "federaser", 1, f"OutOfMemoryError: {EVIL}")
    write_rows(folder / "quick" / "table2", rows)
    sides = [common.setting(4, request="client-0", distribution=name) for name in ("dirichlet-0.1", "iid")]
    write_rows(folder / "quick" / "table4", [row for side in sides for row in measured(side, (1,))])
    training = {"fl-training": {"total_seconds": 20.0, "distillation_seconds": 8.0, "overhead_percent": 40.0}}
    write_rows(folder / "quick" / "table6", common.run(common.setting(6), "quickdrop", 1, training))
    alone = common.setting(2, preset="small")
    write_rows(folder / "small" / "table2", measured(alone, (1,), ("sga-or", "quickdrop")))
    for name in ("figure2", "figure3"):
        write_rows(
            folder / "quick" / name, measured(common.setting(2, artefact=name, scale=10.0), (1,), ("quickdrop",))
        )
    put_picture(folder / "quick" / "figure2", "figure", f"method,value\n{EVIL},1.5\n")
    put_picture(
        folder / "quick" / "distribution" / "imagefolder-cifar10-jpeg-iid-3-seed1",
        "distribution",
        "client,total\n0,17\n",
    )
    return folder


def put_picture(folder: Path, stem: str, numbers: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.svg").write_text(SVG.replace("60", str(60 + len(stem))), encoding="utf-8")
    (folder / f"{stem}.csv").write_text(numbers, encoding="utf-8")


class Page(HTMLParser):
    """Tags with their attributes, and tables as caption and lines of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.text = ""
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("caption", "td", "th") else self.inside
        if tag == "table":
            self.tables.append(("", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside == "caption":
            self.tables[-1] = (self.tables[-1][0] + data, self.tables[-1][1])
        elif self.inside and data.strip():
            self.tables[-1][1][-1][-1] += f"{data.strip()} "

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag in ("caption", "td", "th") else self.inside

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def table(self, caption: str) -> list[list[str]]:
        return next([[cell.strip() for cell in line] for line in t] for name, t in self.tables if caption in name)

    def turned(self, caption: str) -> dict[str, list[str]]:
        """By header the cells of a table whose lines are columns."""
        return {header: list(cells) for header, *cells in zip(*self.table(caption), strict=True)}


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_report(make_results(tmp_path_factory.mktemp("results")), DAY)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_in_the_rows_becomes_html(html: str, page: Page) -> None:
    assert "<script" not in html.lower()
    assert '"onerror' not in html
    assert EVIL in page.text
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]


def test_it_needs_no_network_and_no_script(page: Page) -> None:
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    for tag, attrs in page.tags:
        assert (attrs.get("href") or "#").startswith(("#", "data:"))
        assert (attrs.get("src") or "data:").startswith("data:"), tag


def test_it_can_be_read_by_machines_and_people(page: Page) -> None:
    assert page.named("html") == [{"lang": "en"}]
    assert [a["content"] for a in page.named("meta") if a.get("name") == "viewport"]
    assert all(image["alt"] for image in page.named("img"))
    assert all(cell.get("scope") for cell in page.named("th"))
    assert len(page.named("caption")) == len(page.named("table"))
    anchors = [a["id"] for _, a in page.tags if "id" in a]
    assert len(anchors) == len(set(anchors))
    assert {(a["href"] or "")[1:] for a in page.named("a")} <= set(anchors)


def test_a_folder_whose_name_is_no_exhibits_shows_what_its_rows_are(tmp_path: Path) -> None:
    jpeg = common.setting(2, dataset=JPEG, preset="small")
    write_rows(tmp_path / "small" / "table2-mine", measured(jpeg, (1, 2)))
    write_rows(tmp_path / "small" / "table2", measured(common.setting(2, preset="small"), (1, 2)))
    page = Page(render_report(tmp_path, DAY))
    captions = [caption for caption, _ in page.tables]
    assert any(caption.startswith("Table 2 · small/table2-mine — CIFAR-10 (JPEG)") for caption in captions)
    assert "CIFAR-10 (JPEG) (small/table2-mine)" in page.text
    assert "2 settings" in " ".join(page.table("Tables and figures by preset")[2])
    assert (
        captions.count("Table 1 · small/table2-mine — CIFAR-10 (JPEG), 10 clients, dirichlet-0.1, request class-9") == 1
    )


def test_every_table_and_figure_is_there_and_every_picture_once(html: str, page: Page) -> None:
    for number in (1, 2, 4, 6):
        assert f"Table {number}: " in page.text
    captions = [caption for caption, _ in page.tables]
    assert "Table 2 · quick/table2 — CIFAR-10 (JPEG), 10 clients, dirichlet-0.1, request class-9" in captions
    assert "quick/figure2/figure.svg — digits" in page.text
    assert "distribution.svg — CIFAR-10 (JPEG)" in page.text
    assert "quick/figure3: rows are here, but no figure.svg" in page.text
    assert page.table("figure.csv")[1] == [EVIL, "1.5"]
    assert page.table("distribution.csv")[1] == ["0", "17"]
    sources = [image["src"] for image in page.named("img")]
    assert len(sources) == len(set(sources)) == 4  # figure, distribution, and one per data set of Table 2
    assert "front" not in html  # a picture that no command makes


def test_it_opens_with_the_finding_and_a_summary_per_data_set(page: Page) -> None:
    headings = [
        page.text.index(text)
        for text in ("R-Set is 0.0 points", "Gap to oracle", "Only the paper's own sizes", "1 setting")
    ]
    assert headings == sorted(headings)
    summary = {line[0]: line[1:] for line in page.table("CIFAR-10 (JPEG), 10 clients")}
    assert summary["QuickDrop"][:5] == ["1.0 ±0.0%", "72.0 ±0.7%", "+0.0 ±0.0", "100", "40.0×"]
    assert summary["Retrain-Or oracle"][2] == "—"
    assert page.text.index("Where the numbers come from") > page.text.index("Figure 2: ")


def test_every_stage_folds_out(page: Page) -> None:
    columns = page.turned("Table 2 · quick/table2 — CIFAR-10")
    first = columns[""]
    cells = dict(zip(first, columns["QuickDrop"], strict=True))
    assert cells["Recovery: R-Set"] == "71.98 ± 0.71% paper 70.48% Δ +1.50"
    assert cells["Total: Time (s)"] == "31.22 ± 0.00 paper 15.61 × 2"
    assert cells["Total: Speedup (seconds)"] == "40.0× (40.0–40.0) paper 463.7× × 0.086"
    assert cells["Total: F-Set − oracle"] == "+0.00 ± 0.00"  # the paper gives no such number
    marks = {"SGA-Or (diverged: 1 of 2)", "FedEraser (failed: 1 of 1, OutOfMemoryError; 1 of 2 seeds)"}
    assert marks | {"Random subset (control; not run)"} <= set(columns)


def test_differences_from_other_data_are_said_to_mean_little(page: Page) -> None:
    assert f"The paper's numbers are of cifar10, which is not {EVIL}: the differences say little." in page.text
    assert "The paper's numbers are of cifar10." in page.text


def test_table_1_is_made_from_table_2_where_it_has_no_rows(page: Page) -> None:
    assert "Made from the rows of quick/table2: class requests alone." in page.text
    lines = {line[0]: line[1:] for line in page.table("Table 1 · quick/table2 — CIFAR-10")}
    assert lines["QuickDrop"][6] == "✓ (high)"
    assert lines["SGA-Or diverged: 1 of 2, for class requests"][6] == "✗ (very low) paper ✗ (medium) differs"


def test_what_ran_where(page: Page) -> None:
    lines = page.table("What ran where")
    first = dict(zip(lines[0], lines[1], strict=True))
    assert first["Setting"] == "CIFAR-10 (JPEG), 10 clients, dirichlet-0.1, request class-9"
    assert first["Seeds"] == "1, 2"
    assert first["Methods"] == "Retrain-Or, SGA-Or, QuickDrop, FedEraser"
    assert first["Measured (UTC)"] == "2026-03-01 10:20"
    assert first["Wall time"] == "4 min"  # nine runs
    figure = next(line for line in lines if line[0] == "quick/figure2")
    assert figure[lines[0].index("Scale")] == "10"
    assert ["torch", "2.15.0"] in page.table("Package versions")
    assert page.table("Commits")[1][:1] == ["0123456789abcdef (dirty)"]
    assert page.table("Devices")[1][:2] == ["a CPU, 2 threads", "32-true"]


def test_what_is_missing_is_true(page: Page) -> None:
    runs = {line[0]: line[1:] for line in page.table("Tables and figures by preset")}
    assert runs["Exhibit"] == presets() == ["quick", "small", "paper"]
    assert runs["table1"] == ["from Table 2's rows", "from Table 2's rows", "never run"]
    assert runs["table2"] == ["2 settings", "1 setting", "never run"]
    assert runs["figure5"] == runs["sweep"] == ["never run"] * 3
    gaps = [line[2:] for line in page.table("Cells not run") if "JPEG" in line[1]]
    assert ["FU-MP", "every seed"] in gaps
    assert ["FedEraser", "seed 2"] in gaps
    assert not [line for line in gaps if line[0] in ("S2U", "QuickDrop")]
    wrong = [line[2:] for line in page.table("Runs that failed or diverged")]
    assert ["FedEraser", "1", "failed", f"OutOfMemoryError: {EVIL}"] in wrong
    assert ["SGA-Or", "2", "diverged", "—"] in wrong
    alone = page.table("Methods without an oracle's run")
    assert [line[::2] for line in alone[1:]] == [
        ["small/table2", "SGA-Or (1); QuickDrop (1)"],
        ["quick/figure3", "QuickDrop (1)"],
    ]


def test_lines_that_cannot_be_read_are_skipped_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "quick" / "table2"
    write_rows(folder, measured(common.setting(2), (1,)))
    before = len(find(tmp_path)[0].rows)
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('["no row"]\n{"dataset": {}}\n{"dataset": "digits", "cli')
    found = find(tmp_path)[0]
    assert len(found.rows) == before
    assert found.problem.startswith(f"3 of {before + 3} lines are torn or of an earlier version")
    page = Page(render_report(tmp_path, DAY))
    assert "Some lines in 1 folder are not shown: why." in page.text
    assert page.table("Lines that are not shown")[1] == ["quick/table2", f"rows.jsonl: {found.problem}"]


@pytest.mark.parametrize("look", [1, 2])
def test_a_folder_that_vanishes_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """It does when its files are listed, or between that and the reading of its rows and pictures."""
    gone, scan, looks = tmp_path / "results/gone", os.scandir, iter(range(1, 9))
    gone.mkdir(parents=True)
    (gone / "rows.jsonl").touch()

    def vanish(path: Any) -> Any:
        if Path(path) == gone and next(looks) == look:
            (gone / "rows.jsonl").unlink()
            gone.rmdir()
        return scan(path)

    monkeypatch.setattr("os.scandir", vanish)
    assert all(found.rows.empty for found in find(tmp_path / "results"))
    assert not gone.exists()


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        page = Page(render_report(folder, DAY))
        assert "There are no rows in this results folder." in page.text
        lines = page.table("Tables and figures by preset")[1:]
        assert [line[1:] for line in lines] == [["never run"] * 3] * len(exhibits())


def test_the_same_results_give_the_same_page(html: str, tmp_path: Path) -> None:
    again = render_report(make_results(tmp_path / "results"), DAY)
    assert again == html
    assert "2026-03-04" in html


def test_jpeg_pictures_say_so() -> None:
    others = "imagefolder:cifar100-jpeg", "cifar10"
    assert [dataset_name(f"imagefolder:{folder}") for folder in ("cifar10-jpeg", "CIFAR-10_jpg")] == [
        "CIFAR-10 (JPEG)"
    ] * 2
    assert tuple(map(dataset_name, others)) == others


def test_of_a_picture_in_two_formats_the_sharper_is_shown(tmp_path: Path) -> None:
    put_picture(tmp_path / "quick" / "figure2", "figure", "a\n" + "".join(f"{k}\n" for k in range(400)))
    (tmp_path / "quick" / "figure2" / "figure.png").write_bytes(b"none")
    (picture,) = find(tmp_path)[0].pictures
    assert picture.name == "figure.svg"
    assert picture.numbers is not None
    assert picture.numbers.footnote == "100 more lines in figure.csv."
