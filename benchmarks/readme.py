"""Write the README's table and picture from the rows of Table 2: ``python benchmarks/readme.py``."""

from __future__ import annotations

from pathlib import Path

from quickdrop_bench.core.files import write_text
from quickdrop_bench.harness.exhibits import exhibit
from quickdrop_bench.reporting.figures.style import save_picture, style
from quickdrop_bench.reporting.figures.tradeoff import tradeoff
from quickdrop_bench.reporting.frame import Setting, derive, latest, read_rows, settings_in, without_training
from quickdrop_bench.reporting.tables.summary import finding, summary_table
from quickdrop_bench.reporting.tables.writers import markdown

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results -->", "<!-- /results -->"
SOURCE = Path("results/small/table2")
METHODS = exhibit("table2").methods


def measured() -> Setting:
    """The rows of the source with the preset's values, which hold one setting."""
    rows, _ = read_rows(ROOT / SOURCE / "rows.jsonl")
    (setting,) = settings_in(derive(without_training(latest(rows[rows["protocol"] == "preset"]))))
    return setting


def block(setting: Setting) -> str:
    """The finding, and a line per method."""
    table = summary_table(setting, METHODS)
    return "\n\n".join([START, finding(setting), f"{markdown(table)}[Whole table]({SOURCE}/table.md).", END])


def main() -> None:
    """Replace the block in README.md and draw the picture."""
    path, setting = ROOT / "README.md", measured()
    before, rest = path.read_text(encoding="utf-8").split(START)
    write_text(path, before + block(setting) + rest.split(END)[1])
    what = f"{setting.columns['dataset']}, {setting.in_words['request']} forgotten"
    title = f"{what}: means with 95% intervals over seeds; best is top left"
    with style():
        if figure := tradeoff(setting, METHODS, title):
            save_picture(figure, ROOT / SOURCE / "front")


if __name__ == "__main__":
    main()
