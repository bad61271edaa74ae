"""Write the README's table and picture from the rows of Table 2: ``python benchmarks/readme.py``."""

from __future__ import annotations

from pathlib import Path

from quickdrop_bench.core.files import write_text
from quickdrop_bench.harness.exhibits import Column, exhibit
from quickdrop_bench.reporting.figures import tradeoff
from quickdrop_bench.reporting.figures.style import save_picture, style
from quickdrop_bench.reporting.frame import TRAINING, Setting, derive, latest, read_rows, settings_in, without_training
from quickdrop_bench.reporting.names import method_title, setting_name
from quickdrop_bench.reporting.tables.texts import cell_of, paired, sign, signed_text

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- results -->", "<!-- /results -->"
SOURCE = Path("results/small/table2")
COLUMNS = (
    Column("", "F-Set", "total", "f_set_accuracy", "percent"),
    Column("", "R-Set", "total", "r_set_accuracy", "percent"),
    Column("", "R-Set − Retrain-Or", "total", "r_set_gap", "points"),
    Column("", "speed-up (sample-gradients)", "total", "speedup_sample_gradients", "ratio"),
    Column("", "time", "total", "seconds", "seconds"),
)
METHODS = tuple(method for method in exhibit("table2").methods if method != "s2u")


def measured() -> Setting:
    """The rows of the source with the preset's values, which hold one setting."""
    rows, _ = read_rows(ROOT / SOURCE / "rows.jsonl")
    (setting,) = settings_in(derive(without_training(latest(rows[rows["protocol"] == "preset"]))))
    return setting


def points(setting: Setting) -> dict[str, tuple[float, float, float, float]]:
    """By method: sample-gradients, and R-Set − Retrain-Or in percentage points with both ends of its interval."""
    return tradeoff.points(setting, METHODS)


def block(setting: Setting) -> str:
    """A line per method: F-Set and R-Set after the last stage, and the cost of the request."""
    dataset, rest = setting_name(setting.in_words).split(",", 1)
    before = [setting.cell("original", TRAINING, f"{s}_set_accuracy").mean for s in "fr"]
    heading = (
        f"**{dataset}**,{rest}, {len(setting.seeds())} seeds, {setting.rows['device'].iloc[0]}. "
        f"Before the request: F-Set {before[0]:.1%}, R-Set {before[1]:.1%}."
    )
    lines = [["method", *(column.header for column in COLUMNS)], ["---", *(["--:"] * len(COLUMNS))]]
    lines += [[method_title(method), *(_text(setting, method, column) for column in COLUMNS)] for method in METHODS]
    note = (
        "Means over seeds; speed-ups are the median (range) of the seeds' ratios; differences in percentage points, "
        f"paired by seed, with their 95% interval. ‡: other work shared the cores. [Whole table]({SOURCE}/table.md)."
    )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([START, heading, table, note, END])


def _text(setting: Setting, method: str, column: Column) -> str:
    """The mean, or the median of ratios; of differences the 95% interval too, and nothing of the oracle with itself."""
    cell = cell_of(setting, method, column)
    if column.kind == "percent":
        return f"{cell.mean:.1%}"
    if column.kind == "seconds":
        return f"{cell.mean:.1f} s{sign(setting, method, column)}"
    return (signed_text if column.kind == "ratio" else paired)(setting, method, column)


def main() -> None:
    """Replace the block in README.md and draw the picture."""
    path, setting = ROOT / "README.md", measured()
    before, rest = path.read_text(encoding="utf-8").split(START)
    write_text(path, before + block(setting) + rest.split(END)[1])
    what = f"{setting.columns['dataset']}, {setting.in_words['request']} forgotten"
    with style():
        if figure := tradeoff.tradeoff(
            setting, METHODS, f"{what}: means with 95% intervals; best is top left; grey: the Pareto front"
        ):
            save_picture(figure, ROOT / SOURCE / "front")


if __name__ == "__main__":
    main()
